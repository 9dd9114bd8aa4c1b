"""Users' interests on the demo's lake: night after night, and after a correction."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from demo.days import DEMO_DAYS
from embedding.contracts import PIN_EMBEDDINGS, PINS, SAVES, USER_INTERESTS
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows

Rows = dict[int, list[dict[str, Any]]]


def build(lake: Lake, run_id: str, *args: str) -> None:
    from jobs import build_interests

    build_interests.main(["--home", lake.home, "--run-id", run_id, *args])


@pytest.fixture(scope="module")
def lake(lake_of_three_nights: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy of the lake of three nights, with the interests of the second day and of the third."""
    lake = Lake(str(tmp_path_factory.mktemp("interests") / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    build(lake, "second", "--ds", DEMO_DAYS[1])
    build(lake, "third")
    return lake


def current_interests(lake: Lake) -> Rows:
    """By user the rows of the latest day."""
    rows = read_rows(lake.open(USER_INTERESTS)).to_pylist()
    last = {row["user_id"]: row["ds"] for row in sorted(rows, key=lambda row: row["ds"])}
    found: Rows = defaultdict(list)
    for row in rows:
        if row["ds"] == last[row["user_id"]]:
            found[row["user_id"]].append(row)
    return found


def saved_pins(lake: Lake) -> dict[int, set[int]]:
    """By user the living, embedded pins that they have saved, by the tables' definition."""
    latest: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in sorted(read_rows(lake.open(SAVES)).to_pylist(), key=lambda row: row["ds"]):
        latest[row["user_id"], row["pin_id"], row["board_id"]] = row
    pins = {row["pin_id"]: row for row in sorted(read_rows(lake.open(PINS)).to_pylist(), key=lambda row: row["ds"])}
    embedded = {(row["pin_id"], row["ds"]) for row in read_rows(lake.open(PIN_EMBEDDINGS), ["pin_id", "ds"]).to_pylist()}
    found: dict[int, set[int]] = defaultdict(set)
    for (user, pin, _), row in latest.items():
        latest_pin = pins.get(pin, {"deleted": True})  # a save may be of a pin that could not land
        if not row["deleted"] and not latest_pin["deleted"] and (pin, latest_pin["ds"]) in embedded:
            found[user].add(pin)
    return found


def test_every_user_has_interests_that_are_made_of_their_saves(lake: Lake) -> None:
    found, saved = current_interests(lake), saved_pins(lake)
    assert {user for user, rows in found.items() if rows[0]["size"]} == set(saved)
    for user, rows in found.items():
        if not rows[0]["size"]:
            continue
        assert sum(row["size"] for row in rows) == min(len(saved[user]), 500)
        assert {pin for row in rows for pin in row["pins"]} <= saved[user]
        assert all(row["medoid_pin"] in row["pins"] and len(row["pins"]) == row["size"] for row in rows)
        assert len({row["cluster"] for row in rows}) == len(rows)
        assert all(0 < row["importance"] <= row["size"] for row in rows)
        assert np.allclose([np.linalg.norm(row["embedding"]) for row in rows], 1, atol=1e-4)
    assert sum(1 for rows in found.values() for row in rows if row["label"]) > len(found) / 2, "most pins have tags"


def test_a_medoid_has_the_vector_of_its_pin(lake: Lake) -> None:
    vectors = {
        row["pin_id"]: row["embedding"]
        for row in sorted(read_rows(lake.open(PIN_EMBEDDINGS)).to_pylist(), key=lambda row: row["ds"])
    }
    rows = [row for rows in current_interests(lake).values() for row in rows if row["ds"] == DEMO_DAYS[-1] and row["size"]]
    assert rows and all(row["embedding"] == vectors[row["medoid_pin"]] for row in rows)


def test_a_night_clusters_only_those_whose_history_changed(lake: Lake) -> None:
    found = current_interests(lake)
    days = {user: rows[0]["ds"] for user, rows in found.items()}
    assert set(days.values()) == set(DEMO_DAYS[1:])
    before = {
        (row["user_id"], row["history_hash"])
        for row in read_rows(lake.open(USER_INTERESTS)).to_pylist()
        if row["ds"] == DEMO_DAYS[1]
    }
    again = {(user, row["history_hash"]) for user, rows in found.items() for row in rows if row["ds"] == DEMO_DAYS[-1]}
    assert not before & again


def test_the_same_state_again_gives_the_same_rows(lake: Lake) -> None:
    def told() -> list[tuple[Any, ...]]:
        rows = read_rows(lake.open(USER_INTERESTS)).to_pylist()
        return sorted((row["user_id"], row["cluster"], row["ds"], row["medoid_pin"], row["history_hash"]) for row in rows)

    before = told()
    build(lake, "again")
    assert told() == before


def test_who_takes_back_every_save_has_no_interest_left(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    user = min(user for user, rows in current_interests(copy).items() if rows[0]["ds"] == DEMO_DAYS[1] and rows[0]["size"])
    rows = {
        (row["pin_id"], row["board_id"]): row
        for row in sorted(read_rows(copy.open(SAVES)).to_pylist(), key=lambda row: row["ds"])
        if row["user_id"] == user
    }
    taken = [row | {"deleted": True, "ds": DEMO_DAYS[-1]} for row in rows.values()]
    write_deltalake(
        copy.table_uri(SAVES),
        pa.Table.from_pylist(taken, SAVES.schema),
        mode="overwrite",
        predicate=f"user_id = {user} AND ds = '{DEMO_DAYS[-1]}'",
    )
    build(copy, "forget")
    (left,) = current_interests(copy)[user]
    assert (left["size"], left["cluster"], left["medoid_pin"], left["embedding"]) == (0, -1, None, None)
