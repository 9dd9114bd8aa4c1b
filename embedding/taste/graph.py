"""The pin-board graph as memory-mapped adjacency lists, and the pieces of it that executors write.

An edge is a pin on a board; who put it there does not matter to a walk. Both directions are stored, each as compressed sparse
rows in shards: a shard has the nodes of a range of ids, and of each node its neighbours, newest edge first. Nodes are numbered
in the order of their ids, pins and boards apart; a neighbour is the number of a node of the other side.

    pins-00000-ids.npy          int64 (N,), ascending     the nodes of the shard
    pins-00000-offsets.npy      int64 (N + 1,)            where each node's neighbours begin
    pins-00000-neighbours.npy   int32 (E,)                numbers of boards, newest edge first; of one minute by id
    pins-00000-saved.npy        int32 (E,)                when each was saved, minutes since 1970 (UTC); a walk reads none of it

A node keeps at most `max_degree` edges, its newest: that bounds what a piece takes, and a board of everything says little of
anything (Pixie prunes for the same reason: arXiv 1711.07601, section 3.2).

A graph is whole, or it stands on a whole one, its base, and has beside it what changed since (embedding/taste/patches.py makes
it). A list that changed is a new head, and that part of the base's list which follows it: what is saved tonight stands
first, so a head is as long as what was saved, however long the list is. The nodes of the base keep their numbers; those that
came since follow, in shards of their own, in the order of the nights. A node that is gone keeps its number, with an empty list.

    pins-00000-patch-words.npy       uint64 (N / 64,)   a bit a node of the base's shard: whether its list changed
    pins-00000-patch-ranks.npy       int32 (N / 64,)    how many bits are set before each word; so many rows are before
    pins-00000-patch-offsets.npy     int64 (R + 1,)     where each head begins
    pins-00000-patch-neighbours.npy  int32 (H,)         and -patch-saved.npy: the heads
    pins-00000-patch-skipped.npy     int32 (R,)         the base's list goes on after so many of its edges,
    pins-00000-patch-kept.npy        int32 (R,)         for so many
    pins-00007-order.npy             int32 (N,)         of a shard of later nodes: their places in the order of their ids
    pins-00000-changed.npy           int64 (E, 2)       ids of a pin and a board (of boards: a board and a pin): since the
                                                        night before the lists here have this edge, or have it no more
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Nodes = NDArray[np.int32]
"""Numbers of pins or of boards; -1 for none."""
Numbers = NDArray[np.signedinteger[Any]]
"""The same, of any width."""

PINS_SIDE, BOARDS_SIDE = "pins", "boards"
CHANGED = "changed"
"""Kind of the files that name the edges which a side's lists have, and had not in the graph before, or the other way round."""
MANIFEST = "manifest.json"
MAX_DEGREE = 10_000
EDGES_A_SHARD = 16_000_000
"""Edges of a shard: a task that writes one holds them several times, as Arrow's columns and sorted, some 2.5 GB."""
MOST_NODES = 2**31 - 1
FORMAT = 2
_READ_FORMATS = (1, FORMAT)
"""Format 1: whole graphs alone, and no `saved` of the pins' side."""


class GraphError(Exception):
    """A graph that cannot be built, or is not whole."""


class UnknownUserError(Exception):
    """Nothing is known of a user, or nothing any more."""


@dataclass(frozen=True)
class SideStatistics:
    """Of the pins or of the boards: how many there are, their edges after pruning, and how these are spread."""

    nodes: int
    edges: int
    pruned: int
    degree_p50: int
    degree_p99: int
    degree_max: int


@dataclass(frozen=True)
class Base:
    """The whole graph that another one stands on. nodes, edges: A side's."""

    graph_id: str
    folder: str
    starts: dict[str, list[int]]
    nodes: dict[str, int]
    edges: dict[str, int]
    files: dict[str, dict[str, Any]]
    built_at: str


@dataclass(frozen=True)
class Increment:
    """What a graph has that the one it was made from, `since`, had not.

    added, removed: Edges; one that neither of its ends had kept is not missed when it goes.
    lists: A side's nodes that got another list. new_nodes: A side's. And since the base, of a side: numbered, the nodes that
    have got numbers, and patched, the edges that do not stand in the base.
    """

    since: str
    added: int
    removed: int
    lists: dict[str, int]
    new_nodes: dict[str, int]
    numbered: dict[str, int]
    patched: dict[str, int]


