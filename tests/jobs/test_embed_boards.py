"""Boards' vectors on the demo's lake, night after night."""

from __future__ import annotations

import shutil
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from demo.days import DEMO_DAYS
from embedding.contracts import BOARD_EMBEDDINGS, BOARDS, PIN_EMBEDDINGS, PINS, SAVES
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows


def build(lake: Lake, run_id: str, *args: str) -> None:
    from jobs import embed_boards

    embed_boards.main(["--home", lake.home, "--run-id", run_id, *args])


@pytest.fixture(scope="module")
def lake(lake_of_three_nights: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("boards") / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    build(lake, "second", "--ds", DEMO_DAYS[1])
    build(lake, "third")
    return lake


def current(lake: Lake) -> dict[int, dict[str, Any]]:
    """By board the row of the latest day."""
    return {row["board_id"]: row for row in sorted(rows_of(lake), key=lambda row: row["ds"])}


def rows_of(lake: Lake) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_rows(lake.open(BOARD_EMBEDDINGS)).to_pylist()
    return rows


def test_a_board_is_the_mean_of_its_pins(lake: Lake) -> None:
    def latest(table: Any, *key: str) -> dict[Any, dict[str, Any]]:
        rows = sorted(read_rows(lake.open(table)).to_pylist(), key=lambda row: row["ds"])
        return {tuple(row[name] for name in key): row for row in rows}

    pins, boards = latest(PINS, "pin_id"), latest(BOARDS, "board_id")
    vectors = {(row["pin_id"], row["ds"]): row["embedding"] for row in read_rows(lake.open(PIN_EMBEDDINGS)).to_pylist()}
    on = defaultdict(set)
    for (pin, board, _), row in latest(SAVES, "pin_id", "board_id", "user_id").items():
        alive = not row["deleted"] and (board,) in boards and not boards[board,]["deleted"]
        if alive and (pin,) in pins and not pins[pin,]["deleted"] and (pin, pins[pin,]["ds"]) in vectors:
            on[board].add(pin)
    found = {board: row for board, row in current(lake).items() if row["size"]}
    assert set(found) == {board for board, some in on.items() if some}
    for board, row in found.items():
        of_pins = np.array([vectors[pin, pins[pin,]["ds"]] for pin in sorted(on[board])], np.float32)
        mean = of_pins.mean(axis=0)
        assert row["size"] == len(of_pins) <= 500
        assert np.isclose(row["cohesion"], np.linalg.norm(mean), atol=1e-5)
        np.testing.assert_allclose(row["embedding"], mean / np.linalg.norm(mean), atol=1e-5)
        assert row["medoid_pin"] in on[board]


def test_a_night_writes_the_boards_alone_whose_pins_changed(lake: Lake) -> None:
    before = {(row["board_id"], row["history_hash"]) for row in rows_of(lake) if row["ds"] == DEMO_DAYS[1]}
    after = {(row["board_id"], row["history_hash"]) for row in rows_of(lake) if row["ds"] == DEMO_DAYS[-1]}
    assert before and after and not before & after and len(after) < len(before)

    def told() -> list[tuple[Any, ...]]:
        return sorted((row["board_id"], row["ds"], row["medoid_pin"], row["history_hash"]) for row in rows_of(lake))

    once = told()
    build(lake, "again")
    assert told() == once
