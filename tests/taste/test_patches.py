"""A graph made night by night from the one before is the graph that is built whole, list for list."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from embedding.taste.graph import (
    BOARDS_SIDE,
    PINS_SIDE,
    Graph,
    GraphError,
    GraphManifest,
    Increment,
    Lists,
    SideStatistics,
    adjacency,
    offsets_of,
    write_arrays,
    write_piece,
)
from embedding.taste.patches import GONE, OTHER, Fresh, Touched, head_and_tail, update_shard
from embedding.taste.walks import related

SIDES = (PINS_SIDE, BOARDS_SIDE)
Edges = dict[tuple[int, int], int]
Said = dict[int, list[tuple[int, int]]]


def said(graph: Graph) -> dict[str, Said]:
    """By side and id a node's (neighbour's id, minute), in the list's order; nodes without any left out."""
    found = {}
    for name in SIDES:
        side, other = graph.side(name), graph.side(OTHER[name])
        nodes = np.arange(len(side))
        lists = side.lists(nodes)
        entries = list(zip(other.ids_of(lists.neighbours).tolist(), lists.saved.tolist(), strict=True))
        spans = zip(side.ids_of(nodes).tolist(), pairwise(lists.offsets.tolist()), strict=True)
        found[name] = {node: entries[first:last] for node, (first, last) in spans if last > first}
    return found