@dataclass(frozen=True)
class GraphManifest:
    """What a graph was made of, and what there is. Its file is written last: without it there is no graph.

    folder: Beside the manifest, of the attempt that succeeded. starts: A side's first node of each shard. degrees: A side's
    [degree, nodes that have it], in order. base, increment: Of a graph that stands on another; why_whole: of one that does not.
    """

    graph_id: str
    folder: str
    days: list[str]
    versions: dict[str, int]
    max_degree: int
    starts: dict[str, list[int]]
    sides: dict[str, SideStatistics]
    files: dict[str, dict[str, Any]]
    built_by: str
    built_at: str
    degrees: dict[str, list[list[int]]] = field(default_factory=dict)
    base: Base | None = None
    increment: Increment | None = None
    why_whole: str = ""
    format: int = FORMAT

    @property
    def as_base(self) -> Base:
        """What a graph made from this one stands on."""
        nodes, edges = ({name: getattr(side, kind) for name, side in self.sides.items()} for kind in ("nodes", "edges"))
        return self.base or Base(self.graph_id, self.folder, self.starts, nodes, edges, self.files, self.built_at)

    def numbers(self, side: str) -> int:
        """How many numbers have been given to a side's nodes; some of them may be gone."""
        return self.as_base.nodes[side] + (self.increment.numbered[side] if self.increment else 0)

    def is_newer(self, other: GraphManifest) -> bool:
        """Whether it has a later day, or a later version of a table, than the other."""
        later = any(version > other.versions.get(name, -1) for name, version in self.versions.items())
        return self.days[-1] > other.days[-1] or later

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> GraphManifest:
        """Raises GraphError where it is none of this format."""
        try:
            values = json.loads(data)
            if values.get("format") not in _READ_FORMATS:
                raise GraphError(f"a graph of format {values.get('format')}, this reads up to {FORMAT}")
            values["sides"] = {name: SideStatistics(**side) for name, side in values["sides"].items()}
            for name, kind in (("base", Base), ("increment", Increment)):
                values[name] = kind(**values[name]) if values.get(name) else None
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise GraphError(f"no manifest of a graph: {error}") from None


# -- pieces ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The lists of consecutive nodes: `offsets` (N + 1,), `neighbours` and `saved` (E,), newest first; how many fell away."""

    offsets: Ids
    neighbours: Nodes
    saved: Nodes
    pruned: int


def adjacency(nodes: int, of_E: Ids, neighbours_E: Ids, saved_E: Ids, max_degree: int = MAX_DEGREE) -> Rows:
    """The lists of `nodes` nodes from edges in any order: `of_E` the node, `saved_E` minutes. An edge given twice counts once,
    at its latest time. Ties in time go by the neighbour's number, so that the order of the edges changes nothing."""
    order = np.lexsort((neighbours_E, -saved_E, of_E))
    of, to, saved = of_E[order], neighbours_E[order], saved_E[order]
    pairs = of * (int(to.max(initial=0)) + 1) + to
    first = np.zeros(len(pairs), bool)
    first[np.unique(pairs, return_index=True)[1]] = True  # of equal ones the first in order: the newest
    of, to, saved = of[first], to[first], saved[first]
    counts = np.bincount(of, minlength=nodes)
    rank = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < max_degree
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, max_degree))]).astype(np.int64)
    return Rows(offsets, to[kept].astype(np.int32), saved[kept].astype(np.int32), int((~kept).sum()))


def write_piece(folder: Path, side: str, shard: int, ids: Ids, rows: Rows) -> list[Path]:
    """A shard's files."""
    arrays: dict[str, NDArray[Any]] = {"ids": ids, "offsets": rows.offsets, "neighbours": rows.neighbours, "saved": rows.saved}
    return write_arrays(folder, side, shard, arrays)


def write_arrays(folder: Path, side: str, shard: int, arrays: Mapping[str, NDArray[Any]]) -> list[Path]:
    """A file an array, by its kind."""
    paths = []
    for kind, array in arrays.items():
        paths.append(folder / file_name(side, shard, kind))
        np.save(paths[-1], array)
    return paths


def file_name(side: str, shard: int, kind: str) -> str:
    return f"{side}-{shard:05d}-{kind}.npy"


def degree_pairs(of_degree: Ids) -> list[list[int]]:
    """How many nodes have a degree of 0, 1, 2 ... as [degree, nodes], without degrees that none has."""
    return [[int(degree), int(of_degree[degree])] for degree in np.flatnonzero(of_degree)]


def degree_counts(pairs: Sequence[Sequence[int]]) -> Ids:
    """The reverse of `degree_pairs`."""
    found = np.zeros(max((degree for degree, _ in pairs), default=-1) + 1, np.int64)
    for degree, nodes in pairs:
        found[degree] = nodes
    return found


