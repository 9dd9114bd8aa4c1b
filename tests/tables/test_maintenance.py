"""Upkeep of tables: no row changes, whatever happens meanwhile; look-ups open one file; what somebody needs stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.days import DEMO_DAYS
from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, TABLES, TableContract
from embedding.index.release import ReleaseError, live_release_id, read_manifest, read_pointer
from embedding.tables.lake import Lake, data_files, partition_is, partition_version, replace_partition
from embedding.tables.maintenance import (
    commit_rewrites,
    keep_log_short,
    log_files,
    plan_rewrites,
    readable_versions,
    set_retention,
    stage_part,
    stage_rewrite,
    vacuum,
)
from embedding.tables.scan import read_rows
from jobs.step_statistics import StepStatistics
from tests.conftest import REPO, RunNight
from tests.small_release import point_at
from tests.tables.test_lake import commit, committed, day, lose_the_first_answer, stage

DAY, NEXT = "2026-11-18", "2026-11-19"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / "a home"))
    lake.open(PIN_EMBEDDINGS)
    return lake


def commit_small_files(lake: Lake, ds: str, pin_ids: Iterable[int], rows_a_file: int = 4) -> None:
    """A night whose tasks each wrote a small file of pins from everywhere."""
    seen = partition_version(lake.open(PIN_EMBEDDINGS), day(ds))
    staged = stage(lake, ds, list(pin_ids), max_rows=rows_a_file)
    replace_partition(lake, PIN_EMBEDDINGS, day(ds), staged, expected_version=seen, run_id="night")


def compact(lake: Lake, contract: TableContract = PIN_EMBEDDINGS) -> int:
    """Rewrites what needs it; returns how many partitions gave way."""
    root = lake.table_uri(contract)
    staged = [(rewrite, stage_rewrite(root, contract, rewrite)) for rewrite in plan_rewrites(lake, contract)]
    return len(commit_rewrites(lake, contract, staged, run_id="maintenance"))


def on_disk(lake: Lake, contract: TableContract = PIN_EMBEDDINGS) -> set[Path]:
    return {path for path in Path(lake.table_uri(contract)).rglob("*.parquet") if "_delta_log" not in path.parts}


def make_older(paths: Iterable[Path], age: timedelta) -> None:
    for path in paths:
        os.utime(path, (time.time() - age.total_seconds(),) * 2)


def rows_of(lake: Lake, contract: TableContract, version: int | None = None) -> pa.Table:
    table = read_rows(lake.open(contract, version))
    keys = [(name, "ascending") for name in (*contract.key, "run_id") if name in table.column_names]
    return table.sort_by(keys)


def opened(lake: Lake, pin_id: int) -> tuple[int, int]:
    """Files, and row groups in them, whose statistics a look-up of the pin cannot rule out: what a reader opens."""
    actions = pa.table(lake.open(PIN_EMBEDDINGS).get_add_actions(flatten=True)).to_pylist()
    paths = [row["path"] for row in actions if row["min.pin_id"] <= pin_id <= row["max.pin_id"]]
    groups = 0
    for path in paths:
        footer = pq.read_metadata(f"{lake.table_uri(PIN_EMBEDDINGS)}/{path}")
        ranges = [footer.row_group(group).column(0).statistics for group in range(footer.num_row_groups)]
        groups += sum(1 for found in ranges if found.min <= pin_id <= found.max)
    return len(paths), groups


def test_small_files_become_one_in_the_order_of_ids_and_no_row_changes(lake: Lake) -> None:
    pins = [number * 7919 % 1000 for number in range(40)]
    commit_small_files(lake, DAY, pins)
    commit_small_files(lake, NEXT, [1, 2])
    before, whole = rows_of(lake, PIN_EMBEDDINGS), lake.open(PIN_EMBEDDINGS).version()
    assert opened(lake, sorted(pins)[20])[0] > 5
    assert [rewrite.name for rewrite in plan_rewrites(lake, PIN_EMBEDDINGS)] == [
        f"embedding_version={day(DAY)['embedding_version']}/ds={DAY}"
    ]
    assert compact(lake) == 0
    assert rows_of(lake, PIN_EMBEDDINGS).equals(before) and rows_of(lake, PIN_EMBEDDINGS, whole).equals(before)
    assert all(opened(lake, pin) == (1, 1) for pin in pins)
    assert len(data_files(lake.open(PIN_EMBEDDINGS))) == 2
    assert plan_rewrites(lake, PIN_EMBEDDINGS) == [], "what was rewritten is not rewritten again"
    entry = Path(lake.table_uri(PIN_EMBEDDINGS), "_delta_log", f"{lake.open(PIN_EMBEDDINGS).version():020d}.json").read_text()
    changes = [next(iter(json.loads(line).values())) for line in entry.splitlines()]
    assert {action["dataChange"] for action in changes if "dataChange" in action} == {False}


def test_a_night_between_plan_and_commit_wins_and_the_rewrite_gives_way(lake: Lake) -> None:
    commit_small_files(lake, DAY, range(20))
    commit_small_files(lake, NEXT, range(20))
    root = lake.table_uri(PIN_EMBEDDINGS)
    staged = [(rewrite, stage_rewrite(root, PIN_EMBEDDINGS, rewrite)) for rewrite in plan_rewrites(lake, PIN_EMBEDDINGS)]
    commit(lake, DAY, [100, 101])
    gave_way = commit_rewrites(lake, PIN_EMBEDDINGS, staged, run_id="maintenance")
    assert [rewrite.partition["ds"] for rewrite in gave_way] == [DAY]
    assert committed(lake) == {(DAY, 100), (DAY, 101)} | {(NEXT, pin) for pin in range(20)}
    assert not {path for path in on_disk(lake) if path.name in {Path(file.path).name for file in staged[0][1]}}


def test_a_rewrite_whose_answer_was_lost_is_found_again_and_none_of_its_files_deleted(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_small_files(lake, DAY, range(40))
    before = rows_of(lake, PIN_EMBEDDINGS)
    lost = lose_the_first_answer(monkeypatch)
    assert compact(lake) == 0
    assert lost
    assert rows_of(lake, PIN_EMBEDDINGS).equals(before)
    assert len(data_files(lake.open(PIN_EMBEDDINGS))) == 1


def test_a_night_that_planned_before_the_rewrite_replaces_its_files_and_encodes_nothing_again(lake: Lake) -> None:
    commit_small_files(lake, DAY, range(20))
    seen = partition_version(lake.open(PIN_EMBEDDINGS), day(DAY))
    night = stage(lake, DAY, [100, 101])
    assert compact(lake) == 0
    replace_partition(lake, PIN_EMBEDDINGS, day(DAY), night, expected_version=seen, run_id="night")
    assert committed(lake) == {(DAY, 100), (DAY, 101)}


def test_nights_and_rewrites_side_by_side_lose_and_double_nothing(lake: Lake) -> None:
    days = [f"2026-11-{number:02d}" for number in range(1, 5)]
    errors: list[Exception] = []
    done = threading.Event()

    def nights(ds: str) -> None:
        try:
            for generation in range(6):
                commit_small_files(lake, ds, range(generation * 10, generation * 10 + 8), rows_a_file=2)
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    def rewrites() -> None:
        try:
            while not done.is_set():
                compact(lake)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=nights, args=(ds,)) for ds in days]
    upkeep = [threading.Thread(target=rewrites) for _ in range(2)]
    for thread in threads + upkeep:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in upkeep:
        thread.join()
    assert not errors
    assert committed(lake) == {(ds, pin) for ds in days for pin in range(50, 58)}
    assert compact(lake) == 0 and len(data_files(lake.open(PIN_EMBEDDINGS))) == len(days)
    assert committed(lake) == {(ds, pin) for ds in days for pin in range(50, 58)}
    history = [entry for entry in lake.open(PIN_EMBEDDINGS).history() if "maintenance" in entry]
    assert history, "rewrites were among the commits"


def test_vacuum_deletes_old_orphans_and_superseded_files_and_keeps_what_somebody_needs(lake: Lake) -> None:
    for pins in ([1], [2], [3]):
        commit(lake, DAY, pins)
    kept = lake.open(PIN_EMBEDDINGS).version() - 1
    old = {Path(lake.table_uri(PIN_EMBEDDINGS), file.path) for file in stage(lake, DAY, [98])}
    staged_now = {Path(lake.table_uri(PIN_EMBEDDINGS), file.path) for file in stage(lake, DAY, [99])}
    make_older(on_disk(lake) - staged_now, timedelta(hours=30))

    def look(retention_hours: int, dry_run: bool = True) -> tuple[int, int]:
        deleted = vacuum(lake, PIN_EMBEDDINGS, [kept], retention_hours, dry_run=dry_run)
        return deleted.files, deleted.orphans

    assert look(24) == (1, 1), "files that were in the table an hour ago stay, however old they are"
    assert look(48) == (0, 0)
    before = on_disk(lake)
    assert look(24, dry_run=False) == (1, 1)
    assert before - on_disk(lake) == old
    assert look(0, dry_run=False) == (2, 1), "the first commit's file, and what was staged just now"
    assert look(0) == (0, 0)
    assert [read_rows(lake.open(PIN_EMBEDDINGS, version))["pin_id"].to_pylist() for version in (kept, None)] == [[2], [3]]
    with pytest.raises(FileNotFoundError):
        read_rows(lake.open(PIN_EMBEDDINGS, kept - 1))


def test_a_retention_of_more_than_a_week_outlives_a_checkpoint(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(lake, DAY, [1])
    set_retention(lake, PIN_EMBEDDINGS, 24 * 30)
    ten_days_ago = time.time() - 10 * 86_400
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: ten_days_ago)
        commit(lake, DAY, [2])
    make_older(on_disk(lake), timedelta(days=60))
    keep_log_short(lake, PIN_EMBEDDINGS, [])
    assert vacuum(lake, PIN_EMBEDDINGS, [], 24 * 30, dry_run=True).files == 0
    assert vacuum(lake, PIN_EMBEDDINGS, [], 24 * 9, dry_run=True).files == 1


def test_the_log_is_cleaned_up_to_what_is_kept_and_keeps_the_numbers_of_days(lake: Lake) -> None:
    for pin in range(8):
        commit(lake, DAY, [pin])
    kept = 6
    log = Path(lake.table_uri(PIN_EMBEDDINGS), "_delta_log")
    make_older(log.glob("*.json"), timedelta(days=100))
    later = datetime.now(UTC) + timedelta(days=100)
    keep_log_short(lake, PIN_EMBEDDINGS, [kept], now=later)
    assert len(list(log.glob("*.json"))) == 10, "the kept version's entries have expired: all stay"
    assert readable_versions(lake, PIN_EMBEDDINGS, range(10)) == list(range(10))
    keep_log_short(lake, PIN_EMBEDDINGS, [])
    assert readable_versions(lake, PIN_EMBEDDINGS, [*range(10)]) == [9], "the checkpoint's version and what follows"
    assert partition_version(lake.open(PIN_EMBEDDINGS), day(DAY)) == 8
    commit(lake, DAY, [100])
    assert committed(lake) == {(DAY, 100)}


def test_nights_do_not_clean_the_log_and_older_tables_are_told(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.open(PIN_EMBEDDINGS).alter.set_table_properties({"delta.enableExpiredLogCleanup": "true"})
    set_retention(lake, PIN_EMBEDDINGS, 168)
    version = lake.open(PIN_EMBEDDINGS).version()
    lake.open(PIN_EMBEDDINGS).alter.set_table_properties({"delta.checkpointInterval": "2"})
    set_retention(lake, PIN_EMBEDDINGS, 168)
    assert lake.open(PIN_EMBEDDINGS).version() == version + 1, "a table that knows is left alone"
    log = Path(lake.table_uri(PIN_EMBEDDINGS), "_delta_log")
    make_older(log.glob("*.json"), timedelta(days=100))
    for pin in range(4):
        commit(lake, DAY, [pin])
    assert list(log.glob("*.checkpoint.parquet"))
    assert readable_versions(lake, PIN_EMBEDDINGS, range(version + 6)) == list(range(version + 6))


# -- the program, on a lake that nights have filled -------------------------------------------------------------------------


def run_program(lake: Lake, *args: str) -> dict[str, Any]:
    """Runs the program in this process; returns what it says it did, by table."""
    from jobs import maintain_tables

    maintain_tables.main(["--home", lake.home, "--run-id", "upkeep", *args])
    return dict(StepStatistics.read(lake, "maintenance", "upkeep", "maintain")["tables"])


def tear(lake: Lake, ds: str, rows_a_file: int) -> None:
    """The day's vectors in files of a few pins from everywhere, as many tasks write them."""
    where = partition_is(ds=ds)
    partition = data_files(lake.open(PIN_EMBEDDINGS), where)[0].partition
    rows = read_rows(lake.open(PIN_EMBEDDINGS), where=where)
    files = -(-rows.num_rows // rows_a_file)
    root, staged = lake.table_uri(PIN_EMBEDDINGS), []
    for first in range(files):
        some = rows.take(list(range(first, rows.num_rows, files)))
        staged += stage_part(root, PIN_EMBEDDINGS, partition, some.to_batches())
    seen = partition_version(lake.open(PIN_EMBEDDINGS), partition)
    replace_partition(lake, PIN_EMBEDDINGS, partition, staged, expected_version=seen, run_id="torn")


@pytest.fixture(scope="module")
def released(released_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with a live release, whose days have been written again since, in small files."""
    lake = Lake(str(tmp_path_factory.mktemp("torn") / "lake"))
    shutil.copytree(released_lake.home, lake.home)
    for ds in DEMO_DAYS:
        tear(lake, ds, rows_a_file=4)
    return lake


def test_the_program_leaves_every_row_and_the_live_release(released: Lake, run_night: RunNight, tmp_path: Path) -> None:
    from jobs import check_index

    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(released.home, lake.home)
    orphans = {Path(lake.table_uri(PIN_EMBEDDINGS), file.path) for file in stage(lake, NEXT, [1])}
    before = {contract.name: rows_of(lake, contract) for contract in TABLES.values()}
    files = {contract.name: on_disk(lake, contract) for contract in TABLES.values()}
    logs = {contract.name: log_files(lake, contract) for contract in TABLES.values()}
    pins = before["pin_embeddings"]["pin_id"].to_pylist()
    assert max(opened(lake, pin)[0] for pin in pins) > 2 * len(DEMO_DAYS)

    said = run_program(lake, "--retention-hours", "0", "--rows-a-file", "16", "--dry-run")
    assert files == {contract.name: on_disk(lake, contract) for contract in TABLES.values()}
    assert logs == {contract.name: log_files(lake, contract) for contract in TABLES.values()}
    assert said["pin_embeddings"]["rewritten"] == 3 and said["pin_embeddings"]["deleted"]["orphans"] == 1

    done = run_program(lake, "--retention-hours", "0", "--rows-a-file", "16")
    for contract in TABLES.values():
        assert rows_of(lake, contract).equals(before[contract.name]), contract.name
    told = done["pin_embeddings"]
    assert told["rewritten"] == 3 and told["gave_way"] == 0
    assert told["files_after"] == len(data_files(lake.open(PIN_EMBEDDINGS))) < told["files_before"] // 2
    assert told["deleted"]["orphans"] == 1 and not orphans & on_disk(lake)
    assert len(files["pin_embeddings"] - on_disk(lake)) == told["deleted"]["files"]
    assert max(opened(lake, pin) for pin in pins) <= (len(DEMO_DAYS), len(DEMO_DAYS)), "a file a day, a row group in it"
    assert len(data_files(lake.open(NIGHTS))) == 1
    found = pl.scan_delta(lake.table_uri(PIN_EMBEDDINGS)).filter(pl.col("pin_id") == pins[0]).collect()
    assert found.height == pins.count(pins[0])

    live = read_manifest(lake, str(live_release_id(lake)))
    assert list(told["protected"].values()) == [[f"release {live.release_id} (live)"]]
    assert rows_of(lake, PIN_EMBEDDINGS, live.pin_embeddings_version).num_rows == len(pins)

    again = run_program(lake, "--retention-hours", "0", "--rows-a-file", "16")
    assert {(table["rewritten"], table["deleted"]["files"]) for table in again.values()} == {(0, 0)}
    assert check_index.main(["--home", lake.home, "--run-id", "first"]) == 0, "reads the tables as the release saw them"
    assert run_night(lake, DEMO_DAYS[1], "rerun") == 0
    assert rows_of(lake, PIN_EMBEDDINGS).equals(before["pin_embeddings"]), "a rerun finds the day settled"


def test_a_night_killed_while_staging_leaves_an_orphan_that_only_its_age_condemns(released: Lake, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(released.home, lake.home)
    before = on_disk(lake)
    program = (
        "import sys, time\n"
        "from embedding.contracts import PIN_EMBEDDINGS\n"
        "from embedding.tables.lake import Lake\n"
        "from embedding.tables.maintenance import plan_rewrites, stage_rewrite\n"
        "lake = Lake(sys.argv[1])\n"
        "for rewrite in plan_rewrites(lake, PIN_EMBEDDINGS):\n"
        "    stage_rewrite(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, rewrite)\n"
        "print('staged', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, lake.home], cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "staged\n"
        process.kill()
    orphans = on_disk(lake) - before
    assert len(orphans) == 3
    rows = rows_of(lake, PIN_EMBEDDINGS)
    assert vacuum(lake, PIN_EMBEDDINGS, [], 24, dry_run=False).files == 0, "for all that vacuum knows, a night is staging them"
    make_older(orphans, timedelta(hours=25))
    assert vacuum(lake, PIN_EMBEDDINGS, [], 24, dry_run=False).orphans == 3
    assert on_disk(lake) == before and rows_of(lake, PIN_EMBEDDINGS).equals(rows)


def test_releases_that_the_pointer_names_are_protected_whatever_their_age(released: Lake, tmp_path: Path) -> None:
    from jobs.maintain_tables import versions_in_use

    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(released.home, lake.home)
    live = read_manifest(lake, str(live_release_id(lake)))
    recent = replace(live, release_id="2026-11-21-000000000000", pins_version=2, pin_embeddings_version=3)
    other = Path(lake.releases_uri, recent.release_id, "manifest.json")
    other.parent.mkdir()
    other.write_bytes(recent.to_json())
    long_ago, later = datetime(2026, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)
    assert set(versions_in_use(lake, long_ago)["pin_embeddings"]) == {3, live.pin_embeddings_version}
    assert set(versions_in_use(lake, later)["pin_embeddings"]) == {live.pin_embeddings_version}
    pointer = read_pointer(lake)
    assert pointer is not None
    point_at(lake, replace(pointer, cut_over_release=recent.release_id))
    assert set(versions_in_use(lake, later)["pins"]) == {2, live.pins_version}

    files = on_disk(lake)
    other.write_text("{")
    with pytest.raises(ReleaseError, match="not a release manifest"):
        run_program(lake, "--retention-hours", "0")
    assert on_disk(lake) == files, "what cannot be read may need anything: nothing is touched"
