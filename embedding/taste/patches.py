"""Tonight's lists from the graph of the night before and the edges that may have changed: whole lists are read, heads written.

Nothing here knows a table: what is given is, of each edge that was touched, whether it is there now, and since when. An edge
that was touched and is as it was changes nothing. The lists that come of it are those of a graph that is built whole from the
same edges, in the same order: newest first, those of one minute by id.

A list of `max_degree` edges may have been pruned: what was pruned is older than its last edge. Such a list is right while it
keeps `max_degree` edges that are no older than that. Otherwise its node is named as short, and has to be made again from all of
its edges (`Touched.asked`).

Symbols: R nodes whose list was touched, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.taste.graph import BOARDS_SIDE, PINS_SIDE, Graph, Ids, Lists, Nodes, Numbers, Patch, offsets_of

OTHER = {PINS_SIDE: BOARDS_SIDE, BOARDS_SIDE: PINS_SIDE}
GONE = int(np.iinfo(np.int64).min)
"""The time of an edge that is not there."""


@dataclass(frozen=True)
class Fresh:
    """The nodes that no graph before had, by side: their ids, ascending. They are numbered from the graph's last number on."""

    ids: Mapping[str, Ids]

    def numbers_of(self, graph: Graph, side: str, ids: Ids) -> Ids:
        """Numbers of old and new nodes by id; -1 for an id that is none."""
        found, fresh = graph.side(side).numbers_of(ids).astype(np.int64), self.ids[side]
        if len(fresh):
            places = np.minimum(np.searchsorted(fresh, ids), len(fresh) - 1)
            found = np.where((found < 0) & (fresh[places] == ids), len(graph.side(side)) + places, found)
        return found

    def ids_of(self, graph: Graph, side: str, nodes: Ids) -> Ids:
        old, fresh = len(graph.side(side)), self.ids[side]
        ids = graph.side(side).ids_of(np.where(nodes < old, nodes, -1))
        ids[nodes >= old] = fresh[nodes[nodes >= old] - old]
        return ids

    def total(self, graph: Graph, side: str) -> int:
        """How many numbers there are with the new ones."""
        return len(graph.side(side)) + len(self.ids[side])


@dataclass(frozen=True)
class Touched:
    """Edges of one side's shard that may have changed, each once: numbers (E,) of its nodes and of their neighbours, and
    `saved` (E,) in minutes, GONE of one that is not there. asked: Numbers of the nodes of which all edges are given."""

    of: Ids
    to: Ids
    saved: Ids
    asked: Ids


@dataclass(frozen=True)
class Updated:
    """A shard after a night.

    arrays: By the kind of their files. changed: Ids (E, 2) of the node and the neighbour of edges that this side's lists have
    now and had not, or the other way round. degrees: How many more nodes, or fewer, have 1, 2 ... edges; 0 is left out. lists:
    How many have others. patched: The shard's edges that do not stand in the base. added, removed: Edges of the graph, counted
    by the pins' side alone. short: Numbers of nodes.
    """

    arrays: dict[str, NDArray[Any]]
    changed: Ids
    degrees: Ids
    lists: int
    patched: int
    added: int
    removed: int
    short: Ids


def update_shard(
    graph: Graph, side: str, shard: int, nodes: tuple[int, int], fresh: Fresh, touched: Touched, max_degree: int
) -> Updated:
    """One shard of a side after a night: one of the base's, or one of those that follow it.

    Args:
        nodes: First and last number, that one left out, of the shard's nodes after the night.
    """
    of_R = np.unique(touched.of)
    old = _old_lists(graph, side, of_R)
    keys = _keys(np.searchsorted(of_R, touched.of), touched.to)
    new, ids_E = _merged(graph, side, fresh, old, keys, touched, max_degree)
    short = _is_short(graph, side, old, new, ids_E, max_degree) & ~np.isin(of_R, touched.asked)
    changed = np.setxor1d(_keys(old.rows, old.neighbours), _keys(new.rows, new.neighbours), assume_unique=True)
    rows, to = changed >> 32, changed & 0xFFFFFFFF
    named = [fresh.ids_of(graph, of, numbers) for of, numbers in ((side, of_R[rows]), (OTHER[side], to))]
    added, removed = _counts(graph, old, keys, touched, max_degree) if side == PINS_SIDE else (0, 0)
    if nodes[0] < graph.side(side).ranged_nodes:
        arrays, patched = _patch_arrays(graph, side, shard, of_R - nodes[0], new)
    else:
        arrays, patched = _shard_arrays(graph, side, nodes, fresh, of_R, new)
    return Updated(
        arrays=arrays,
        changed=np.stack(named, axis=1),
        degrees=_degree_changes(old, new),
        lists=len(np.unique(rows)),
        patched=patched,
        added=added,
        removed=removed,
        short=of_R[short],
    )


