"""Which inverted lists a search among some of the pins visits: the nearest ones that hold enough of those pins.

A search over all pins visits a fixed number of lists, tuned on how many hold the neighbours. Among a selection that number says
nothing: the selected pins may be one in a hundred everywhere, or all in a few lists far from the query. What is known is how
many selected rows each list holds, so a query goes through the lists in the order of their centroids until it has seen enough
of them, however far that is. How many are enough a build measures on the finished index (embedding/index/selections.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from embedding.index.factory import SearchSetting, inner_ivf
from embedding.index.recall import Floats, Ids


@dataclass(frozen=True)
class SelectionSetting:
    """How thoroughly a selection is searched: its rows that a query sees, and `SearchSetting.k_factor`."""

    rows_seen: int
    k_factor: int


@dataclass(frozen=True)
class SelectionPoint:
    """What a release's build measured for selections of a share of the pins, with the least setting that it found enough."""

    share: float
    setting: SelectionSetting
    recall_at_10: float


class Lists:
    """The inverted lists of shards that were trained as one: their centroids, and the list of each row."""

    def __init__(self, indexes: Sequence[faiss.Index]):
        """Reads the row numbers of all lists. Memory: four bytes a row. Raises ValueError where an index has no lists."""
        self._first: Any = indexes[0]
        ivf, _ = inner_ivf(self._first)
        self.count = int(ivf.nlist)
        self._centroids_CE: Floats = ivf.quantizer.reconstruct_n(0, self.count)
        self._list_of: list[NDArray[np.int32]] = [_list_of_rows(index) for index in indexes]

    def counts(self, rows: Sequence[Ids]) -> Ids:
        """How many of the rows, given by shard, each list holds; (C,)."""
        pairs = zip(self._list_of, rows, strict=True)
        held: Ids = np.sum([np.bincount(of[some], minlength=self.count) for of, some in pairs], axis=0, dtype=np.int64)
        return held

    def nearest(self, queries_QD: Floats, counts_C: Ids, enough: int) -> tuple[Ids, Floats]:
        """Lists (Q, P), nearest first, that together hold `enough` rows or all there are, and their centroids' scores.

        -1 fills the rows of queries that need fewer lists than others.
        """
        _, turned_QE = inner_ivf(self._first, queries_QD)
        held = np.flatnonzero(counts_C)
        scores_QC = turned_QE @ self._centroids_CE[held].T
        order_QC = np.argsort(-scores_QC, axis=1)
        counts_QC = counts_C[held][order_QC]
        seen_before_QC = np.cumsum(counts_QC, axis=1) - counts_QC
        visited_QC = seen_before_QC < enough
        most = max(1, int(visited_QC.sum(axis=1).max(initial=0)))
        order_QP, visited_QP = order_QC[:, :most], visited_QC[:, :most]
        scores_QP = np.where(visited_QP, np.take_along_axis(scores_QC, order_QP, 1), 0).astype(np.float32)
        return np.where(visited_QP, held[order_QP], -1).astype(np.int64), scores_QP


def selection_setting(
    setting: SearchSetting, of_all: float, measured: Sequence[SelectionPoint], share: float
) -> SelectionSetting:
    """What a selection of a share of the pins needs, where a query with `setting` sees `of_all` rows among all, in the mean.

    Where nothing was measured it sees as many of the selection. Between what was measured the logarithm of the rows goes with
    that of the share; beyond it too, but rows never become fewer.
    """
    if not measured:
        return SelectionSetting(max(1, round(of_all)), setting.k_factor)
    known = [(1.0, max(1.0, of_all)), *((point.share, float(point.setting.rows_seen)) for point in measured)]
    known.sort(reverse=True)
    (share_0, rows_0), (share_1, rows_1) = next(
        (pair for pair in pairwise(known) if pair[1][0] <= share), (known[-2], known[-1])
    )
    slope = (math.log(rows_1) - math.log(rows_0)) / (math.log(share_1) - math.log(share_0))
    if share < share_1:
        slope = min(slope, 0.0)
        rows_0, share_0 = rows_1, share_1
    rows = math.exp(math.log(rows_0) + slope * (math.log(max(share, 1e-9)) - math.log(share_0)))
    beside = [point.setting.k_factor for point in measured if point.share in (share_0, share_1)]
    return SelectionSetting(max(1, round(rows)), max(beside))


def _list_of_rows(index: faiss.Index) -> NDArray[np.int32]:
    ivf, _ = inner_ivf(index)
    list_of = np.empty(int(index.ntotal), np.int32)
    stored: Any = ivf.invlists
    for number in range(int(ivf.nlist)):
        size = int(stored.list_size(number))
        if size:
            ids = stored.get_ids(number)
            try:
                list_of[faiss.rev_swig_ptr(ids, size)] = number
            finally:
                stored.release_ids(number, ids)
    return list_of
