"""Days side by side, in real processes on one lake: four backfilled ones, two at a time, beside tonight's, which two runs do
at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo.airflow import LAPTOP_SPARK_CONF
from demo.days import DEMO_DAYS
from embedding.contracts import BOARDS, NIGHTS, PIN_EMBEDDINGS, PINS, QUARANTINE, SAVES, TABLES, TableContract
from embedding.tables.lake import Lake, data_files, partition_is, partition_version
from embedding.tables.scan import read_rows
from tests.conftest import REPO, Exports

pytestmark = pytest.mark.timeout(900)

DAY_1, TONIGHT, _ = DEMO_DAYS
BACKFILLED = ("2026-11-14", "2026-11-15", "2026-11-16", "2026-11-17")
PINS_A_DAY = 10

NIGHTS_IN_TURN = """
import logging, sys
from jobs import check_night, embed_pins, land_exports
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
exports, home, *runs = sys.argv[1:]
for run_id, ds in (run.split("=") for run in runs):
    common = ["--home", home, "--ds", ds, "--run-id", run_id]
    land_exports.main([*common, "--exports", exports])
    embed_pins.main(common)
    if status := check_night.main([*common, "--min-coverage", "0.1"]):
        sys.exit(status)
"""
"""The three programs of one night or more in one process, which starts Spark and loads the encoder once."""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    status: int
    output: str


def run_at_once(lake: Lake, exports: Path, processes_of: Mapping[str, Mapping[str, str]], folder: Path) -> dict[str, Ended]:
    """Processes, by name, at the same time, each with its nights in turn (day by run's id); when this returns or raises, none
    of them is left."""
    conf = " ".join(f"--conf '{name}={value}'" for name, value in LAPTOP_SPARK_CONF.items())
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_SUBMIT_ARGS": f"--master 'local[1]' {conf} pyspark-shell",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")])),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, nights in processes_of.items():
            runs = [f"{run_id}={ds}" for run_id, ds in nights.items()]
            command = [sys.executable, "-c", NIGHTS_IN_TURN, str(exports), lake.home, *runs]
            with (folder / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        deadline = time.monotonic() + 600
        statuses = {name: process.wait(deadline - time.monotonic()) for name, process in processes.items()}
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {name: Ended(status, (folder / f"{name}.log").read_text()) for name, status in statuses.items()}


def rows(lake: Lake, contract: TableContract, ds: str, *columns: str) -> list[tuple[Any, ...]]:
    """The day's rows as tuples, in order; each as often as it is there."""
    found = read_rows(lake.open(contract), list(columns), partition_is(ds=ds)).to_pylist()
    return sorted((tuple(row[name] for name in columns) for row in found), key=str)


def vectors(lake: Lake, ds: str | None = None) -> dict[tuple[int, str], tuple[str, Any]]:
    """By pin and source: its content's hash and its vector. Two rows of one key would be a doubled row."""
    where = None if ds is None else partition_is(ds=ds)
    columns = ["pin_id", "source_sha256", "content_sha256", "embedding"]
    found = read_rows(lake.open(PIN_EMBEDDINGS), columns, where).to_pylist()
    by_key = {
        (row["pin_id"], row["source_sha256"]): (row["content_sha256"], np.asarray(row["embedding"], np.float32))
        for row in found
    }
    assert ds is None or len(by_key) == len(found)
    return by_key


def assert_same_vectors(found: Mapping[Any, tuple[str, Any]], wanted: Mapping[Any, tuple[str, Any]]) -> None:
    """The same contents; vectors within 1e-5, since a matrix product rounds by the shape of the batch that it is part of."""
    assert {key: content for key, (content, _) in found.items()} == {key: content for key, (content, _) in wanted.items()}
    for key, (_, vector) in found.items():
        np.testing.assert_allclose(vector, wanted[key][1], atol=1e-5)


def assert_no_file_is_left_over(lake: Lake, contracts: Sequence[TableContract]) -> None:
    for contract in contracts:
        on_disk = set(Path(lake.table_uri(contract)).glob("*=*/**/*.parquet"))
        assert on_disk == {Path(file.uri) for file in data_files(lake.open(contract))}


def export_rows(exports: Path, ds: str, entity: str, column: str) -> list[Any]:
    return sorted(pq.read_table(exports / f"ds={ds}" / entity / "part-0.parquet")[column].to_pylist())


@pytest.fixture
def five_days(exports: Exports, tmp_path: Path) -> Path:
    """Tonight's export and four before it, each with some pins, boards and saves of the demo's first day."""
    folder = tmp_path / "exports"
    shutil.copytree(exports.folder / f"ds={TONIGHT}", folder / f"ds={TONIGHT}")
    for number, ds in enumerate(BACKFILLED):
        shutil.copytree(exports.folder / f"ds={DAY_1}", folder / f"ds={ds}")
        for entity in ("pins", "boards", "saves"):
            file = folder / f"ds={ds}" / entity / "part-0.parquet"
            table = pq.read_table(file)
            pq.write_table(table.slice(number * PINS_A_DAY, PINS_A_DAY), file)
    return folder


def test_four_backfilled_days_beside_two_runs_of_tonight(lake_of_three_nights: Lake, five_days: Path, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    tonight = ("one", "two")
    backfills = {f"backfill-{n}": {f"night-{ds}": ds for ds in BACKFILLED[n::2]} for n in range(2)}
    processes = backfills | {run_id: {run_id: TONIGHT} for run_id in tonight}
    ended = run_at_once(lake, five_days, processes, tmp_path)
    for name, end in ended.items():
        assert end.status == 0, f"{name}: {end.output[-4000:]}"

    alone = vectors(lake_of_three_nights)
    for ds in BACKFILLED:
        exported = export_rows(five_days, ds, "pins", "pin_id")
        landed = rows(lake, PINS, ds, "pin_id", "source_sha256")
        assert [pin_id for pin_id, _ in landed] == sorted(exported, key=lambda pin_id: str((pin_id,)))
        assert_same_vectors(vectors(lake, ds), {key: alone[key] for key in landed})
        assert rows(lake, QUARANTINE, ds, "pin_id") == []
        for contract, key in ((BOARDS, "board_id"), (SAVES, "pin_id")):
            found = [row[0] for row in rows(lake, contract, ds, key)]
            assert sorted(found) == export_rows(five_days, ds, contract.name, key)

    for name, columns in {
        "pins": ("pin_id", "board_id", "title", "tags", "image_uri", "deleted", "source_sha256"),
        "boards": ("board_id", "user_id", "title"),
        "saves": ("user_id", "pin_id", "board_id", "saved_at", "deleted"),
        "quarantine": ("stage", "reason", "pin_id", "detail"),
    }.items():
        assert rows(lake, TABLES[name], TONIGHT, *columns) == rows(lake_of_three_nights, TABLES[name], TONIGHT, *columns)
    assert_same_vectors(vectors(lake, TONIGHT), vectors(lake_of_three_nights, TONIGHT))

    # Of tonight's runs one won, and the other saw it: by finding the work done, or by a refused commit and a second look.
    (version,) = {file.partition["embedding_version"] for file in data_files(lake.open(PIN_EMBEDDINGS))}
    assert partition_version(lake.open(PINS), {"ds": TONIGHT}) == 1
    assert partition_version(lake.open(PIN_EMBEDDINGS), {"embedding_version": version, "ds": TONIGHT}) == 1
    for done in ("has landed already", "nothing to do"):
        assert any(done in ended[run_id].output for run_id in tonight), done

    nights = read_rows(lake.open(NIGHTS), ["run_id", "status"]).to_pylist()
    run_ids = [run_id for runs in processes.values() for run_id in runs]
    assert sorted((row["run_id"], row["status"]) for row in nights) == sorted((run_id, "passed") for run_id in run_ids)
    assert_no_file_is_left_over(lake, (PINS, BOARDS, SAVES, PIN_EMBEDDINGS, QUARANTINE))