def columns(edges: Edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = np.array(sorted(edges), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1], np.array([edges[pin, board] for pin, board in pairs.tolist()], np.int64)


def write_whole(folder: Path, edges: Edges, shards: int, max_degree: int) -> GraphManifest:
    folder.mkdir()
    pin_E, board_E, saved_E = columns(edges)
    starts, nodes = {}, {}
    ids = {PINS_SIDE: np.unique(pin_E), BOARDS_SIDE: np.unique(board_E)}
    numbers = {PINS_SIDE: np.searchsorted(ids[PINS_SIDE], pin_E), BOARDS_SIDE: np.searchsorted(ids[BOARDS_SIDE], board_E)}
    for side in SIDES:
        of_E, to_E = numbers[side], numbers[OTHER[side]]
        bounds = [len(ids[side]) * number // shards for number in range(shards + 1)]
        starts[side] = bounds[:-1]
        nodes[side] = SideStatistics(len(ids[side]), len(edges), 0, 0, 0, 0)
        for number, (first, last) in enumerate(pairwise(bounds)):
            mine = (of_E >= first) & (of_E < last)
            rows = adjacency(last - first, of_E[mine] - first, to_E[mine], saved_E[mine], max_degree)
            write_piece(folder, side, number, ids[side][first:last], rows)
    return GraphManifest(folder.name, ".", ["2026-11-18"], {}, max_degree, starts, nodes, {}, "run", "2026-11-18T00:00:00")


def write_night(
    folder: Path, base_folder: Path, before: GraphManifest, before_folder: Path, touched: set[tuple[int, int]], now: Edges
) -> tuple[GraphManifest, int, int]:
    """Tonight's graph in a folder, and the edges that were added and removed. Nodes that are short are asked for again."""
    folder.mkdir()
    graph, base = Graph.open(before_folder, before, base_folder), before.as_base
    asked: dict[str, set[int]] = {side: set() for side in SIDES}
    while True:
        wanted = touched | {edge for edge in now if edge[0] in asked[PINS_SIDE] or edge[1] in asked[BOARDS_SIDE]}
        ids = dict(zip(SIDES, np.array(sorted(wanted), np.int64).reshape(-1, 2).T, strict=True))
        saved = np.array([now.get(edge, GONE) for edge in sorted(wanted)], np.int64)
        new = {side: np.unique(ids[side][saved != GONE]) for side in SIDES}
        fresh = Fresh({side: new[side][graph.side(side).numbers_of(new[side]) < 0] for side in SIDES})
        numbers = {side: fresh.numbers_of(graph, side, ids[side]) for side in SIDES}
        known = (numbers[PINS_SIDE] >= 0) & (numbers[BOARDS_SIDE] >= 0)
        starts, numbered, added, removed = {}, {}, 0, 0
        short: dict[str, set[int]] = {}
        for side in SIDES:
            total = fresh.total(graph, side)
            width = -(-base.nodes[side] // len(base.starts[side]))
            starts[side] = [*base.starts[side], *range(base.nodes[side], total, width)]
            numbered[side], short[side] = total - base.nodes[side], set()
            all_asked = fresh.numbers_of(graph, side, np.array(sorted(asked[side]), np.int64))
            for shard, span in enumerate(pairwise([*starts[side], total])):
                mine = known & (numbers[side] >= span[0]) & (numbers[side] < span[1])
                edges = Touched(numbers[side][mine], numbers[OTHER[side]][mine], saved[mine], all_asked)
                done = update_shard(graph, side, shard, span, fresh, edges, before.max_degree)
                write_arrays(folder, side, shard, done.arrays)
                short[side] |= set(fresh.ids_of(graph, side, done.short).tolist())
                added, removed = added + done.added, removed + done.removed
        if not any(short.values()):
            break
        asked = {side: asked[side] | short[side] for side in SIDES}
    none = dict.fromkeys(SIDES, 0)
    increment = Increment(before.graph_id, added, removed, none, none, numbered, none)
    manifest = GraphManifest(
        folder.name, ".", ["2026-11-19"], {}, before.max_degree, starts, {}, {}, "run", "t", {}, base, increment
    )
    return GraphManifest.from_json(manifest.to_json()), added, removed


def change(edges: Edges, rng: np.random.Generator, night: int) -> Edges:
    """A night's changes: saves, more to popular boards; repins at another time, later or earlier; removals; pins and boards
    that are deleted, and some that come back; ids that nobody had, between the others and behind them."""
    now = dict(edges)
    for place in rng.choice(len(now), 40, replace=False):
        edge = sorted(edges)[place]
        if rng.random() < 0.5:
            now.pop(edge)
        else:
            now[edge] += int(rng.integers(-300, 300))
    gone_pin, gone_board = (sorted(edges)[int(rng.integers(len(edges)))][side] for side in (0, 1))
    now = {edge: saved for edge, saved in now.items() if edge[0] != gone_pin and edge[1] != gone_board}
    for _ in range(60):
        pin, board = int(rng.integers(0, 80)) * 7, int(80 * rng.random() ** 3) * 5
        if rng.random() < 0.2:
            pin += 1 + night % 3
        if rng.random() < 0.1:
            board = 1_000 + int(rng.integers(0, 20)) if rng.random() < 0.5 else board + 2
        now[pin, board] = 1_000 + 50 * night + int(rng.integers(-200, 30))
    return now


@pytest.mark.parametrize(("shards", "max_degree"), [(1, 10_000), (3, 10_000), (3, 6)])
def test_nights_of_changes_end_in_the_lists_of_a_graph_that_is_built_whole(
    tmp_path: Path, shards: int, max_degree: int
) -> None:
    rng = np.random.default_rng(shards + max_degree)
    edges: Edges = {
        (int(rng.integers(0, 60)) * 7, int(60 * rng.random() ** 2) * 5): int(rng.integers(900, 1_000)) for _ in range(500)
    }
    base_folder = before_folder = tmp_path / "base"
    before = write_whole(base_folder, edges, shards, max_degree)
    for night in range(8):
        now = change(edges, rng, night)
        differing = {edge for edge in edges.keys() | now.keys() if edges.get(edge) != now.get(edge)}
        untouched = sorted(edges.keys() & now.keys())[::9]  # asked about, and found as it was
        folder = tmp_path / f"night-{night}"
        made, added, removed = write_night(folder, base_folder, before, before_folder, differing | set(untouched), now)
        graph, whole = Graph.open(folder, made, base_folder), Graph.of_edges(*columns(now), max_degree)
        assert said(graph) == said(whole)
        if max_degree > len(now):
            assert (added, removed) == (len(now.keys() - edges.keys()), len(edges.keys() - now.keys()))
        edges, before, before_folder = now, made, folder
        walks_are_the_same(graph, whole)
    assert len(before.starts[PINS_SIDE]) > shards, "pins that came later have a shard of their own"


def walks_are_the_same(graph: Graph, whole: Graph) -> None:
    """Numbers differ, what is drawn does not."""
    ids = whole.pins.ids_of(np.arange(len(whole.pins)))
    nodes, others = graph.pins.nodes_of(ids), whole.pins.nodes_of(ids)
    assert (graph.pins.degrees(nodes) == whole.pins.degrees(others)).all()
    for uniform in np.linspace(0, 0.999, 7, dtype=np.float32):
        drawn = [
            one.boards.ids_of(one.pins.pick(at, np.full(len(ids), uniform))) for one, at in ((graph, nodes), (whole, others))
        ]
        assert (drawn[0] == drawn[1]).all()
    scores = [related(one, at[:20], k=5)[1] for one, at in ((graph, nodes), (whole, others))]
    assert (scores[0] == scores[1]).all()


def test_a_node_that_is_gone_is_none_and_gets_its_number_back(tmp_path: Path) -> None:
    first = {(1, 10): 5, (2, 10): 6, (2, 20): 7}
    before = write_whole(tmp_path / "base", first, 1, 100)
    without = {(2, 10): 6, (2, 20): 7}
    made, _, removed = write_night(tmp_path / "gone", tmp_path / "base", before, tmp_path / "base", {(1, 10)}, without)
    gone = Graph.open(tmp_path / "gone", made, tmp_path / "base")
    assert removed == 1 and gone.pins.nodes_of(np.array([1, 2])).tolist() == [-1, 1] and len(gone.pins) == 2
    assert gone.pins.pick(np.array([0, 1], np.int32), np.zeros(2, np.float32)).tolist() == [-1, 1]
    back, added, _ = write_night(tmp_path / "back", tmp_path / "base", made, tmp_path / "gone", {(1, 10)}, first)
    graph = Graph.open(tmp_path / "back", back, tmp_path / "base")
    assert added == 1 and graph.pins.nodes_of(np.array([1])).tolist() == [0]
    assert not len(np.flatnonzero(np.load(tmp_path / "back" / "pins-00000-patch-words.npy"))), "its list is the base's again"


def test_what_is_saved_tonight_is_a_head_before_a_list_that_stays() -> None:
    def lists(*rows: list[int]) -> Lists:
        flat = np.array([to for row in rows for to in row], np.int32)
        return Lists(offsets_of(np.array([len(row) for row in rows])), flat, 10 * flat)

    base = lists([5, 4, 3, 2, 1], [9, 8], [], [7], [6, 2])
    new = lists([9, 8, 5, 3, 2, 1], [9, 8], [4], [], [8, 6])
    heads, skipped, kept = head_and_tail(new, base)
    assert [heads.neighbours[a:b].tolist() for a, b in pairwise(heads.offsets)] == [[9, 8, 5], [], [4], [], [8]]
    assert skipped.tolist() == [2, 0, 0, 0, 0] and kept.tolist() == [3, 2, 0, 0, 1]


def test_a_graph_of_the_first_format_is_walked_and_not_added_to(tmp_path: Path) -> None:
    edges = {(pin, 100 + pin % 4): pin for pin in range(40)}
    manifest = replace(write_whole(tmp_path / "old", edges, 2, 100), format=1)
    for path in (tmp_path / "old").glob("pins-*-saved.npy"):
        path.unlink()
    graph = Graph.open(tmp_path / "old", GraphManifest.from_json(manifest.to_json()))
    assert (related(graph, graph.pins.nodes_of(np.arange(8)), k=3)[0] >= 0).all()
    with pytest.raises(GraphError, match="is to be built anew"):
        graph.pins.lists(np.arange(2))