def summed_degrees(counts: Sequence[Sequence[int] | Ids]) -> Ids:
    """How many nodes have a degree of 0, 1, 2 ..., from how many of each shard have."""
    of_degree = np.zeros(max((len(shard) for shard in counts), default=0), np.int64)
    for shard in counts:
        of_degree[: len(shard)] += np.asarray(shard, np.int64)
    return of_degree


def degree_statistics(of_degree: Ids, edges_before: int) -> SideStatistics:
    """From how many nodes have a degree of 0, 1, 2 ... after pruning, and how many edges there were before."""
    nodes, up_to = int(of_degree.sum()), np.cumsum(of_degree)
    p50, p99 = (int(np.searchsorted(up_to, share * nodes)) for share in (0.5, 0.99))
    edges = int((of_degree * np.arange(len(of_degree))).sum())
    greatest = int(np.flatnonzero(of_degree).max(initial=0))
    return SideStatistics(nodes, edges, edges_before - edges, p50, p99, greatest)


# -- the graph -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lists:
    """Whole lists of some nodes, one after the other: `offsets` (N + 1,), `neighbours` and `saved` (E,)."""

    offsets: Ids
    neighbours: Nodes
    saved: Nodes

    @property
    def degrees(self) -> Ids:
        return np.diff(self.offsets)

    @property
    def rows(self) -> Ids:
        """Of each edge the place of its node (E,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.degrees)

    def take(self, rows: Ids) -> Lists:
        """The lists at some places, in their order."""
        counts = self.degrees[rows]
        places = ranges(self.offsets[rows], counts)
        return Lists(offsets_of(counts), self.neighbours[places], self.saved[places])

    @classmethod
    def joined(cls, parts: Sequence[Lists]) -> Lists:
        counts = np.concatenate([np.empty(0, np.int64), *(part.degrees for part in parts)])
        neighbours, saved = (
            np.concatenate([np.empty(0, np.int32), *(getattr(part, name) for part in parts)])
            for name in ("neighbours", "saved")
        )
        return cls(offsets_of(counts), neighbours, saved)

    @classmethod
    def empty(cls, nodes: int) -> Lists:
        """So many lists without an edge."""
        return cls(np.zeros(nodes + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))


def offsets_of(counts: Ids) -> Ids:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(first: Ids, counts: Ids) -> Ids:
    """first[0], first[0] + 1, ... counts[0] of them, then those from first[1]."""
    offsets = offsets_of(counts)
    return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], counts)


@dataclass(frozen=True)
class Patch:
    """The new lists of some nodes of a shard; the arrays are those of the files."""

    words: NDArray[np.uint64]
    ranks: Nodes
    offsets: Ids
    neighbours: Nodes
    saved: Nodes
    skipped: Nodes
    kept: Nodes

    def changed(self, places: Ids) -> tuple[NDArray[np.intp], Ids]:
        """Of nodes by their places in the shard, where in `places` those are whose list changed, and their rows."""
        word, shift = places >> 6, (places & 63).view(np.uint64)
        bits = self.words.take(word)
        there = np.flatnonzero((bits >> shift) & _ONE)
        below = np.bitwise_count(bits.take(there) & ((_ONE << shift.take(there)) - _ONE))
        return there, self.ranks.take(word.take(there)).astype(np.int64) + below

    @property
    def places(self) -> Ids:
        """The places of the nodes whose list changed, ascending."""
        return np.flatnonzero(np.unpackbits(self.words.view(np.uint8), bitorder="little"))

    @property
    def heads(self) -> Lists:
        return Lists(self.offsets, self.neighbours, self.saved)


_ONE = np.uint64(1)


def _drawn(uniform: NDArray[np.float32], degree: Ids) -> Ids:
    """The place at a share of each list; of an empty one -1."""
    # float32 below 1 times a degree may round up to it
    return np.minimum((uniform * degree).astype(np.int64), degree - 1)


@dataclass(frozen=True)
class _Shard:
    """`order` is there in a shard of nodes that came after the base: their places by id."""

    ids: Ids
    offsets: Ids
    neighbours: Nodes
    saved: Nodes | None
    patch: Patch | None = None
    order: Nodes | None = None

    def segments(self, places: Ids) -> tuple[Ids, Ids, Ids, Ids]:
        """Of each list where its head begins and how long it is, and where what follows begins in the base, and how much."""
        tail_begin = self.offsets.take(places)
        tail = self.offsets.take(places + 1) - tail_begin
        head_begin, head = np.zeros(len(places), np.int64), np.zeros(len(places), np.int64)
        if self.patch is not None:
            changed, rows = self.patch.changed(places)
            first = self.patch.offsets.take(rows)
            head_begin[changed], head[changed] = first, self.patch.offsets.take(rows + 1) - first
            tail_begin[changed] += self.patch.skipped.take(rows)
            tail[changed] = self.patch.kept.take(rows)
        return head_begin, head, tail_begin, tail

    def pick(self, places: Ids, uniform: NDArray[np.float32]) -> Nodes:
        """As `Side.pick`, of this shard's nodes."""
        at = self.offsets.take(places)
        degree = self.offsets.take(places + 1) - at
        if self.patch is None:
            found = np.full(len(places), -1, np.int32)
            has = np.flatnonzero(degree)
            found[has] = self.neighbours[(at + _drawn(uniform, degree))[has]]
            return found
        changed, rows = self.patch.changed(places)
        begin = self.patch.offsets.take(rows)
        head = self.patch.offsets.take(rows + 1) - begin
        degree[changed] = head + self.patch.kept.take(rows)
        place = _drawn(uniform, degree)
        at += place
        at[changed] += self.patch.skipped.take(rows) - head
        found = self.neighbours.take(at, mode="clip")  # what is beyond is of a head, or of an empty list
        drawn = place.take(changed)
        within = np.flatnonzero((drawn < head) & (drawn >= 0))
        found[changed.take(within)] = self.patch.neighbours.take((begin + drawn).take(within))
        found[degree == 0] = -1
        return found

    def base_lists(self, places: Ids) -> Lists:
        """Lists of nodes by their places, as they are without the patch."""
        return replace(self, patch=None).lists(places)

    def lists(self, places: Ids) -> Lists:
        """Whole lists of nodes by their places."""
        assert self.saved is not None, "of format 1"
        head_begin, head, tail_begin, tail = self.segments(places)
        offsets = offsets_of(head + tail)
        neighbours, saved = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int32)
        if self.patch is not None:
            to, of = ranges(offsets[:-1], head), ranges(head_begin, head)
            neighbours[to], saved[to] = self.patch.neighbours[of], self.patch.saved[of]
        to, of = ranges(offsets[:-1] + head, tail), ranges(tail_begin, tail)
        neighbours[to], saved[to] = self.neighbours[of], self.saved[of]
        return Lists(offsets, neighbours, saved)


