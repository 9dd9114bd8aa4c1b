"""Commits of days: atomic, repeatable, side by side; readable by every engine that we name."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError

from embedding.contracts import PIN_EMBEDDINGS, QUARANTINE, TABLES
from embedding.tables.lake import DayChangedError, Lake, data_files, partition_is, partition_version, replace_partition
from embedding.tables.scan import read_rows
from embedding.tables.staging import InvalidRowsError, StagedFile, Stager

VERSION = "test-0123456789ab"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / "a home with spaces"))
    lake.create_all()
    return lake


def day(ds: str) -> dict[str, str | None]:
    return {"embedding_version": VERSION, "ds": ds}


def vectors(pin_ids: list[int], run_id: str = "run") -> pa.Table:
    rows = [
        {
            "pin_id": pin,
            "content_sha256": f"{pin:064x}",
            "source_sha256": f"{pin:064x}",
            "embedding": [1.0, 0.0],
            "has_image": True,
            "has_text": False,
            "encoded_by": run_id,
            "run_id": run_id,
        }
        for pin in pin_ids
    ]
    return pa.Table.from_pylist(rows, schema=PIN_EMBEDDINGS.file_schema)


def stage(lake: Lake, ds: str, pin_ids: list[int], max_rows: int = 1_000) -> list[StagedFile]:
    with Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, day(ds), max_rows) as stager:
        for pin in pin_ids:
            stager.add(vectors([pin]))
        stager.flush()
    return stager.files


def commit(lake: Lake, ds: str, pin_ids: list[int]) -> None:
    seen = partition_version(lake.open(PIN_EMBEDDINGS), day(ds))
    replace_partition(lake, PIN_EMBEDDINGS, day(ds), stage(lake, ds, pin_ids), expected_version=seen, run_id="run")


def committed(lake: Lake) -> set[tuple[str, int]]:
    table = read_rows(lake.open(PIN_EMBEDDINGS), ["ds", "pin_id"])
    rows = [(row["ds"], row["pin_id"]) for row in table.to_pylist()]
    assert len(rows) == len(set(rows)), "no row is there twice"
    return set(rows)


def test_staged_rows_are_invisible_until_the_commit_replaces_the_whole_day(lake: Lake) -> None:
    commit(lake, "2026-11-18", [1, 2])
    staged = stage(lake, "2026-11-18", [3, 4, 5], max_rows=2)
    assert [file.num_rows for file in staged] == [2, 1]
    assert committed(lake) == {("2026-11-18", 1), ("2026-11-18", 2)}
    replace_partition(lake, PIN_EMBEDDINGS, day("2026-11-18"), staged, expected_version=1, run_id="again")
    assert committed(lake) == {("2026-11-18", 3), ("2026-11-18", 4), ("2026-11-18", 5)}


def test_a_commit_planned_before_another_of_the_same_day_is_refused_and_leaves_nothing(lake: Lake) -> None:
    ours = stage(lake, "2026-11-18", [1])
    commit(lake, "2026-11-18", [2])
    with pytest.raises(DayChangedError):
        replace_partition(lake, PIN_EMBEDDINGS, day("2026-11-18"), ours, expected_version=0, run_id="late")
    assert committed(lake) == {("2026-11-18", 2)}
    on_disk = list(Path(lake.table_uri(PIN_EMBEDDINGS)).rglob("*.parquet"))
    assert len(on_disk) == len(data_files(lake.open(PIN_EMBEDDINGS))), "the refused files are gone"


def test_days_committed_side_by_side_keep_all_their_rows(lake: Lake) -> None:
    days = [f"2026-11-{number:02d}" for number in range(1, 9)]
    errors: list[Exception] = []

    def work(ds: str) -> None:
        try:
            for generation in range(3):
                commit(lake, ds, [generation * 10, generation * 10 + 1])
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    threads = [threading.Thread(target=work, args=(ds,)) for ds in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert committed(lake) == {(ds, pin) for ds in days for pin in (20, 21)}


def test_of_two_first_runs_of_a_day_at_once_one_wins(lake: Lake) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def work(pin: int) -> None:
        staged = stage(lake, "2026-11-18", [pin])
        barrier.wait()
        try:
            replace_partition(lake, PIN_EMBEDDINGS, day("2026-11-18"), staged, expected_version=0, run_id=str(pin))
            outcomes.append("won")
        except DayChangedError:
            outcomes.append("saw it")

    threads = [threading.Thread(target=work, args=(pin,)) for pin in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["saw it", "won"]
    assert len(committed(lake)) == 1


def test_rows_that_break_the_contract_are_refused_before_they_reach_a_table(lake: Lake) -> None:
    rows = vectors([1])
    nulls = rows.set_column(0, "pin_id", pa.array([None], pa.int64()))
    with Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, day("2026-11-18")) as stager:
        with pytest.raises(InvalidRowsError, match=r"pin_id: 1 null"):
            stager.add(nulls)
        with pytest.raises(InvalidRowsError, match=r"columns missing: \['embedding'\]"):
            stager.add(rows.drop_columns(["embedding"]))


def test_a_stage_that_fails_deletes_what_it_wrote(lake: Lake) -> None:
    stager = Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, day("2026-11-18"))
    with pytest.raises(RuntimeError), stager:
        stager.add(vectors([1]))
        stager.flush()
        raise RuntimeError("the task was killed")
    assert not list(Path(lake.table_uri(PIN_EMBEDDINGS)).rglob("*.parquet"))


def test_a_null_partition_value_reads_back_as_null(lake: Lake) -> None:
    partition: dict[str, str | None] = {"ds": "2026-11-18", "stage": "land", "embedding_version": None}
    row = {"entity": "pin", "pin_id": None, "reason": "null_id", "run_id": "run"}
    with Stager(lake.table_uri(QUARANTINE), QUARANTINE, partition) as stager:
        stager.add(pa.Table.from_pylist([row], schema=QUARANTINE.file_schema))
        stager.flush()
    replace_partition(lake, QUARANTINE, partition, stager.files, expected_version=0, run_id="run")
    found = read_rows(lake.open(QUARANTINE)).to_pylist()
    assert [(r["ds"], r["stage"], r["embedding_version"], r["reason"]) for r in found] == [
        ("2026-11-18", "land", None, "null_id")
    ]
    assert len(data_files(lake.open(QUARANTINE), partition_is(embedding_version=None))) == 1


def test_every_table_has_its_constraints(lake: Lake) -> None:
    for contract in TABLES.values():
        configuration = lake.open(contract).metadata().configuration
        assert {f"delta.constraints.{name}" for name in contract.constraints} <= set(configuration)


def lose_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The next commit is made, and reported as failed. Returns a list that is empty until then."""
    commit_for_real = DeltaTable.create_write_transaction
    lost: list[int] = []

    def commit_and_lose_the_answer(self: DeltaTable, *args: Any, **options: Any) -> None:
        commit_for_real(self, *args, **options)
        if not lost:
            lost.append(1)
            raise CommitFailedError("the store's answer did not arrive")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit_and_lose_the_answer)
    return lost