def _keys(rows: Ids, neighbours: Numbers) -> Ids:
    """A number an edge: of its node's place, and of its neighbour."""
    return (np.asarray(rows, np.int64) << 32) | np.asarray(neighbours, np.int64)


def _old_lists(graph: Graph, side: str, nodes: Ids) -> Lists:
    """The lists before; of new nodes empty ones."""
    known = nodes[nodes < len(graph.side(side))]
    return Lists.joined([graph.side(side).lists(known), Lists.empty(len(nodes) - len(known))])


def _merged(
    graph: Graph, side: str, fresh: Fresh, old: Lists, keys: Ids, touched: Touched, max_degree: int
) -> tuple[Lists, Ids]:
    """The new lists of the touched nodes, and the ids of the neighbours in them."""
    kept = ~np.isin(_keys(old.rows, old.neighbours), keys)
    there = touched.saved != GONE
    row = np.concatenate([old.rows[kept], keys[there] >> 32])
    to = np.concatenate([old.neighbours[kept].astype(np.int64), touched.to[there]])
    saved = np.concatenate([old.saved[kept].astype(np.int64), touched.saved[there]])
    ids = fresh.ids_of(graph, OTHER[side], to)
    order = np.lexsort((ids, -saved, row))
    counts = np.bincount(row, minlength=len(old.degrees))
    first = (np.arange(len(row)) - np.repeat(offsets_of(counts)[:-1], counts)) < max_degree
    order = order[first]
    new = Lists(offsets_of(np.minimum(counts, max_degree)), to[order].astype(np.int32), saved[order].astype(np.int32))
    return new, ids[order]


def _is_short(graph: Graph, side: str, old: Lists, new: Lists, ids_E: Ids, max_degree: int) -> NDArray[np.bool_]:
    """Which lists may have been pruned, and now reach below where they ended: something that was pruned may belong there."""
    full = np.flatnonzero(old.degrees == max_degree)
    found = np.zeros(len(old.degrees), np.bool_)
    found[full] = new.degrees[full] < max_degree
    same = full[~found[full]]
    was, now = old.offsets[same + 1] - 1, new.offsets[same + 1] - 1
    was_id = graph.side(OTHER[side]).ids_of(old.neighbours[was])
    later = (new.saved[now] == old.saved[was]) & (ids_E[now] > was_id)
    found[same] = (new.saved[now] < old.saved[was]) | later
    return found


def _counts(graph: Graph, old: Lists, keys: Ids, touched: Touched, max_degree: int) -> tuple[int, int]:
    """How many of the pins' touched edges are new, and how many are no more.

    Of an edge that both ends may have pruned it is not known whether it was there: it counts as new where it is newer than what
    the pin kept, and is not missed where it is gone.
    """
    rows = keys >> 32
    was = np.isin(keys, _keys(old.rows, old.neighbours))
    unsure = np.flatnonzero(~was & (old.degrees[rows] == max_degree) & (touched.to < len(graph.boards)))
    boards, place = np.unique(touched.to[unsure], return_inverse=True)
    lists = graph.boards.lists(boards) if len(boards) else Lists.empty(0)
    was[unsure] = np.isin(_keys(place, touched.of[unsure]), _keys(lists.rows, lists.neighbours))
    pruned = unsure[~was[unsure] & (lists.degrees[place] == max_degree)]
    counts = np.ones(len(keys), np.bool_)
    counts[pruned] = touched.saved[pruned] > old.saved[old.offsets[rows[pruned] + 1] - 1]
    there = touched.saved != GONE
    return int((there & ~was & counts).sum()), int((~there & was).sum())


def _degree_changes(old: Lists, new: Lists) -> Ids:
    before, now = np.bincount(old.degrees), np.bincount(new.degrees)
    found = np.zeros(max(len(before), len(now)), np.int64)
    found[: len(now)] += now
    found[: len(before)] -= before
    found[:1] = 0
    return found


# -- what is written -------------------------------------------------------------------------------------------------------


