"""Files without their forgotten rows: the others stay as they are, a night meanwhile wins, and every table has its rule."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding.contracts import FORGOTTEN_SOURCE, PIN_EMBEDDINGS, PINS, QUARANTINE, TABLES, USERS, TableContract
from embedding.tables.forgetting import FORGET, FORGOTTEN_IN, last_forgetting, rewrites_of, stage_forgotten
from embedding.tables.lake import Lake, Partition, data_files, partition_version, replace_partition
from embedding.tables.maintenance import commit_rewrites
from embedding.tables.scan import read_rows
from embedding.tables.staging import Stager
from tests.tables.test_lake import commit, committed, day

DAY, NEXT = "2026-11-18", "2026-11-19"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path))
    lake.create_all()
    return lake


def forget(lake: Lake, contract: TableContract, column: str, values: set[int], meanwhile: Any = None) -> int:
    """Forgets the rows whose column has one of the values; returns how many partitions gave way."""
    table, staged = lake.open(contract), []
    for file in data_files(table):
        found = read_rows(table, [column], lambda partition, file=file: partition == file.partition)[column].to_numpy()  # type: ignore[misc]
        if len(places := np.flatnonzero(np.isin(found, list(values)))):
            new = stage_forgotten(lake.table_uri(contract), contract, file, places)
            staged.append((file, [new] if new else []))
    if meanwhile:
        meanwhile()
    return len(commit_rewrites(lake, contract, rewrites_of(table, staged), run_id="forget", purpose=FORGET))


def test_every_table_that_knows_a_pin_a_board_or_a_user_says_how_it_forgets() -> None:
    knowing = {name for name, contract in TABLES.items() if {"pin_id", "board_id", "user_id"} & set(contract.schema.names)}
    assert knowing == {contract.name for contract in FORGOTTEN_IN} | {USERS.name}


def test_forgotten_vectors_are_gone_and_a_night_that_planned_before_commits_after(lake: Lake) -> None:
    commit(lake, DAY, [1, 2, 3])
    commit(lake, NEXT, [2])
    seen = [partition_version(lake.open(PIN_EMBEDDINGS), day(ds)) for ds in (DAY, NEXT)]
    assert last_forgetting(lake, PIN_EMBEDDINGS) is None
    assert forget(lake, PIN_EMBEDDINGS, "pin_id", {2}) == 0
    assert committed(lake) == {(DAY, 1), (DAY, 3)}
    assert len(data_files(lake.open(PIN_EMBEDDINGS))) == 1, "of a file in which nothing is left there is none"
    assert last_forgetting(lake, PIN_EMBEDDINGS) == lake.open(PIN_EMBEDDINGS).version()
    assert [partition_version(lake.open(PIN_EMBEDDINGS), day(ds)) for ds in (DAY, NEXT)] == seen, "followers see no change"
    log = Path(lake.table_uri(PIN_EMBEDDINGS), "_delta_log", f"{lake.open(PIN_EMBEDDINGS).version():020d}.json")
    changes = [next(iter(json.loads(line).values())) for line in log.read_text().splitlines()]
    assert {action["dataChange"] for action in changes if "dataChange" in action} == {False}


def test_a_night_that_replaces_the_day_meanwhile_keeps_its_own(lake: Lake) -> None:
    commit(lake, DAY, [1, 2])
    commit(lake, NEXT, [1, 2])
    assert forget(lake, PIN_EMBEDDINGS, "pin_id", {2}, meanwhile=lambda: commit(lake, DAY, [2, 4])) == 1
    assert committed(lake) == {(DAY, 2), (DAY, 4), (NEXT, 1)}
    assert forget(lake, PIN_EMBEDDINGS, "pin_id", {2}) == 0
    assert committed(lake) == {(DAY, 4), (NEXT, 1)}


def put(lake: Lake, contract: TableContract, partition: Partition, rows: list[dict[str, Any]]) -> None:
    with Stager(lake.table_uri(contract), contract, partition) as stager:
        stager.add(pa.Table.from_pylist(rows, contract.file_schema))
        stager.flush()
    replace_partition(lake, contract, partition, stager.files, expected_version=0, run_id="run")


def test_a_row_of_a_pin_keeps_its_id_alone_and_the_others_everything(lake: Lake) -> None:
    now = datetime(2026, 11, 18, 12, tzinfo=UTC)
    full = {"board_id": 1, "user_id": 2, "title": "a", "description": "b", "tags": ["c", None], "image_uri": "file:///d.png"}
    full |= {"created_at": now, "updated_at": now, "deleted": False, "source_sha256": "e" * 64}
    rows = [full | {"pin_id": number, "export_sha256": "f" * 64, "run_id": "run"} for number in range(20)]
    put(lake, PINS, {"ds": DAY}, rows)
    assert forget(lake, PINS, "pin_id", {3, 4, 19}) == 0
    nothing = dict.fromkeys((name for name in full), None) | {"deleted": True, "source_sha256": FORGOTTEN_SOURCE}
    wanted = [row | nothing if row["pin_id"] in (3, 4, 19) else row for row in rows]
    assert sorted(read_rows(lake.open(PINS)).to_pylist(), key=lambda row: row["pin_id"]) == [
        row | {"ds": DAY} for row in wanted
    ]


@pytest.mark.parametrize("stage", ["land", "embed"])
def test_what_could_not_land_is_still_counted_and_what_could_not_be_encoded_is_not(lake: Lake, stage: str) -> None:
    row = dict.fromkeys(QUARANTINE.file_schema.names) | {"entity": "pin", "reason": "fetch_failed", "run_id": "run"}
    rows = [row | {"pin_id": pin, "image_uri": "file:///a.png", "source_sha256": "e" * 64} for pin in (1, 2)]
    version = None if stage == "land" else "tiny-0123456789ab"
    put(lake, QUARANTINE, {"ds": DAY, "stage": stage, "embedding_version": version}, rows)
    assert forget(lake, QUARANTINE, "pin_id", {1}) == 0
    found = [(row["pin_id"], row["image_uri"], row["source_sha256"]) for row in read_rows(lake.open(QUARANTINE)).to_pylist()]
    other = (2, "file:///a.png", "e" * 64)
    assert found == ([(1, None, None), other] if stage == "land" else [other])
