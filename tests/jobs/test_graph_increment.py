"""The graph of a night is made from the one before it, by what the tables' logs say, and is the graph of the tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from embedding.contracts import SAVES
from embedding.tables.lake import Lake, data_files
from embedding.tables.maintenance import commit_rewrites, plan_rewrites, stage_rewrite
from embedding.taste import store
from embedding.taste.graph import GraphManifest
from tests.jobs.saved_nights import board, edges_of_tables, graph_of_tables, judge, land, pin, save
from tests.taste.test_patches import said

DAYS = [f"2026-11-{day:02}" for day in range(1, 8)]
MOST = 12
"""Edges that a node keeps: some boards and pins have more."""


@pytest.fixture(scope="module")
def lake(spark_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A first day of 150 pins on 40 boards, a few of them popular, and its graph, whole, in several shards."""
    lake = Lake(str(tmp_path_factory.mktemp("nights") / "lake"))
    rng = np.random.default_rng(3)
    pins, boards = [7 * number for number in range(150)], [5 * number for number in range(40)]
    saves = {(int(rng.integers(0, 20)), 7 * int(150 * rng.random() ** 2), 5 * int(40 * rng.random() ** 2)) for _ in range(600)}
    minutes = rng.integers(29_000_000, 29_001_000, len(saves)).tolist()
    rows = [save(*who, minute) for who, minute in zip(sorted(saves), minutes, strict=True)]
    land(lake, DAYS[0], [pin(i) for i in pins], [board(i) for i in boards if i != 195], rows)
    judge(lake, DAYS[0])
    made = build(lake, "first")
    assert made.why_whole.startswith("there is no graph before it") and made.increment is None
    assert all(len(starts) > 1 for starts in made.starts.values()) and made.sides["boards"].degree_max == MOST
    assert made.sides["boards"].pruned > 0 and made.sides["pins"].pruned > 0
    return lake


def build(lake: Lake, run_id: str, *args: str) -> GraphManifest:
    """Builds the graph of the state that there is, and makes it live; the tables have its edges."""
    from jobs import build_graph

    build_graph.main(["--home", lake.home, "--run-id", run_id, "--max-degree", str(MOST), "--edges-a-shard", "150", *args])
    graph_id = store.graph_of_run(lake, run_id)
    made = store.read_manifest(lake, graph_id)
    graph, wanted = store.open_graph(lake, graph_id), graph_of_tables(lake, made.days, MOST)
    assert said(graph) == said(wanted)
    for name, side in made.sides.items():
        degrees = graph.side(name).degrees(np.arange(len(graph.side(name))))
        degrees = degrees[degrees > 0]
        assert (side.nodes, side.edges, side.degree_max) == (len(degrees), degrees.sum(), degrees.max())
        assert side.degree_p50 == np.percentile(degrees, 50, method="inverted_cdf")
    store.publish_graph(lake, graph_id)
    return made


def kept_edges(lake: Lake, manifest: GraphManifest) -> set[tuple[int, int]]:
    """The edges that a pin or a board of a graph has in its list: what was pruned by both is not seen to go."""
    lists = said(store.open_graph(lake, manifest.graph_id))
    pins = {(of, to) for of, entries in lists["pins"].items() for to, _ in entries}
    return pins | {(to, of) for of, entries in lists["boards"].items() for to, _ in entries}


def test_nights_of_changes_make_the_graph_of_the_tables(lake: Lake) -> None:
    before = store.read_manifest(lake, str(store.live_graph_id(lake)))
    edges = edges_of_tables(lake, DAYS[:1])
    popular = max({edge[1] for edge in edges}, key=lambda b: sum(edge[1] == b for edge in edges))
    on_popular = sorted((saved, edge[0]) for edge, saved in edges.items() if edge[1] == popular)
    assert len(on_popular) > MOST
    # New pins on old boards and on a new one; two saves taken back, of a popular board its newest; a pin and a board deleted;
    # a save of a board that is only known later, and one of a pin that never is.
    newest = on_popular[-1][1]
    taken_back = [save(user, newest, popular, None, deleted=True) for user in range(20)]
    kept_pin, gone_pin, gone_board = on_popular[-2][1], on_popular[-3][1], 15
    saves = [
        save(1, 10_001, popular, 29_002_000), save(2, 10_001, 500, 29_002_001), save(3, kept_pin, 500, 29_002_002),
        save(4, 10_002, 10, None), save(5, kept_pin, 195, 29_002_003), save(5, 99_999, 10, 29_002_003), *taken_back,
    ]  # fmt: skip
    land(lake, DAYS[1], [pin(10_001), pin(10_002), pin(gone_pin, True)], [board(500), board(gone_board, True)], saves)
    judge(lake, DAYS[1])
    second = build(lake, "second")
    assert second.increment and second.base and second.base.graph_id == before.graph_id == second.increment.since
    assert second.increment.new_nodes == {"pins": 2, "boards": 1}
    assert second.increment.patched["boards"] < second.base.edges["boards"] / 2
    left = {edge for edge in edges if edge[0] == gone_pin or edge[1] == gone_board} | {(newest, popular)}
    assert second.increment.removed == len(left & kept_edges(lake, before))
    assert second.increment.added == 4

    # They come back, and the board that was unknown is known; a popular pin goes.
    popular_pin = max({edge[0] for edge in edges} - {gone_pin}, key=lambda p: sum(edge[0] == p for edge in edges))
    land(lake, DAYS[2], [pin(gone_pin), pin(popular_pin, True)], [board(gone_board), board(195)], [save(5, 0, 0, 28_000_000)])
    judge(lake, DAYS[2])
    third = build(lake, "third")
    assert third.increment and third.increment.since == second.graph_id and third.base == second.base
    assert third.increment.new_nodes["boards"] == 1
    assert third.increment.removed == sum(edge[0] == popular_pin for edge in kept_edges(lake, second))