def _shard_arrays(
    graph: Graph, side: str, nodes: tuple[int, int], fresh: Fresh, of_R: Ids, new: Lists
) -> tuple[dict[str, NDArray[Any]], int]:
    """A shard of nodes that came after the base: all of its lists."""
    every = np.arange(*nodes)
    others = np.setdiff1d(every, of_R)
    order = np.argsort(np.concatenate([of_R, others]))
    lists = Lists.joined([new, _old_lists(graph, side, others)]).take(order)
    ids = fresh.ids_of(graph, side, every)
    arrays: dict[str, NDArray[Any]] = {"ids": ids, "offsets": lists.offsets, "neighbours": lists.neighbours}
    return arrays | {"saved": lists.saved, "order": np.argsort(ids).astype(np.int32)}, len(lists.neighbours)


def _patch_arrays(graph: Graph, side: str, shard: int, places_R: Ids, new: Lists) -> tuple[dict[str, NDArray[Any]], int]:
    """The patch of a shard of the base: the rows that it had, but for the nodes that were touched, and theirs."""
    of = graph.side(side).shard(shard)
    base = of.base_lists(places_R)
    heads, skipped, kept = head_and_tail(new, base)
    differs = np.flatnonzero((heads.degrees > 0) | (skipped > 0) | (kept != base.degrees))
    places, parts = [places_R[differs]], [heads.take(differs)]
    tails = [np.stack([skipped, kept], axis=1)[differs]]
    if of.patch is not None:
        before = of.patch.places
        same = np.flatnonzero(~np.isin(before, places_R))
        places.append(before[same])
        parts.append(of.patch.heads.take(same))
        tails.append(np.stack([of.patch.skipped, of.patch.kept], axis=1)[same].astype(np.int64))
    every = np.concatenate(places)
    order = np.argsort(every)
    written, tail = Lists.joined(parts).take(order), np.concatenate(tails)[order]
    words, ranks = _bits(every, len(of.ids))
    patch = Patch(
        words=words,
        ranks=ranks,
        offsets=written.offsets,
        neighbours=written.neighbours,
        saved=written.saved,
        skipped=tail[:, 0].astype(np.int32),
        kept=tail[:, 1].astype(np.int32),
    )
    return {f"patch-{name}": array for name, array in vars(patch).items()}, len(written.neighbours)


def _bits(places: Ids, nodes: int) -> tuple[NDArray[np.uint64], Nodes]:
    """A bit a node, set at `places`, and how many are set before each word."""
    there = np.zeros(64 * -(-nodes // 64), np.bool_)
    there[places] = True
    words = np.packbits(there, bitorder="little").view("<u8")
    return words, offsets_of(np.bitwise_count(words).astype(np.int64))[:-1].astype(np.int32)


def head_and_tail(new: Lists, base: Lists) -> tuple[Lists, Ids, Ids]:
    """New lists as heads and parts of the base's lists of the same nodes: the heads, and of each base list how many edges are
    skipped and how many are kept after these (R,). What is kept is the longest that ends the new list.

        base  5 4 3 2 1    new  9 8 5 3 2 1    head  9 8 5    skipped 2    kept 3
    """
    keys, base_keys = _keys(new.rows, new.neighbours), _keys(base.rows, base.neighbours)
    order = np.argsort(base_keys)
    at = np.full(len(keys), -1, np.int64)
    if len(order):
        near = order[np.minimum(np.searchsorted(base_keys, keys, sorter=order), len(order) - 1)]
        same = (base_keys[near] == keys) & (base.saved[near] == new.saved)
        at[same] = near[same]
    # An edge belongs to the tail if it stands in the base, and so does what follows it, right behind.
    follows = np.append(at[1:] == at[:-1] + 1, True)
    follows[new.offsets[1:][new.degrees > 0] - 1] = True
    breaks = np.where((at >= 0) & follows, -1, np.arange(len(at)))
    has = np.flatnonzero(new.degrees > 0)
    begin = new.offsets[:-1].copy()
    if len(has):
        begin[has] = np.maximum(begin[has], np.maximum.reduceat(breaks, new.offsets[has]) + 1)
    kept = new.offsets[1:] - begin
    skipped = np.zeros(len(kept), np.int64)
    tail = np.flatnonzero(kept > 0)
    skipped[tail] = at[begin[tail]] - base.offsets[tail]
    in_head = np.arange(len(at)) < np.repeat(begin, new.degrees)
    heads = Lists(offsets_of(begin - new.offsets[:-1]), new.neighbours[in_head], new.saved[in_head])
    return heads, skipped, kept
