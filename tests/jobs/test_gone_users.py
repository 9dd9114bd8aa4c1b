"""Days with users who were deleted, in any order: what they made and saved until that day is gone, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from embedding.contracts import BOARDS, PINS, QUARANTINE, SAVES, USERS, TableContract
from embedding.tables.lake import Lake, replace_in_order
from embedding.tables.scan import read_rows
from tests.jobs.platform_days import Row, pin, save, write_day

FIRST, SECOND, THIRD = "2026-11-18", "2026-11-19", "2026-11-20"
ANNA, BERT = 100, 200
ANNAS, BERTS = 10, 20


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Anna and Bert; on the second day Anna is deleted; on the third she is back, and has nothing but a new pin."""
    folder = tmp_path_factory.mktemp("exports")
    first: dict[str, list[Row]] = {
        "pins": [pin(FIRST, 1, ANNA, ANNAS, "a pear"), pin(FIRST, 2, BERT, BERTS, "an apple"), pin(FIRST, 3, BERT, BERTS, "x")],
        "boards": [
            {"board_id": ANNAS, "user_id": ANNA, "title": "fruit"},
            {"board_id": BERTS, "user_id": BERT, "title": "more"},
        ],
        "saves": [
            save(FIRST, ANNA, 1, ANNAS),
            save(FIRST, ANNA, 2, ANNAS),
            save(FIRST, BERT, 1, BERTS),
            save(FIRST, BERT, 2, BERTS),
        ],
    }
    second: dict[str, list[Row]] = {
        # Made on the day that she left; the other one is Bert's from that day on.
        "pins": [
            pin(SECOND, 4, ANNA, ANNAS, "a plum"),
            pin(SECOND, 3, ANNA, ANNAS, "hers by then"),
            pin(SECOND, 5, BERT, BERTS, "y"),
        ],
        "saves": [save(SECOND, ANNA, 5, ANNAS)],
        "users": [{"user_id": ANNA, "deleted": True}, {"user_id": BERT, "deleted": False}, {"user_id": None, "deleted": True}],
    }
    third: dict[str, list[Row]] = {"pins": [pin(THIRD, 6, ANNA, 11, "a fig")], "saves": [save(THIRD, ANNA, 2, 11)]}
    for ds, rows in {FIRST: first, SECOND: second, THIRD: third}.items():
        write_day(folder, ds, rows)
    return folder


def land(lake: Lake, exports: Path, ds: str, run_id: str = "run") -> None:
    from jobs import land_exports

    land_exports.main(["--home", lake.home, "--ds", ds, "--run-id", run_id, "--exports", str(exports)])


def current(lake: Lake, contract: TableContract) -> set[tuple[int, ...]]:
    """Keys whose latest row is no deletion."""
    key = [name for name in contract.key if name != "ds"]
    rows = sorted(read_rows(lake.open(contract)).to_pylist(), key=lambda row: row["ds"])
    latest = {tuple(row[name] for name in key): row for row in rows}
    return {key for key, row in latest.items() if not row["deleted"]}


def state(lake: Lake) -> dict[str, set[tuple[int, ...]]]:
    return {contract.name: current(lake, contract) for contract in (PINS, BOARDS, SAVES)}


LEFT = {"pins": {(2,), (5,), (6,)}, "boards": {(BERTS,)}, "saves": {(BERT, 1, BERTS), (BERT, 2, BERTS), (ANNA, 2, 11)}}


def day(lake: Lake, ds: str) -> dict[int, dict[str, Any]]:
    return {row["pin_id"]: row for row in read_rows(lake.open(PINS)).to_pylist() if row["ds"] == ds}


@pytest.mark.parametrize("order", [(FIRST, SECOND, THIRD), (SECOND, FIRST, THIRD), (THIRD, SECOND, FIRST)], ids=" ".join)
def test_nothing_of_a_deleted_user_counts_in_whichever_order_days_land(
    spark_environment: None, exports: Path, tmp_path: Path, order: tuple[str, ...]
) -> None:
    lake = Lake(str(tmp_path))
    for ds in order:
        land(lake, exports, ds)
    assert state(lake) == LEFT
    for row in read_rows(lake.open(PINS)).to_pylist():
        if row["deleted"]:
            assert [row[name] for name in ("title", "user_id", "board_id", "image_uri")] == [None] * 4
    (bad,) = [row for row in read_rows(lake.open(QUARANTINE)).to_pylist() if row["entity"] == "user"]
    assert (bad["reason"], bad["ds"], bad["detail"]) == ("null_id", SECOND, "user_id is null")
    assert {(row["user_id"], row["deleted"]) for row in read_rows(lake.open(USERS)).to_pylist()} == {
        (ANNA, True),
        (BERT, False),
    }
    before = {contract.name: lake.open(contract).version() for contract in (PINS, BOARDS, SAVES, USERS)}
    # Run again, a day that landed before the deletion forgets what was the user's; any other changes nothing.
    for ds in (SECOND, THIRD):
        land(lake, exports, ds, "again")
    assert {name: lake.open(contract).version() for name, contract in (("pins", PINS), ("users", USERS))} == {
        name: before[name] for name in ("pins", "users")
    }
    land(lake, exports, FIRST, "again")
    assert state(lake) == LEFT and day(lake, FIRST)[1]["title"] is None
    versions = lake.open(PINS).version()
    land(lake, exports, FIRST, "once more")
    assert lake.open(PINS).version() == versions


def test_a_deletion_that_lands_beside_an_earlier_day_is_seen_by_one_of_them(
    spark_environment: None, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path))
    raced: list[str] = []

    def race(*args: Any, **kwargs: Any) -> None:
        """Between the look of the first day at who is deleted and its commit, all of the second lands."""
        if not raced:
            raced.append(SECOND)
            land(lake, exports, SECOND, "other")
        replace_in_order(*args, **kwargs)

    monkeypatch.setattr("jobs.land_exports.replace_in_order", race)
    land(lake, exports, FIRST)
    land(lake, exports, THIRD)
    assert state(lake) == LEFT


def test_a_deletion_that_a_corrected_export_takes_back_brings_everything_back(
    spark_environment: None, exports: Path, tmp_path: Path
) -> None:
    lake, folder = Lake(str(tmp_path / "lake")), tmp_path / "exports"
    shutil.copytree(exports, folder)
    for ds in (FIRST, SECOND):
        land(lake, folder, ds)
    assert (1,) not in current(lake, PINS)
    shutil.rmtree(folder / f"ds={SECOND}" / "users")
    land(lake, folder, SECOND)
    assert {(1,), (2,), (3,), (4,), (5,)} == current(lake, PINS)
    assert (ANNA, 1, ANNAS) in current(lake, SAVES) and not read_rows(lake.open(USERS)).num_rows