class Side:
    """The pins or the boards of a graph, and the neighbours of each. Thread-safe: nothing changes."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard.ids) for shard in self._shards)])
        self._ranged = [number for number, shard in enumerate(self._shards) if shard.order is None]
        """The shards of ranges of ids; the later ones have any ids."""
        firsts = (self._shards[number].ids for number in self._ranged)
        self._first_ids = np.array([ids[0] if len(ids) else 0 for ids in firsts])
        self._may_be_gone = any(shard.patch is not None or shard.order is not None for shard in self._shards)

    def __len__(self) -> int:
        """How many numbers there are: of nodes, and of those that are gone since the base."""
        return int(self._starts[-1])

    @property
    def ranged_nodes(self) -> int:
        """How many of the numbers are of the base's nodes."""
        return int(self._starts[len(self._ranged)])

    def nodes_of(self, ids: Ids) -> Nodes:
        """The numbers of nodes by id; -1 for an id that is none, or none any more."""
        found = self.numbers_of(ids)
        if self._may_be_gone:
            found[self.degrees(found) == 0] = -1
        return found

    def numbers_of(self, ids: Ids) -> Nodes:
        """As `nodes_of`, with the numbers that nodes keep which are gone."""
        ids = np.asarray(ids, np.int64)
        found = np.full(len(ids), -1, np.int32)
        if len(self):
            which = np.maximum(np.searchsorted(self._first_ids, ids, side="right") - 1, 0)
            for number in np.unique(which):
                mine, shard = np.flatnonzero(which == number), self._shards[number]
                places = np.minimum(np.searchsorted(shard.ids, ids[mine]), len(shard.ids) - 1)
                there = shard.ids[places] == ids[mine]
                found[mine[there]] = self._starts[number] + places[there]
        for number in range(len(self._ranged), len(self._shards)):
            mine, shard = np.flatnonzero(found < 0), self._shards[number]
            if len(mine) and len(shard.ids):
                at = np.minimum(np.searchsorted(shard.ids, ids[mine], sorter=shard.order), len(shard.ids) - 1)
                places = np.asarray(shard.order)[at]
                there = shard.ids[places] == ids[mine]
                found[mine[there]] = self._starts[number] + places[there]
        return found

    def ids_of(self, nodes: Numbers) -> Ids:
        """The ids of nodes by number; -1 for a node of -1."""
        ids = np.full(len(nodes), -1, np.int64)
        for shard, mine, places in self._by_shard(nodes):
            ids[mine] = shard.ids[places]
        return ids

    def degrees(self, nodes: Numbers) -> Ids:
        """How many neighbours each has; 0 for a node of -1."""
        degrees = np.zeros(len(nodes), np.int64)
        for shard, mine, places in self._by_shard(nodes):
            _, head, _, tail = shard.segments(places)
            degrees[mine] = head + tail
        return degrees

    def pick(self, nodes: Numbers, uniform: NDArray[np.float32]) -> Nodes:
        """A neighbour of each, the one at the share `uniform` in [0, 1) of its list; -1 for a node without any, and for -1."""
        found = np.full(len(nodes), -1, np.int32)
        for shard, mine, places in self._by_shard(nodes):
            found[mine] = shard.pick(places, uniform[mine])
        return found

    def neighbours(self, node: int) -> Nodes:
        """All neighbours of one node, newest edge first."""
        return self.lists(np.array([node])).neighbours

    def lists(self, nodes: Numbers) -> Lists:
        """The whole lists of nodes, whose numbers ascend. Raises GraphError for a graph of format 1, which has no times."""
        if any(shard.saved is None for shard in self._shards):
            raise GraphError("a graph of format 1 has no times of its pins: it is to be built anew")
        return Lists.joined([shard.lists(places) for shard, _, places in self._by_shard(nodes)])

    def shard(self, number: int) -> _Shard:
        return self._shards[number]

    def _by_shard(self, nodes: Numbers) -> list[tuple[_Shard, NDArray[np.intp], NDArray[np.int64]]]:
        """Shards that have any of the nodes, with the places of these in `nodes`, and within the shard."""
        wide = np.asarray(nodes, np.int64)
        there = np.flatnonzero(wide >= 0)
        if len(self._shards) == 1:
            return [(self._shards[0], there, wide[there])]
        which = np.searchsorted(self._starts, wide[there], side="right") - 1
        found = []
        for number in np.unique(which):
            mine = there[which == number]
            found.append((self._shards[number], mine, wide[mine] - self._starts[number]))
        return found


