"""The pin-board graph as memory-mapped adjacency lists, and the pieces of it that executors write.

An edge is a pin on a board; who put it there does not matter to a walk. Both directions are stored, each as compressed sparse
rows in shards: a shard has the nodes of a range of ids, and of each node its neighbours, newest edge first. Nodes are numbered
in the order of their ids, pins and boards apart; a neighbour is the number of a node of the other side.

    pins-00000-ids.npy          int64 (N,), ascending     the nodes of the shard
    pins-00000-offsets.npy      int64 (N + 1,)            where each node's neighbours begin
    pins-00000-neighbours.npy   int32 (E,)                numbers of boards, newest edge first
    boards-00000-saved.npy      int32 (E,)                boards only: when each pin was saved, minutes since 1970 (UTC)

A node keeps at most `max_degree` edges, its newest: that bounds what a piece takes, and a board of everything says little of
anything (Pixie prunes for the same reason: arXiv 1711.07601, section 3.2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Nodes = NDArray[np.int32]
"""Numbers of pins or of boards; -1 for none."""

PINS_SIDE, BOARDS_SIDE = "pins", "boards"
MANIFEST = "manifest.json"
MAX_DEGREE = 10_000
EDGES_A_SHARD = 16_000_000
"""Edges of a shard: a task that writes one holds them several times, as Arrow's columns and sorted, some 2.5 GB."""
MOST_NODES = 2**31 - 1
FORMAT = 1


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
class GraphManifest:
    """What a graph was made of, and what there is. Its file is written last: without it there is no graph.

    folder: Beside the manifest, of the attempt that succeeded. starts: A side's first node of each shard.
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
    format: int = FORMAT

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
            if values.get("format") != FORMAT:
                raise GraphError(f"a graph of format {values.get('format')}, this reads {FORMAT}")
            values["sides"] = {name: SideStatistics(**side) for name, side in values["sides"].items()}
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
    arrays: dict[str, NDArray[Any]] = {"ids": ids, "offsets": rows.offsets, "neighbours": rows.neighbours}
    if side == BOARDS_SIDE:
        arrays["saved"] = rows.saved
    paths = []
    for kind, array in arrays.items():
        paths.append(folder / f"{side}-{shard:05d}-{kind}.npy")
        np.save(paths[-1], array)
    return paths


def degree_statistics(counts: Sequence[Sequence[int]], edges_before: int) -> SideStatistics:
    """From how many nodes of each shard have a degree of 0, 1, 2 ... after pruning, and how many edges there were before."""
    of_degree = np.zeros(max((len(shard) for shard in counts), default=0), np.int64)
    for shard in counts:
        of_degree[: len(shard)] += np.asarray(shard, np.int64)
    nodes, up_to = int(of_degree.sum()), np.cumsum(of_degree)
    p50, p99 = (int(np.searchsorted(up_to, share * nodes)) for share in (0.5, 0.99))
    edges = int((of_degree * np.arange(len(of_degree))).sum())
    return SideStatistics(nodes, edges, edges_before - edges, p50, p99, max(0, len(of_degree) - 1))


# -- the graph -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    ids: Ids
    offsets: Ids
    neighbours: Nodes
    saved: Nodes | None


class Side:
    """The pins or the boards of a graph, and the neighbours of each. Thread-safe: nothing changes."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard.ids) for shard in self._shards)])
        self._first_ids = np.array([shard.ids[0] if len(shard.ids) else 0 for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def nodes_of(self, ids: Ids) -> Nodes:
        """The numbers of nodes by id; -1 for an id that is none."""
        ids = np.asarray(ids, np.int64)
        found = np.full(len(ids), -1, np.int32)
        if len(self):
            which = np.maximum(np.searchsorted(self._first_ids, ids, side="right") - 1, 0)
            for number in np.unique(which):
                mine, shard = np.flatnonzero(which == number), self._shards[number]
                places = np.minimum(np.searchsorted(shard.ids, ids[mine]), len(shard.ids) - 1)
                there = shard.ids[places] == ids[mine]
                found[mine[there]] = self._starts[number] + places[there]
        return found

    def ids_of(self, nodes: Nodes) -> Ids:
        """The ids of nodes by number; -1 for a node of -1."""
        ids = np.full(len(nodes), -1, np.int64)
        for shard, mine, places in self._by_shard(nodes):
            ids[mine] = shard.ids[places]
        return ids

    def degrees(self, nodes: Nodes) -> Ids:
        """How many neighbours each has; 0 for a node of -1."""
        degrees = np.zeros(len(nodes), np.int64)
        for shard, mine, places in self._by_shard(nodes):
            degrees[mine] = shard.offsets[places + 1] - shard.offsets[places]
        return degrees

    def pick(self, nodes: Nodes, uniform: NDArray[np.float32]) -> Nodes:
        """A neighbour of each, the one at the share `uniform` in [0, 1) of its list; -1 for a node without any, and for -1."""
        found = np.full(len(nodes), -1, np.int32)
        for shard, mine, places in self._by_shard(nodes):
            first = shard.offsets[places]
            degree = shard.offsets[places + 1] - first
            has = degree > 0
            # float32 below 1 times a degree may round up to it
            place = np.minimum((uniform[mine[has]] * degree[has]).astype(np.int64), degree[has] - 1)
            found[mine[has]] = shard.neighbours[first[has] + place]
        return found

    def neighbours(self, node: int) -> Nodes:
        """All neighbours of one node, newest edge first."""
        number = int(np.searchsorted(self._starts, node, side="right")) - 1
        shard, place = self._shards[number], node - int(self._starts[number])
        return np.asarray(shard.neighbours[shard.offsets[place] : shard.offsets[place + 1]])

    def _by_shard(self, nodes: Nodes) -> list[tuple[_Shard, NDArray[np.intp], NDArray[np.int64]]]:
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

    @classmethod
    def of_edges(cls, pin_ids: Ids, board_ids: Ids, saved: Ids, max_degree: int = MAX_DEGREE) -> Graph:
        """A small graph in memory, from edges (E,) and the minutes of their saves."""
        pins, pin_E = np.unique(pin_ids, return_inverse=True)
        boards, board_E = np.unique(board_ids, return_inverse=True)
        of_pins = adjacency(len(pins), pin_E, board_E, saved, max_degree)
        of_boards = adjacency(len(boards), board_E, pin_E, saved, max_degree)
        return cls(
            Side([_Shard(pins, of_pins.offsets, of_pins.neighbours, None)]),
            Side([_Shard(boards, of_boards.offsets, of_boards.neighbours, of_boards.saved)]),
        )

    @classmethod
    def open(cls, folder: Path, manifest: GraphManifest) -> Graph:
        """A built graph from a local folder; nothing is read until it is walked. Raises GraphError where a file is missing."""
        return cls(*(_open_side(folder, side, len(manifest.starts[side])) for side in (PINS_SIDE, BOARDS_SIDE)))


def _open_side(folder: Path, side: str, shards: int) -> Side:
    def array(number: int, kind: str) -> NDArray[Any]:
        path = folder / f"{side}-{number:05d}-{kind}.npy"
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise GraphError(f"{path.name} of the graph cannot be opened: {error}") from None
        # Indexing a plain array costs less than a memmap; the pages are mapped all the same.
        return np.asarray(found)

    def shard(number: int) -> _Shard:
        saved = array(number, "saved") if side == BOARDS_SIDE else None
        return _Shard(array(number, "ids"), array(number, "offsets"), array(number, "neighbours"), saved)

    return Side([shard(number) for number in range(shards)])
