"""The pin-board graph and the walks over it."""

from __future__ import annotations

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
    adjacency,
    degree_statistics,
    summed_degrees,
    write_piece,
)
from embedding.taste.walks import WalkSetting, related, walk

TOPICS, PINS_A_TOPIC, BOARDS_A_TOPIC = 20, 60, 30


def topical_edges(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pins, boards, minutes): boards of one topic each, one pin in ten of another. A pin's topic is id // 1000."""
    rng = np.random.default_rng(seed)
    pins, boards = [], []
    for topic in range(TOPICS):
        for board in range(BOARDS_A_TOPIC):
            own = rng.choice(PINS_A_TOPIC, 12, replace=False)
            topics = np.where(rng.random(12) < 0.1, rng.integers(0, TOPICS, 12), topic)
            pins.append(topics * 1_000 + 7 * own)
            boards.append(np.full(12, 50_000 + 3 * (topic * BOARDS_A_TOPIC + board)))
    pin_ids, board_ids = np.concatenate(pins).astype(np.int64), np.concatenate(boards).astype(np.int64)
    return pin_ids, board_ids, rng.integers(0, 1_000_000, len(pin_ids))


def split_graph(folder: Path, shards: int) -> Graph:
    """The topical graph as several tasks would write it, opened from its files."""
    pin_ids, board_ids, saved = topical_edges()
    pins, boards = np.unique(pin_ids), np.unique(board_ids)
    pin_E, board_E = np.searchsorted(pins, pin_ids), np.searchsorted(boards, board_ids)
    starts = {}
    for side, ids, of_E, to_E in ((PINS_SIDE, pins, pin_E, board_E), (BOARDS_SIDE, boards, board_E, pin_E)):
        bounds = [len(ids) * number // shards for number in range(shards + 1)]
        starts[side] = bounds[:-1]
        for number, (first, last) in enumerate(pairwise(bounds)):
            mine = (of_E >= first) & (of_E < last)
            rows = adjacency(last - first, of_E[mine] - first, to_E[mine], saved[mine])
            write_piece(folder, side, number, ids[first:last], rows)
    manifest = GraphManifest("g", ".", ["2026-11-18"], {}, 10_000, starts, {}, {}, "run", "2026-11-18T00:00:00")
    return Graph.open(folder, GraphManifest.from_json(manifest.to_json()))


def test_a_graph_in_shards_is_walked_as_one_of_one_piece(tmp_path: Path) -> None:
    whole, split = Graph.of_edges(*topical_edges()), split_graph(tmp_path, 3)
    ids = np.unique(topical_edges()[0])
    assert (split.pins.ids_of(split.pins.nodes_of(ids)) == ids).all()
    assert (split.pins.nodes_of(np.array([-5, 3, 10**15])) == -1).all(), "ids that are no pin's"
    nodes = whole.pins.nodes_of(ids[::37])
    assert (whole.pins.degrees(nodes) == split.pins.degrees(nodes)).all()
    for one, other in zip(related(whole, nodes, k=20), related(split, nodes, k=20), strict=True):
        assert (one == other).all()


def test_what_is_related_to_a_pin_does_not_depend_on_who_else_is_asked_for() -> None:
    graph = Graph.of_edges(*topical_edges())
    nodes = np.arange(0, 300, 7, dtype=np.int32)
    together, alone = related(graph, nodes, k=10), related(graph, nodes[5:6], k=10)
    assert (together[0][5] == alone[0][0]).all() and (together[1][5] == alone[1][0]).all()


def test_what_a_walk_finds_is_of_the_topic_and_not_what_was_asked_for() -> None:
    graph = Graph.of_edges(*topical_edges())
    asked = graph.pins.nodes_of(np.array([4_000, 4_007]))
    found = walk(graph, asked, k=20)
    assert len(found.pins) == 20 and not set(found.pins) & set(asked)
    assert (graph.pins.ids_of(found.pins) // 1_000 == 4).mean() >= 0.9
    assert (np.diff(found.scores) <= 0).all()
    again = walk(graph, asked, k=20)
    assert (again.pins == found.pins).all() and (again.scores == found.scores).all()


def test_pins_reached_from_both_of_two_topics_come_first() -> None:
    pin_ids = np.array([1, 2, 3, 4, 9, 9, 5, 6, 7, 8])
    board_ids = np.array([10, 10, 10, 10, 10, 20, 20, 20, 20, 20])
    graph = Graph.of_edges(pin_ids, board_ids, np.zeros(10, np.int64))
    found = walk(graph, graph.pins.nodes_of(np.array([1, 5])), k=3)
    assert graph.pins.ids_of(found.pins)[0] == 9
    assert found.scores[0] > 2 * found.scores[1]


def test_weights_decide_where_the_steps_go() -> None:
    graph = Graph.of_edges(*topical_edges())
    asked = graph.pins.nodes_of(np.array([3_000, 11_000]))
    found = walk(graph, asked, np.array([20, 1], np.float32), k=15)
    topics = graph.pins.ids_of(found.pins) // 1_000
    assert (topics == 3).sum() >= 4 * (topics == 11).sum()
    assert not len(walk(graph, np.array([-1], np.int32)).pins), "a pin that nobody saved has nothing related"


def test_a_walk_ends_early_once_it_has_seen_enough() -> None:
    graph = Graph.of_edges(*topical_edges())
    asked = graph.pins.nodes_of(np.array([4_000]))
    whole = walk(graph, asked, k=10, setting=WalkSetting(steps=100_000))
    early = walk(graph, asked, k=10, setting=WalkSetting(steps=100_000, enough_pins=20, enough_visits=20))
    assert early.steps < whole.steps / 2
    assert len(set(early.pins) & set(whole.pins)) >= 6


def test_recency_prefers_what_was_saved_last() -> None:
    pins = np.arange(100)
    graph = Graph.of_edges(np.concatenate([pins, [1_000]]), np.zeros(101, np.int64), np.concatenate([pins, [50]]))
    asked = graph.pins.nodes_of(np.array([1_000]))
    for recency, least, most in ((1.0, 40, 60), (4.0, 75, 100)):
        found = walk(graph, asked, k=30, setting=WalkSetting(recency=recency))
        assert least <= graph.pins.ids_of(found.pins[found.pins != asked]).mean() <= most


def test_an_edge_counts_once_and_the_oldest_are_cut() -> None:
    of, to, saved = np.array([0, 0, 0, 0, 2]), np.array([5, 6, 5, 7, 5]), np.array([10, 20, 30, 5, 1])
    rows = adjacency(3, of, to, saved, max_degree=2)
    assert rows.neighbours.tolist() == [5, 6, 5] and rows.saved.tolist() == [30, 20, 1]
    assert rows.offsets.tolist() == [0, 2, 2, 3] and rows.pruned == 1
    said = degree_statistics(summed_degrees([[0, 0, 1], [1, 1]]), 4)
    assert (said.nodes, said.edges, said.pruned, said.degree_max) == (3, 3, 1, 2)


def test_a_graph_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    split_graph(tmp_path, 2)
    (tmp_path / "boards-00001-neighbours.npy").unlink()
    manifest = GraphManifest("g", ".", [], {}, 10, {PINS_SIDE: [0, 1], BOARDS_SIDE: [0, 1]}, {}, {}, "r", "t")
    with pytest.raises(GraphError, match=r"boards-00001-neighbours\.npy"):
        Graph.open(tmp_path, manifest)
    for data in (b"", b"[]", b'{"format": 99}', b'{"format": 1}'):
        with pytest.raises(GraphError):
            GraphManifest.from_json(data)
