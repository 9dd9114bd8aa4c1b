"""The opened shards of a release as one index: searched together, rows found by pin, picked by selections of pins.

Thread-safe: nothing changes after construction, and all of a search's parameters travel with the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from embedding.index.build import Shard
from embedding.index.factory import (
    SearchSetting,
    open_file,
    reconstruct,
    refined_scores,
    refinement_of,
    search,
    search_lists,
)
from embedding.index.lists import Lists, SelectionPoint, SelectionSetting, selection_setting
from embedding.index.recall import Floats, Ids, merge_top_k, merged_top_k

COMPARED_BELOW = 100_000
"""Selections of at most so many pins are compared one by one: as good as exact, whatever they are alike in, and about as fast
as an index of which nearly nothing counts."""
AS_THEY_ARE_BELOW = 10_000
"""Of so few, vectors are kept as float32 (10 MB), of more as float16 (51 MB at most)."""
TUNED_FOR = 11
"""Results that a setting was tuned for: ten, and the query itself. A refinement compares a multiple of what is asked for, so a
search for less would look at less, and find other pins than the first of the ten."""
LOST_IN_A_GRAPH = 0.2
"""A walk over a graph may not reach what is no larger a share of it and lies elsewhere: compared too, graphs are small."""
_DECODED_AT_ONCE, _QUERIES_AT_ONCE = 16_384, 1_024


@dataclass(frozen=True)
class RowSelection:
    """Pins that a search is confined to, by their rows in each shard (ascending), and the share that they are of all.

    What its first search finds out is kept with it:

    compared: An index of the vectors of a small selection, and their pins' ids: decoding takes longer than comparing.
    picked: Of a larger one, a bit for each row of each shard, and how many of its rows each inverted list holds, if any.
    """

    rows: tuple[Ids, ...]
    share: float
    compared: list[tuple[faiss.Index, Ids]] = field(default_factory=list, compare=False, repr=False)
    picked: list[tuple[list[faiss.IDSelector], Ids]] = field(default_factory=list, compare=False, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.rows))


class Shards:
    """The index of a release: shards in the order of their pin ids."""

    def __init__(self, indexes: Sequence[faiss.Index], ids: Sequence[Ids], measured: Sequence[SelectionPoint] = ()):
        """Row i of an index is the i-th of its ids, which ascend from the first of one index to the last of the last.

        measured: What searches among selections were found to need when the release was built.
        """
        self._measured = tuple(measured)
        self._indexes: list[Any] = list(indexes)
        self._ids = list(ids)
        self._first_ids = np.array([ids[0] if len(ids) else 0 for ids in self._ids], np.int64)
        self._first_rows = np.cumsum([0, *map(len, self._ids)])[:-1]
        self.listed = faiss.try_extract_index_ivf(self._indexes[0]) is not None

    @classmethod
    def open(cls, folder: Path, shards: Sequence[Shard], measured: Sequence[SelectionPoint] = ()) -> Shards:
        """Of the files of a folder; the large ones are mapped, not read. Raises ValueError where index and ids disagree."""
        indexes = [open_file(folder / shard.index_file) for shard in shards]
        all_ids: list[Ids] = [np.load(folder / shard.ids_file, mmap_mode="r", allow_pickle=False) for shard in shards]
        for shard, index, ids in zip(shards, indexes, all_ids, strict=True):
            if not index.ntotal == len(ids) == shard.rows:
                raise ValueError(f"{shard.index_file} has {index.ntotal} rows, {len(ids)} ids; the manifest says {shard.rows}")
        return cls(indexes, all_ids, measured)

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    @property
    def pin_ids(self) -> Ids:
        """All pin ids, ascending: 8 bytes a pin."""
        return np.concatenate([np.asarray(ids) for ids in self._ids])

    def search(
        self,
        queries_QD: Floats,
        k: int,
        setting: SearchSetting,
        among: RowSelection | None = None,
        how: SelectionSetting | None = None,
    ) -> tuple[Floats, Ids]:
        """Scores (Q, k) and pin ids (Q, k), best first; id -1 where there are fewer than k.

        how: How a selection of many pins is searched in inverted lists; by default as the build found to be enough.
        """
        if among is not None and (len(among) <= COMPARED_BELOW or (setting.ef_search and among.share <= LOST_IN_A_GRAPH)):
            return self._compare(queries_QD, k, among)
        wanted = max(k, TUNED_FOR)
        if among is None or not self.listed:
            scores, pins = self._search_each(queries_QD, wanted, setting, among)
        else:
            scores, pins = self._search_lists(queries_QD, wanted, among, how or self.selection_setting(setting, among))
        return scores[:, :k], pins[:, :k]

    def _search_each(
        self, queries_QD: Floats, k: int, setting: SearchSetting, among: RowSelection | None
    ) -> tuple[Floats, Ids]:
        """Each shard as an index of its own."""
        bitmaps: Sequence[faiss.IDSelector | None] = [None] * len(self._indexes)
        if among is not None:
            bitmaps, _ = self._picked(among)
            # A walk over a graph passes what does not count, too.
            setting = replace(setting, ef_search=math.ceil(setting.ef_search / among.share))
        found = [search(index, queries_QD, k, setting, of) for index, of in zip(self._indexes, bitmaps, strict=True)]
        parts = [(scores, self._pins(np.full_like(rows, number), rows)) for number, (scores, rows) in enumerate(found)]
        return parts[0] if len(parts) == 1 else merged_top_k(parts, k)

    def _search_lists(self, queries_QD: Floats, k: int, among: RowSelection, how: SelectionSetting) -> tuple[Floats, Ids]:
        """The same inverted lists of all shards, as many as hold enough of a selection; what they find is refined together."""
        if len(queries_QD) > _QUERIES_AT_ONCE:  # memory: a score of each list and query
            starts = range(0, len(queries_QD), _QUERIES_AT_ONCE)
            steps = [self._search_lists(queries_QD[at : at + _QUERIES_AT_ONCE], k, among, how) for at in starts]
            return np.concatenate([scores for scores, _ in steps]), np.concatenate([pins for _, pins in steps])
        bitmaps, counts_C = self._picked(among)
        lists = self._lists.nearest(queries_QD, counts_C, how.rows_seen)
        refined = refinement_of(self._indexes[0]) is not None
        wide = k * max(1, how.k_factor) if refined else k
        found = []
        for number, index in enumerate(self._indexes):
            scores, rows = search_lists(index, queries_QD, wide, lists, bitmaps[number])
            found.append((scores, np.where(rows >= 0, rows + self._first_rows[number], -1)))
        scores, numbers = merged_top_k(found, wide)
        shard_of = np.searchsorted(self._first_rows, numbers, side="right") - 1
        rows = numbers - self._first_rows[shard_of]
        if refined:
            for number, index in enumerate(self._indexes):
                here = (shard_of == number) & (numbers >= 0)
                scores[here] = refined_scores(index, queries_QD, np.nonzero(here)[0], rows[here])
        return merge_top_k(scores, np.where(numbers >= 0, self._pins(shard_of, rows), -1), k)

    def selection_setting(self, setting: SearchSetting, among: RowSelection) -> SelectionSetting:
        """How a selection is searched in inverted lists, from what the build measured of others."""
        of_all = min(1.0, max(setting.nprobe, 1) / self._lists.count) * len(self)
        return selection_setting(setting, of_all, self._measured, among.share)

    def _pins(self, shard_of: Ids, rows: Ids) -> Ids:
        """The pin ids of rows of shards; -1 for a row of -1."""
        pins = np.full(rows.shape, -1, np.int64)
        for number, ids in enumerate(self._ids):
            here = (shard_of == number) & (rows >= 0)
            pins[here] = ids[rows[here]]
        return pins

    def _picked(self, among: RowSelection) -> tuple[list[faiss.IDSelector], Ids]:
        if not among.picked:
            bitmaps = [_bitmap(rows, len(ids)) for rows, ids in zip(among.rows, self._ids, strict=True)]
            among.picked.append((bitmaps, self._lists.counts(among.rows) if self.listed else np.empty(0, np.int64)))
        return among.picked[0]

    @cached_property
    def _lists(self) -> Lists:
        """The inverted lists, read when a search among a selection first needs them."""
        return Lists(self._indexes)

    def _compare(self, queries_QD: Floats, k: int, among: RowSelection) -> tuple[Floats, Ids]:
        """Exhaustive comparison with a small selection."""
        if not among.compared:
            dim = self._indexes[0].d
            kind = faiss.ScalarQuantizer.QT_fp16 if len(among) > AS_THEY_ARE_BELOW else None
            metric = faiss.METRIC_INNER_PRODUCT
            vectors: Any = faiss.IndexFlatIP(dim) if kind is None else faiss.IndexScalarQuantizer(dim, kind, metric)
            for index, rows in zip(self._indexes, among.rows, strict=True):
                for start in range(0, len(rows), _DECODED_AT_ONCE):
                    vectors.add(reconstruct(index, rows[start : start + _DECODED_AT_ONCE]))
            among.compared.append(
                (vectors, np.concatenate([ids[rows] for ids, rows in zip(self._ids, among.rows, strict=True)]))
            )
        vectors, ids = among.compared[0]
        scores, places = vectors.search(queries_QD, k)
        pins = np.where(places >= 0, ids[np.maximum(places, 0)], -1) if len(ids) else np.full_like(places, -1)
        return np.where(pins >= 0, scores, -np.inf).astype(np.float32), pins

    def places(self, pin_ids: Ids) -> tuple[Ids, Ids]:
        """(shard, row) of each pin; shard -1 for one that is not here."""
        shard_of = np.maximum(np.searchsorted(self._first_ids, pin_ids, side="right") - 1, 0)
        rows = np.zeros(len(pin_ids), np.int64)
        found = np.zeros(len(pin_ids), bool)
        for number in np.unique(shard_of):
            ids, mine = self._ids[number], shard_of == number
            if len(ids):
                rows[mine] = np.minimum(np.searchsorted(ids, pin_ids[mine]), len(ids) - 1)
                found[mine] = ids[rows[mine]] == pin_ids[mine]
        return np.where(found, shard_of, -1).astype(np.int64), rows

    def select(self, pin_ids: Ids) -> RowSelection:
        """Those of the pins that are here."""
        shard_of, rows = self.places(np.unique(pin_ids))
        picked = tuple(rows[shard_of == number] for number in range(len(self._ids)))
        return RowSelection(picked, sum(map(len, picked)) / max(len(self), 1))

    def vectors(self, pin_ids: Ids) -> Floats:
        """The pins' vectors (N, D), in the order of the ids. Raises KeyError for one that is not here."""
        shard_of, rows = self.places(pin_ids)
        if (shard_of < 0).any():
            raise KeyError(int(pin_ids[shard_of < 0][0]))
        vectors = np.empty((len(pin_ids), self._indexes[0].d), np.float32)
        for number in np.unique(shard_of):
            vectors[shard_of == number] = reconstruct(self._indexes[number], rows[shard_of == number])
        return vectors


def _bitmap(rows: Ids, count: int) -> faiss.IDSelector:
    picked = np.zeros(count, bool)
    picked[rows] = True
    bitmap: Any = faiss.IDSelectorBitmap
    selector: faiss.IDSelector = bitmap(np.packbits(picked, bitorder="little"))
    return selector
