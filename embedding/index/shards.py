"""The opened shards of a release as one index: searched together, rows found by pin, picked by selections of pins.

Thread-safe: nothing changes after construction, and all of a search's parameters travel with the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from embedding.index.build import Shard
from embedding.index.factory import SearchSetting, open_file, reconstruct, search
from embedding.index.recall import Floats, Ids, merge_top_k, merged_top_k

EXACT_BELOW = 10_000
"""Selections of at most so many pins are compared one by one: exact, and faster than an index that skips nearly all it sees."""
TUNED_FOR = 11
"""Results that a setting was tuned for: ten, and the query itself. A refinement compares a multiple of what is asked for, so a
search for less would look at less, and find other pins than the first of the ten."""
THOROUGH_AT_MOST = 16
"""A search among a share of the pins visits more lists, because fewer of the near ones count; at most so many times."""


@dataclass(frozen=True)
class RowSelection:
    """Pins that a search is confined to, by their rows in each shard (ascending), and the share that they are of all.

    decoded: The vectors of a small selection, kept by its first search: decoding ten thousand takes 20 ms, comparing them one.
    bitmaps: Of a larger one, a bit for each row of each shard, kept likewise.
    """

    rows: tuple[Ids, ...]
    share: float
    decoded: list[Floats] = field(default_factory=list, compare=False, repr=False)
    bitmaps: list[list[faiss.IDSelector]] = field(default_factory=list, compare=False, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.rows))


class Shards:
    """The index of a release: shards in the order of their pin ids."""

    def __init__(self, indexes: Sequence[faiss.Index], ids: Sequence[Ids]):
        """Row i of an index is the i-th of its ids, which ascend from the first of one index to the last of the last."""
        self._indexes: list[Any] = list(indexes)
        self._ids = list(ids)
        self._first_ids = np.array([ids[0] if len(ids) else 0 for ids in self._ids], np.int64)

    @classmethod
    def open(cls, folder: Path, shards: Sequence[Shard]) -> Shards:
        """Of the files of a folder; the large ones are mapped, not read. Raises ValueError where index and ids disagree."""
        indexes = [open_file(folder / shard.index_file) for shard in shards]
        all_ids: list[Ids] = [np.load(folder / shard.ids_file, mmap_mode="r", allow_pickle=False) for shard in shards]
        for shard, index, ids in zip(shards, indexes, all_ids, strict=True):
            if not index.ntotal == len(ids) == shard.rows:
                raise ValueError(f"{shard.index_file} has {index.ntotal} rows, {len(ids)} ids; the manifest says {shard.rows}")
        return cls(indexes, all_ids)

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    @property
    def pin_ids(self) -> Ids:
        """All pin ids, ascending: 8 bytes a pin."""
        return np.concatenate([np.asarray(ids) for ids in self._ids])

    def search(
        self, queries_QD: Floats, k: int, setting: SearchSetting, among: RowSelection | None = None
    ) -> tuple[Floats, Ids]:
        """Scores (Q, k) and pin ids (Q, k), best first; id -1 where there are fewer than k."""
        if among is not None and len(among) <= EXACT_BELOW:
            return self._compare(queries_QD, k, among)
        selectors: list[faiss.IDSelector | None] = [None] * len(self._indexes)
        if among is not None:
            setting = thorough(setting, among.share)
            if not among.bitmaps:
                among.bitmaps.append([_bitmap(rows, len(ids)) for rows, ids in zip(among.rows, self._ids, strict=True)])
            selectors = list(among.bitmaps[0])
        parts, asked = [], max(k, TUNED_FOR)
        for index, ids, selector in zip(self._indexes, self._ids, selectors, strict=True):
            scores, rows = search(index, queries_QD, asked, setting, selector)
            parts.append((scores, np.where(rows >= 0, ids[np.maximum(rows, 0)], -1)))
        scores, found = parts[0] if len(parts) == 1 else merged_top_k(parts, k)
        return scores[:, :k], found[:, :k]

    def _compare(self, queries_QD: Floats, k: int, among: RowSelection) -> tuple[Floats, Ids]:
        """Exhaustive comparison with a small selection."""
        if not among.decoded:
            pairs = zip(self._indexes, among.rows, strict=True)
            among.decoded.append(np.concatenate([reconstruct(index, rows) for index, rows in pairs]))
        vectors_ND = among.decoded[0]
        ids = np.concatenate([ids[rows] for ids, rows in zip(self._ids, among.rows, strict=True)])
        scores_QN = (queries_QD @ vectors_ND.T).astype(np.float32)
        return merge_top_k(scores_QN, np.broadcast_to(ids, scores_QN.shape), k)

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


def thorough(setting: SearchSetting, share: float) -> SearchSetting:
    """The setting for a search among a share of the pins.

    With a share s of the pins, the k nearest of them lie as far as the k/s nearest of all. The lists visited grow with the
    root of 1/s, a graph's walk with 1/s itself, since it also passes what does not count.
    """
    factor = min(1 / max(share, 1e-6), THOROUGH_AT_MOST)
    return SearchSetting(math.ceil(setting.nprobe * math.sqrt(factor)), setting.k_factor, math.ceil(setting.ef_search * factor))


def _bitmap(rows: Ids, count: int) -> faiss.IDSelector:
    picked = np.zeros(count, bool)
    picked[rows] = True
    bitmap: Any = faiss.IDSelectorBitmap
    selector: faiss.IDSelector = bitmap(np.packbits(picked, bitorder="little"))
    return selector
