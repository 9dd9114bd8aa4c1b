"""Two encoders side by side, by what they find: how far their neighbours agree, and whose neighbours share a board.

NumPy only; nothing is read here. What people put on one board belongs together, so a pin's board-mates are the answers that a
search for it should give: the more of them among its ten nearest, the better the encoder. The sample depends on ids alone,
so that both encoders are asked the same and a second look gives the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding.index.recall import Ids

MIN_MATES = 2
"""Pins that a board needs: a lone pin has no mates."""
PINS_A_BOARD = 5
RESAMPLES = 2_000


def order_by_hash(ids: Ids, seed: int) -> Ids:
    """Positions of the ids in an order that looks random and depends on ids and seed alone (SplitMix64)."""
    mixed = ids.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class BoardSample:
    """Pins asked (Q,), the board of each (Q,), and how many other pins that board has (Q,)."""

    pins: Ids
    boards: Ids
    mates: Ids


def sample_boards(pins_N: Ids, boards_N: Ids, boards: int, seed: int = 0) -> BoardSample:
    """Up to PINS_A_BOARD pins of each of up to `boards` boards that have MIN_MATES pins or more."""
    names, sizes = np.unique(boards_N, return_counts=True)
    names, sizes = names[sizes >= MIN_MATES], sizes[sizes >= MIN_MATES]
    chosen = order_by_hash(names, seed)[:boards]
    size_of = dict(zip(names[chosen].tolist(), sizes[chosen].tolist(), strict=True))
    inside = np.isin(boards_N, names[chosen])
    pins_M, boards_M = pins_N[inside], boards_N[inside]
    order = order_by_hash(pins_M, seed)
    order = order[np.argsort(boards_M[order], kind="stable")]
    pins_M, boards_M = pins_M[order], boards_M[order]
    starts = np.searchsorted(boards_M, boards_M)
    first = np.arange(len(boards_M)) - starts < PINS_A_BOARD
    mates = np.array([size_of[board] - 1 for board in boards_M[first].tolist()], np.int64)
    return BoardSample(pins_M[first], boards_M[first], mates)


def board_mate_recall(found_boards_QK: Ids, sample: BoardSample) -> NDArray[np.float64]:
    """The share of each pin's board-mates (at most K of them) among its K nearest; (Q,).

    >>> sample = BoardSample(np.array([1]), np.array([7]), np.array([3]))
    >>> board_mate_recall(np.array([[7, 8, 7, -1]]), sample).round(2).tolist()
    [0.67]
    """
    hits_Q = (found_boards_QK == sample.boards[:, None]).sum(axis=1)
    recall: NDArray[np.float64] = hits_Q / np.minimum(sample.mates, found_boards_QK.shape[1])
    return recall


def overlap(ids_a_QK: Ids, ids_b_QK: Ids) -> NDArray[np.float64]:
    """The share of each query's K results that both lists have, in whatever order; (Q,). Ids of -1 mean "none"."""
    same_QKK = (ids_a_QK[:, :, None] == ids_b_QK[:, None, :]) & (ids_a_QK[:, :, None] >= 0)
    exist_Q = np.maximum((ids_a_QK >= 0).sum(axis=1), 1)
    shares: NDArray[np.float64] = same_QKK.any(axis=2).sum(axis=1) / exist_Q
    return shares


@dataclass(frozen=True)
class Difference:
    """Mean of `new - old` over groups, with the 95% bootstrap interval (resampling whole groups)."""

    mean: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        """Lower, with the interval clear of zero."""
        return self.high < 0


def paired_difference(
    old_Q: NDArray[np.float64], new_Q: NDArray[np.float64], groups_Q: Ids, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """Compares two figures of the same queries. Pins of one board are no independent witnesses: a board is one group."""
    _, group_of_Q = np.unique(groups_Q, return_inverse=True)
    means_G = np.bincount(group_of_Q, weights=new_Q - old_Q) / np.bincount(group_of_Q)
    rng = np.random.default_rng(seed)
    draws = [means_G[rng.integers(0, len(means_G), len(means_G))].mean() for _ in range(resamples)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Difference(float(means_G.mean()), float(low), float(high))