def test_a_corrected_late_day_and_days_that_begin_or_cease_to_count(lake: Lake) -> None:
    live = str(store.live_graph_id(lake))
    # The second day is landed again: one save less, one more, the pins as they were.
    rows = [save(1, 10_001, 10, 29_002_000), save(2, 10_001, 500, 29_002_001), save(4, 10_002, 10, None)]
    land(lake, DAYS[1], [pin(10_001), pin(10_002)], [board(500)], rows)
    corrected = build(lake, "corrected")
    assert corrected.increment and corrected.increment.since == live
    # A day that does not pass does not count; when it passes it does, and no file of it changed.
    land(lake, DAYS[3], [pin(20_000)], [], [save(1, 20_000, 10, 29_003_000), save(1, 7, 10, 29_003_000)])
    judge(lake, DAYS[3], passed=False)
    failed = build(lake, "failed")
    assert failed.days[-1] == DAYS[2] and failed.increment
    assert (failed.increment.added, failed.increment.removed, failed.increment.lists) == (0, 0, {"pins": 0, "boards": 0})
    judge(lake, DAYS[3])
    passed = build(lake, "passed", "--ds", DAYS[3])
    assert passed.days[-1] == DAYS[3] and passed.increment and passed.increment.since == failed.graph_id
    assert passed.increment.added >= 1 and passed.increment.new_nodes == {"pins": 1, "boards": 0}
    judge(lake, DAYS[3], passed=False)
    again = build(lake, "again", "--whole")
    assert again.graph_id == failed.graph_id, "the state is one that there was: its graph is taken as it is"


def test_a_rewrite_by_maintenance_is_no_change(lake: Lake) -> None:
    planned = plan_rewrites(lake, SAVES)
    assert planned
    before = {file.uri for file in data_files(lake.open(SAVES))}
    root = lake.table_uri(SAVES)
    commit_rewrites(lake, SAVES, [(rewrite, stage_rewrite(root, SAVES, rewrite)) for rewrite in planned], run_id="upkeep")
    assert not before & {file.uri for file in data_files(lake.open(SAVES)) if file.partition["ds"] == DAYS[0]}
    made = build(lake, "rewritten")
    assert made.increment and made.increment.lists == {"pins": 0, "boards": 0}
    assert not made.increment.added and not made.increment.removed


def test_a_base_stays_while_a_graph_stands_on_it_and_goes_with_it(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    live = store.read_manifest(copy, str(store.live_graph_id(copy)))
    assert live.base and live.base.graph_id != live.graph_id
    assert live.base.graph_id in store.delete_graphs(copy, [live.graph_id])
    assert [graph.graph_id for graph in store.finished_graphs(copy)] == [live.graph_id], "no table version is kept for the base"
    assert said(store.open_graph(copy, live.graph_id)) == said(graph_of_tables(copy, live.days, MOST))
    land(copy, DAYS[4], [pin(30_000)], [], [save(1, 30_000, 10, 29_004_000)])
    judge(copy, DAYS[4])
    later = build(copy, "later")
    assert later.base == live.base, "a base without a manifest is as good"
    land(copy, DAYS[5], [pin(30_001)], [], [save(1, 30_001, 10, 29_005_000)])
    judge(copy, DAYS[5])
    compacted = build(copy, "compacted", "--most-patched", "0")
    assert "beside its base, more than 0%" in compacted.why_whole and compacted.base is None
    land(copy, DAYS[6], [pin(30_002)], [], [save(1, 30_002, 10, 29_006_000)])
    judge(copy, DAYS[6])
    compacted = build(copy, "aged", "--base-hours", "0")
    assert compacted.why_whole.endswith("0 days old") and compacted.base is None
    store.delete_graphs(copy, [compacted.graph_id])
    assert sorted(path.name for path in Path(copy.home, "graphs").iterdir()) == sorted([compacted.graph_id, "LIVE"])


def test_too_much_that_changed_and_a_log_that_is_gone_are_built_whole(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    rng = np.random.default_rng(5)
    saves = {(1, 7 * int(rng.integers(0, 150)), 5 * int(rng.integers(0, 40))) for _ in range(300)}
    land(copy, DAYS[5], [], [], [save(*who, 29_006_000) for who in sorted(saves)])
    judge(copy, DAYS[5])
    assert "of the saves' rows changed since" in build(copy, "much").why_whole
    land(copy, DAYS[6], [pin(40_000)], [], [save(1, 40_000, 10, 29_007_000)])
    judge(copy, DAYS[6])
    log = Path(copy.table_uri(SAVES), "_delta_log", f"{copy.open(SAVES).version():020d}.json")
    copy.open(SAVES).create_checkpoint()
    log.unlink()
    made = build(copy, "forgotten")
    assert made.why_whole == f"saves: the log's entry of version {int(log.stem)} is gone"