@dataclass(frozen=True)
class Graph:
    """Pins and boards. `pins` has the boards of each pin, `boards` the pins of each board."""

    pins: Side
    boards: Side

    def side(self, name: str) -> Side:
        return self.pins if name == PINS_SIDE else self.boards

    @classmethod
    def of_edges(cls, pin_ids: Ids, board_ids: Ids, saved: Ids, max_degree: int = MAX_DEGREE) -> Graph:
        """A small graph in memory, from edges (E,) and the minutes of their saves."""
        pins, pin_E = np.unique(pin_ids, return_inverse=True)
        boards, board_E = np.unique(board_ids, return_inverse=True)
        of_pins = adjacency(len(pins), pin_E, board_E, saved, max_degree)
        of_boards = adjacency(len(boards), board_E, pin_E, saved, max_degree)
        return cls(
            Side([_Shard(pins, of_pins.offsets, of_pins.neighbours, of_pins.saved)]),
            Side([_Shard(boards, of_boards.offsets, of_boards.neighbours, of_boards.saved)]),
        )

    @classmethod
    def open(cls, folder: Path, manifest: GraphManifest, base_folder: Path | None = None) -> Graph:
        """A built graph from a local folder, and its base's if it stands on one; nothing is read until it is walked.

        Raises GraphError where a file is missing.
        """
        pins, boards = (_open_side(folder, base_folder, side, manifest) for side in (PINS_SIDE, BOARDS_SIDE))
        return cls(pins, boards)


def _open_side(folder: Path, base_folder: Path | None, side: str, manifest: GraphManifest) -> Side:
    def array(where: Path, number: int, kind: str) -> NDArray[Any]:
        path = where / file_name(side, number, kind)
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise GraphError(f"{path.name} of the graph cannot be opened: {error}") from None
        # Indexing a plain array costs less than a memmap; the pages are mapped all the same.
        return np.asarray(found)

    def shard(number: int) -> _Shard:
        ranged, where, patch = number < len(manifest.as_base.starts[side]), folder, None
        if manifest.base and ranged:
            where = base_folder or folder
            patch = Patch(**{of.name: array(folder, number, f"patch-{of.name}") for of in fields(Patch)})
        saved = array(where, number, "saved") if side == BOARDS_SIDE or manifest.format > 1 else None
        order = None if ranged else array(where, number, "order")
        ids, offsets, neighbours = (array(where, number, kind) for kind in ("ids", "offsets", "neighbours"))
        return _Shard(ids, offsets, neighbours, saved, patch, order)

    return Side([shard(number) for number in range(len(manifest.starts[side]))])
