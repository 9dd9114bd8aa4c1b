"""Exact top-k over vectors that arrive in pieces, and the recall of an approximate answer against it. NumPy and FAISS only.

Symbols: Q queries, N vectors, D dimensions, K results a query. Similarity is the inner product; vectors are L2-normalised,
so it is the cosine.
"""

from __future__ import annotations

from collections.abc import Iterable

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

TIE_TOLERANCE = 1e-5
"""Scores this close count as equal. Repins share one vector: which of two equal pins makes the tenth place is no error."""


def merge_top_k(scores_QN: Floats, ids_QN: Ids, k: int) -> tuple[Floats, Ids]:
    """The k best of each row, best first; ids of -1 mean "none". Shapes (Q, N) in, (Q, k) out."""
    missing = max(0, k - scores_QN.shape[1])
    if missing:
        scores_QN = np.pad(scores_QN, ((0, 0), (0, missing)), constant_values=-np.inf)
        ids_QN = np.pad(ids_QN, ((0, 0), (0, missing)), constant_values=-1)
    order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QN, order, 1), np.take_along_axis(ids_QN, order, 1)


def exact_top_k(queries_QD: Floats, pieces: Iterable[tuple[Floats, Ids]], k: int) -> tuple[Floats, Ids]:
    """The true k nearest of each query over all pieces of (vectors_ND, ids_N). Memory: one piece and Q x k results."""
    best_scores = np.full((len(queries_QD), k), -np.inf, np.float32)
    best_ids = np.full((len(queries_QD), k), -1, np.int64)
    for vectors_ND, ids_N in pieces:
        if not len(ids_N):
            continue
        scores, positions = faiss.knn(queries_QD, vectors_ND, min(k, len(ids_N)), metric=faiss.METRIC_INNER_PRODUCT)
        both_scores = np.concatenate([best_scores, scores], axis=1)
        both_ids = np.concatenate([best_ids, ids_N[positions]], axis=1)
        best_scores, best_ids = merge_top_k(both_scores, both_ids, k)
    return best_scores, best_ids


def drop_self(scores_QK: Floats, ids_QK: Ids, self_ids_Q: Ids) -> tuple[Floats, Ids]:
    """Each row without the query pin itself, one result shorter: finding oneself is no merit."""
    keep = ids_QK != self_ids_Q[:, None]
    keep[keep.all(axis=1), -1] = False
    shape = (len(ids_QK), ids_QK.shape[1] - 1)
    return scores_QK[keep].reshape(shape), ids_QK[keep].reshape(shape)


def recall_at_k(found_scores_QK: Floats, exact_scores_QK: Floats) -> float:
    """The mean share of the true k nearest that were found: the overlap of the two top lists, divided by k.

    Compares scores instead of ids, so that ties at the last place count as found: a result is a hit when it is as near as
    the k-th true neighbour. With fewer than k true neighbours, those that exist are the whole.

    >>> exact = np.array([[0.9, 0.8]], np.float32)
    >>> recall_at_k(np.array([[0.9, 0.7]], np.float32), exact)
    0.5
    """
    exists = np.isfinite(exact_scores_QK)
    wanted_Q = exists.sum(axis=1)
    last_Q = np.min(np.where(exists, exact_scores_QK, np.inf), axis=1)
    hits_Q = np.minimum((found_scores_QK >= last_Q[:, None] - TIE_TOLERANCE).sum(axis=1), wanted_Q)
    rated = wanted_Q > 0
    return float((hits_Q[rated] / wanted_Q[rated]).mean()) if rated.any() else 1.0
