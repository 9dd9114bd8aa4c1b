"""Vectors of pins from the graph alone: what is saved near what, in the order of time.

Two pins that stand near each other in histories are alike to those who saved them. Their co-occurrence, counted with a
weight that falls with the distance, becomes positive pointwise mutual information, and its truncated singular value
decomposition gives each pin a source and a target vector: source . target says how likely the second follows the first.
That is what DeepWalk and skip-gram with negative sampling approximate by sampling (Levy and Goldberg, NIPS 2014; NetMF,
arXiv 1710.02971), here computed; directed, since what people save next is not what they saved before.

Symbols: I pins, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import svds

from embedding.taste.interests import Floats, Ids


@dataclass(frozen=True)
class VectorSetting:
    """How histories become vectors.

    window: Places between two pins of a history, at most.
    decay: Places after which a pair weighs 1/e.
    backwards: Weight of a pair in the other direction; 1 makes both alike.
    shift: log(shift) is taken off the mutual information: the number of negative samples of skip-gram.
    smoothing: Power of a pin's count as a target; below 1 it favours what is seldom saved less.
    """

    dim: int = 64
    window: int = 20
    decay: float = 5.0
    backwards: float = 0.5
    shift: float = 1.0
    smoothing: float = 0.75


@dataclass(frozen=True)
class GraphVectors:
    """Of each pin, float32 (I, D); one that nobody saved has zeros."""

    source: Floats
    target: Floats


def cooccurrence(histories: Sequence[Ids], pins: int, setting: VectorSetting) -> csr_matrix:
    """How often, with weights, the second pin follows the first (I, I). Histories have numbers of pins in the order of time."""
    rows: list[Ids] = []
    columns: list[Ids] = []
    weights: list[NDArray[np.float32]] = []
    for gap in range(1, setting.window + 1):
        weight = float(np.exp(-(gap - 1) / setting.decay))
        for history in histories:
            if len(history) > gap:
                rows += [history[:-gap], history[gap:]]
                columns += [history[gap:], history[:-gap]]
                weights += [np.full(len(history) - gap, w, np.float32) for w in (weight, weight * setting.backwards)]
    if not rows:
        return csr_matrix((pins, pins), dtype=np.float32)
    places = np.concatenate(rows), np.concatenate(columns)
    return coo_matrix((np.concatenate(weights), places), shape=(pins, pins)).tocsr()


def mutual_information(counts: csr_matrix, setting: VectorSetting) -> csr_matrix:
    """Positive pointwise mutual information of co-occurrence counts, shifted."""
    out = np.asarray(counts.sum(axis=1)).ravel()
    into = np.asarray(counts.sum(axis=0)).ravel() ** setting.smoothing
    with np.errstate(divide="ignore"):
        by_row, by_column = (diags(np.where(total > 0, 1 / total, 0.0)) for total in (out, into / max(into.sum(), 1e-12)))
    found = (by_row @ counts @ by_column).tocsr()
    found.data = np.maximum(np.log(np.maximum(found.data, 1e-12)) - np.log(setting.shift), 0.0)
    found.eliminate_zeros()
    return found.astype(np.float32)


def graph_vectors(histories: Sequence[Ids], pins: int, setting: VectorSetting | None = None) -> GraphVectors:
    """Source and target vectors of each pin, from histories of numbers in the order of time. Deterministic."""
    setting = setting or VectorSetting()
    information = mutual_information(cooccurrence(histories, pins, setting), setting)
    dim = min(setting.dim, min(information.shape) - 1)
    left, values, right = svds(information.astype(np.float64), k=dim, v0=np.ones(pins))
    order = np.argsort(-values)
    roots = np.sqrt(np.maximum(values[order], 0))
    known = [np.diff(side.indptr) > 0 for side in (information, information.tocsc())]
    sides = (left[:, order] * roots, right[order].T * roots)
    source, target = (np.where(has[:, None], side, 0.0).astype(np.float32) for has, side in zip(known, sides, strict=True))
    return GraphVectors(source, target)


def next_scores(history: Ids, vectors: GraphVectors, decay: float) -> Floats:
    """How likely each pin is to follow a history (I,): its last pin weighs most, each one before e^(-1/decay) of the next."""
    if not len(history):
        return np.zeros(len(vectors.target), np.float32)
    weights = np.exp(-np.arange(len(history) - 1, -1, -1) / decay).astype(np.float32)
    user_D = (weights / weights.sum()) @ vectors.source[history]
    scores: Floats = vectors.target @ user_D
    return scores