def test_a_commit_whose_answer_was_lost_is_found_again_and_none_of_its_files_deleted(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = lose_the_first_answer(monkeypatch)
    commit(lake, "2026-11-18", [1, 2])
    assert lost
    assert committed(lake) == {("2026-11-18", 1), ("2026-11-18", 2)}


def test_a_run_that_found_nothing_counts_as_one_that_committed(lake: Lake) -> None:
    """Or the rows of a run that found something would stay, beside what the first run committed to other tables."""
    replace_partition(lake, PIN_EMBEDDINGS, day("2026-11-18"), [], expected_version=0, run_id="found nothing")
    ours = stage(lake, "2026-11-18", [1])
    with pytest.raises(DayChangedError):
        replace_partition(lake, PIN_EMBEDDINGS, day("2026-11-18"), ours, expected_version=0, run_id="late")
    assert committed(lake) == set()


def test_a_table_whose_maker_died_before_its_constraints_gets_them(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    DeltaTable.create(
        lake.table_uri(QUARANTINE), Schema.from_arrow(QUARANTINE.schema), partition_by=list(QUARANTINE.partition_by)
    )
    wanted = {f"delta.constraints.{name}": expression for name, expression in QUARANTINE.constraints.items()}
    assert wanted.items() <= lake.open(QUARANTINE).metadata().configuration.items()
    assert lake.open(QUARANTINE).version() == len(wanted)
