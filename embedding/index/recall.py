"""Exact top-k over vectors that arrive in pieces, and the recall of an approximate answer against it. NumPy and FAISS only.

Symbols: Q queries, N vectors, D dimensions, K results a query. Similarity is the inner product; vectors are L2-normalised,
so it is the cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def merged_top_k(found: Sequence[tuple[Floats, Ids]], k: int) -> tuple[Floats, Ids]:
    """The k best of the results of several searches, each (scores, ids) of shape (Q, any)."""
    scores, ids = (np.concatenate(columns, axis=1) for columns in zip(*found, strict=True))
    return merge_top_k(np.where(ids >= 0, scores, -np.inf).astype(np.float32), ids, k)


def exact_top_k(queries_QD: Floats, pieces: Iterable[tuple[Floats, Ids]], k: int) -> tuple[Floats, Ids]:
    """The true k nearest of each query over all pieces of (vectors_ND, ids_N). Memory: one piece and Q x k results."""
    shape = (len(queries_QD), k)
    best = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
    for vectors_ND, ids_N in pieces:
        if len(ids_N):
            scores, places = faiss.knn(queries_QD, vectors_ND, min(k, len(ids_N)), metric=faiss.METRIC_INNER_PRODUCT)
            best = merged_top_k([best, (scores, ids_N[places])], k)
    return best


def drop_self(scores_QK: Floats, ids_QK: Ids, self_ids_Q: Ids) -> tuple[Floats, Ids]:
    """Each row without the query pin itself, one result shorter: finding oneself is no merit."""
    itself = ids_QK == self_ids_Q[:, None]
    # One a row, although a query that is no pin (-1) is "found" wherever a result is missing.
    dropped = np.where(itself.any(axis=1), itself.argmax(axis=1), ids_QK.shape[1] - 1)
    keep = np.arange(ids_QK.shape[1]) != dropped[:, None]
    shape = (len(ids_QK), ids_QK.shape[1] - 1)
    return scores_QK[keep].reshape(shape), ids_QK[keep].reshape(shape)


@dataclass(frozen=True)
class Truth:
    """The true neighbours of queries, by exact search, and so many more that ties at the last place are known.

    self_ids: The query pins' own ids (Q,), which are no neighbours; -1 for a query that is no pin.
    near_ids: (Q, M) ids that are as near as the k-th true neighbour, to within TIE_TOLERANCE; -2 where there are fewer.
    wanted: (Q,) how many true neighbours there are, at most k.
    rated: (Q,) false where more pins tie for the last place than M: nobody can say which belong there.
    k: Neighbours a query.
    """

    self_ids: Ids
    near_ids: Ids
    wanted: Ids
    rated: NDArray[np.bool_]
    k: int

    @classmethod
    def of(cls, scores_QM: Floats, ids_QM: Ids, self_ids_Q: Ids, k: int) -> Truth:
        """From the results of an exact search, best first, ids of -1 for none, the queries' own pins among them."""
        real = (ids_QM >= 0) & (ids_QM != self_ids_Q[:, None])
        scores = np.where(real, scores_QM, -np.inf)
        best = -np.sort(-scores, axis=1)[:, :k]
        wanted = np.isfinite(best).sum(axis=1)
        last = np.min(np.where(np.isfinite(best), best, np.inf), axis=1)
        near = scores >= last[:, None] - TIE_TOLERANCE
        # A full list whose end is still a tie may have left out others.
        open_ended = near[:, -1] & (ids_QM[:, -1] >= 0) if ids_QM.shape[1] > k + 1 else np.zeros(len(near), bool)
        return cls(self_ids_Q, np.where(near, ids_QM, -2), wanted, (wanted > 0) & ~open_ended, k)

    def recalls(self, found_ids_QK: Ids) -> NDArray[np.float64]:
        """The share of each rated query's k nearest that a search found; (at most Q,). Ids in the order of their scores."""
        _, found = drop_self(np.zeros(found_ids_QK.shape, np.float32), found_ids_QK, self.self_ids)
        hits = (found[:, : self.k, None] == self.near_ids[:, None, :]).any(axis=2).sum(axis=1)
        shares: NDArray[np.float64] = np.minimum(hits, self.wanted)[self.rated] / self.wanted[self.rated]
        return shares

    def recall(self, found_ids_QK: Ids) -> float:
        """Recall@k: the mean of `recalls`; 1 where nothing is there to be found."""
        shares = self.recalls(found_ids_QK)
        return float(shares.mean()) if len(shares) else 1.0

    def recall_low(self, found_ids_QK: Ids) -> float:
        """The lower end of recall@k's 95% interval, of the kind of queries (pins, or others: words) that does worse."""
        shares, is_pin = self.recalls(found_ids_QK), self.self_ids[self.rated] >= 0
        kinds = [kind for kind in (shares[is_pin], shares[~is_pin]) if len(kind)]
        return min((mean_interval(kind)[0] for kind in kinds), default=1.0)


def mean_interval(shares_Q: NDArray[np.float64], resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean over queries."""
    if not len(shares_Q):
        return 1.0, 1.0
    rng = np.random.default_rng(seed)
    means = shares_Q[rng.integers(0, len(shares_Q), (resamples, len(shares_Q)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
