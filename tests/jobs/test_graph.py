"""The pin-board graph and the related pins of the demo's lake, from its tables to what a reader gets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from demo.days import DEMO_DAYS
from embedding.contracts import BOARDS, PINS, RELATED_PINS, SAVES, USER_INTERESTS, TableContract
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from embedding.taste.checks import last_checks
from embedding.taste.graph import GraphError
from embedding.taste.store import graph_of_run, graph_uri, live_graph_id, open_graph, read_manifest, write_manifest


@pytest.fixture(scope="module")
def lake(lake_of_three_nights: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy of the lake of three nights, with the graph of the second, the third's that is made from it, and related pins."""
    lake = Lake(str(tmp_path_factory.mktemp("graph") / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    taste(lake, "before", "--ds", DEMO_DAYS[1], "--edges-a-shard", "30", interests=True)
    taste(lake, "first", "--most-changed", "1")
    return lake


def taste(lake: Lake, run_id: str, *args: str, interests: bool = False) -> None:
    from jobs import build_graph, build_interests, check_taste, relate_pins

    build_graph.main(["--home", lake.home, "--run-id", run_id, *args])
    for program in (relate_pins, build_interests) if interests else (relate_pins,):
        program.main(["--home", lake.home, "--run-id", run_id])
    assert check_taste.main(["--home", lake.home, "--run-id", run_id, "--most-change", "2"]) == 0


def latest(lake: Lake, contract: TableContract, *key: str, until: str = DEMO_DAYS[-1]) -> dict[tuple[int, ...], dict[str, Any]]:
    rows = sorted(read_rows(lake.open(contract)).to_pylist(), key=lambda row: row["ds"])
    return {tuple(row[name] for name in key): row for row in rows if row["ds"] <= until}


def edges_of_tables(lake: Lake, until: str = DEMO_DAYS[-1]) -> set[tuple[int, int]]:
    """Edges by the tables' definition, without Spark."""
    pins = {key[0] for key, row in latest(lake, PINS, "pin_id", until=until).items() if not row["deleted"]}
    boards = {key[0] for key, row in latest(lake, BOARDS, "board_id", until=until).items() if not row["deleted"]}
    saves = latest(lake, SAVES, "user_id", "pin_id", "board_id", until=until).values()
    alive = ((save["pin_id"], save["board_id"]) for save in saves if not save["deleted"])
    return {(pin, board) for pin, board in alive if pin in pins and board in boards}


def related_of(lake: Lake) -> dict[int, list[int]]:
    return {key[0]: row["related"] for key, row in latest(lake, RELATED_PINS, "pin_id").items()}


def test_the_graph_has_the_edges_of_the_tables_both_ways(lake: Lake) -> None:
    graph_id = live_graph_id(lake)
    assert graph_id == graph_of_run(lake, "first")
    graph, manifest = open_graph(lake, graph_id), read_manifest(lake, graph_id)
    assert all(len(starts) > 1 for starts in manifest.starts.values()), "several shards"
    assert manifest.increment and manifest.increment.since == graph_of_run(lake, "before")
    wanted = edges_of_tables(lake)
    for side, other, turn in ((graph.pins, graph.boards, 1), (graph.boards, graph.pins, -1)):
        ids = side.ids_of(np.arange(len(side), dtype=np.int32))
        assert len(np.unique(ids)) == len(ids)
        found = {(int(of), int(to)) for node, of in enumerate(ids) for to in other.ids_of(side.neighbours(node))}
        assert {pair[::turn] for pair in found} == wanted
    assert {side.edges for side in manifest.sides.values()} == {len(wanted)}
    assert manifest.sides["pins"].nodes == len({pin for pin, _ in wanted})


def test_every_pin_of_the_graph_has_related_pins_of_its_surroundings(lake: Lake) -> None:
    edges, found = edges_of_tables(lake), related_of(lake)
    assert {pin for pin, related in found.items() if related} <= {pin for pin, _ in edges} <= set(found)
    boards: dict[int, set[int]] = {}
    for pin, board in edges:
        boards.setdefault(board, set()).add(pin)
    assert not any(pin in related for pin, related in found.items())
    shared = [(pin, board) for pin, board in sorted(edges) if len(boards[board]) > 1]
    assert len(shared) > 20
    for pin, board in shared:
        assert boards[board] - {pin} <= set(found[pin]) or len(found[pin]) == 50, "pins of one board are related"


def test_a_day_walks_from_what_changed_and_nothing_names_a_pin_that_left(lake: Lake) -> None:
    before, now = edges_of_tables(lake, DEMO_DAYS[1]), edges_of_tables(lake)
    alive = {pin for pin, _ in now}
    gone = {pin for pin, _ in before} - alive
    boards = {board for _, board in before ^ now}
    near = {pin for pin, board in now if board in boards} | {pin for pin, _ in before ^ now} & alive
    earlier = (row for row in read_rows(lake.open(RELATED_PINS)).to_pylist() if row["ds"] == DEMO_DAYS[1])
    had_related = {row["pin_id"] for row in earlier if row["related"]}
    rows = latest(lake, RELATED_PINS, "pin_id")
    of_day = {key[0] for key, row in rows.items() if row["ds"] == DEMO_DAYS[-1]}
    assert gone and near | (gone & had_related) <= of_day, "the demo's third day deletes pins"
    assert len(of_day) < len(rows), "what did not change keeps its row"
    assert not any(rows[pin,]["related"] for pin in gone if (pin,) in rows)
    assert not any(gone & set(row["related"]) for row in rows.values())


def test_the_same_state_again_changes_nothing(lake: Lake) -> None:
    version = lake.open(RELATED_PINS).version()
    taste(lake, "again")
    assert graph_of_run(lake, "again") == live_graph_id(lake)
    assert lake.open(RELATED_PINS).version() == version


def test_a_deleted_pin_leaves_the_graph_and_all_that_named_it(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    before = related_of(copy)
    gone = next(pin for pin, related in sorted(before.items()) if len(related) >= 10)
    naming = {pin for pin, related in before.items() if gone in related}
    row = latest(copy, PINS, "pin_id")[gone,] | {"deleted": True, "ds": DEMO_DAYS[-1]}
    write_deltalake(
        copy.table_uri(PINS),
        pa.Table.from_pylist([row], PINS.schema),
        mode="overwrite",
        predicate=f"pin_id = {gone} AND ds = '{DEMO_DAYS[-1]}'",
    )
    taste(copy, "deleted", "--most-changed", "1", interests=True)
    assert read_manifest(copy, str(live_graph_id(copy))).increment, "made from the graph of the day before"
    graph = open_graph(copy, str(live_graph_id(copy)))
    assert live_graph_id(copy) != live_graph_id(lake)
    assert graph.pins.nodes_of(np.array([gone])).tolist() == [-1]
    after = related_of(copy)
    assert not after.get(gone) and naming and not any(gone in related for related in after.values())


def test_an_older_graph_does_not_take_the_place_of_a_newer_one(lake: Lake) -> None:
    live, version = live_graph_id(lake), lake.open(RELATED_PINS).version()
    taste(lake, "late", "--ds", DEMO_DAYS[1])
    assert live_graph_id(lake) == live and lake.open(RELATED_PINS).version() == version


def test_a_graph_does_not_go_live_while_somebody_has_no_interests(
    lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from jobs import check_taste

    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    rows = read_rows(copy.open(USER_INTERESTS)).to_pylist()
    user = next(row["user_id"] for row in rows if row["size"])
    copy.open(USER_INTERESTS).delete(f"user_id = {user}")
    Path(copy.home, "graphs", "LIVE").unlink()
    assert check_taste.main(["--home", copy.home, "--run-id", "first"]) == 3
    assert "users have no interests made of what they have saved" in caplog.text
    assert live_graph_id(copy) is None
    noted = {check.run_id: check for check in last_checks(copy, [])}
    assert noted["before"].passed and noted["before"].counts.edges_before is None
    assert not noted["first"].passed and noted["first"].graph_id == graph_of_run(copy, "first")
    assert noted["first"].counts.up_to_date == noted["first"].counts.users - 1


def test_a_graph_that_has_other_edges_than_the_tables_does_not_go_live(
    lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from jobs import check_taste

    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    manifest = read_manifest(copy, str(live_graph_id(copy)))
    write_manifest(copy, replace(manifest, days=manifest.days[:-1]))
    Path(copy.home, "graphs", "LIVE").unlink()
    assert check_taste.main(["--home", copy.home, "--run-id", "first", "--most-change", "2"]) == 3
    assert "are others in the graph than in the tables" in caplog.text
    assert live_graph_id(copy) is None


def test_a_damaged_graph_is_refused(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(str(tmp_path / "lake"))
    graph_id = str(live_graph_id(lake))
    base = read_manifest(lake, graph_id).base
    assert base
    for of, name in ((base.graph_id, "pins-00000-neighbours"), (graph_id, "pins-00000-patch-kept")):
        shutil.copytree(lake.home + "/graphs", copy.home + "/graphs", dirs_exist_ok=True)
        path = next(Path(graph_uri(copy, of)).glob(f"*/{name}.npy"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(GraphError, match=rf"{name}\.npy of graph .* is damaged"):
            open_graph(copy, graph_id)
    with pytest.raises(GraphError, match="no finished graph"):
        open_graph(copy, "2026-11-20-000000000000")
    with pytest.raises(GraphError, match="has made no graph"):
        graph_of_run(copy, "nobody")
