"""The drill's eyes: what it must see on a lake where something went wrong. `python -m benchmarks.drill` does the killing."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.drill_lake import contents, differences, orphans, promises_kept
from benchmarks.drill_processes import DrillError, Running, living, wait_until
from embedding.contracts import PIN_EMBEDDINGS
from embedding.tables.lake import Lake, data_files, partition_version, replace_partition
from embedding.tables.staging import StagedFile, Stager

DAY: dict[str, str | None] = {"embedding_version": "test-0123456789ab", "ds": "2026-11-18"}


def stage(lake: Lake, vectors: dict[int, float]) -> list[StagedFile]:
    rows = [
        {"pin_id": pin, "content_sha256": f"{pin:064x}", "source_sha256": f"{pin:064x}", "embedding": [x, 0.0]}
        | {"has_image": True, "has_text": False, "encoded_by": "run", "run_id": "run"}
        for pin, x in vectors.items()
    ]
    with Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, DAY) as stager:
        stager.add(pa.Table.from_pylist(rows, schema=PIN_EMBEDDINGS.file_schema))
        stager.flush()
    return stager.files


def lake_of(folder: Path, vectors: dict[int, float], *more: StagedFile) -> Lake:
    lake = Lake(str(folder))
    seen = partition_version(lake.open(PIN_EMBEDDINGS), DAY)
    replace_partition(lake, PIN_EMBEDDINGS, DAY, [*stage(lake, vectors), *more], expected_version=seen, run_id="run")
    return lake


@pytest.mark.parametrize(
    "other", [{1: 1.0}, {1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: 0.9}], ids=["lost", "added", "another vector"]
)
def test_a_lake_with_other_rows_is_different(tmp_path: Path, other: dict[int, float]) -> None:
    wanted = contents(lake_of(tmp_path / "a", {1: 1.0, 2: 1.0}))
    assert differences(contents(lake_of(tmp_path / "b", {2: 1.0, 1: 1.0})), wanted) == ([], 0.0)
    assert differences(contents(lake_of(tmp_path / "c", other)), wanted)[0]


def test_a_doubled_row_is_seen(tmp_path: Path) -> None:
    wanted = contents(lake_of(tmp_path / "a", {1: 1.0}))
    twice = Lake(str(tmp_path / "b"))
    twice = lake_of(tmp_path / "b", {1: 1.0}, *stage(twice, {1: 1.0}))
    assert differences(contents(twice), wanted)[0]
    assert "a pin has two vectors of one day and version" in promises_kept(twice)


def test_a_file_without_a_commit_is_an_orphan_and_a_replaced_one_is_not(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, {1: 1.0})
    assert orphans(lake_of(tmp_path, {1: 1.0, 2: 1.0})) == []
    (left,) = stage(lake, {3: 1.0})
    assert [path.name for path in orphans(lake)] == [Path(left.path).name]


def test_a_file_that_the_log_names_and_the_disk_lacks_is_seen(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, {1: 1.0})
    for file in data_files(lake.open(PIN_EMBEDDINGS)):
        Path(file.uri).unlink()
    assert promises_kept(lake) == ["pin_embeddings: the log names 1 files that are gone"]


def test_leaving_a_block_kills_what_was_started_and_what_that_started(tmp_path: Path) -> None:
    child = "subprocess.Popen(['sleep', '600'], process_group=0)"
    program = f"import subprocess, time; {child}; print('up', flush=True); time.sleep(600)"
    with Running(tmp_path / "log", sys.executable, "-c", program) as running:
        wait_until(lambda: "up" in running.output(), "it was up", running)
        session = running.session
        assert len([row for row in living().values() if row.session == session]) == 2
    assert not [row for row in living().values() if row.session == session]


def test_a_program_that_ends_too_early_is_no_success(tmp_path: Path) -> None:
    with Running(tmp_path / "log", sys.executable, "-c", "raise SystemExit('no luck')") as running:
        with pytest.raises(DrillError, match="no luck"):
            wait_until(lambda: False, "something happened", running)
        assert running.wait() not in (0, -signal.SIGKILL)
