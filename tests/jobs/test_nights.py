"""Nights on real pictures through Spark: nothing lost, nothing twice, nothing encoded again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.days import DEMO_DAYS, EXPECTED_QUARANTINE, Day
from embedding.contracts import EXPORT_SCHEMAS, NIGHTS, PIN_EMBEDDINGS, PINS, QUARANTINE, TABLES, TableContract
from embedding.tables.exports import ExportError
from embedding.tables.lake import Lake, data_files, partition_is, partition_version, replace_partition
from embedding.tables.scan import read_rows
from embedding.tables.staging import Stager
from tests.conftest import Exports, RunNight

DAY_1, DAY_2, DAY_3 = DEMO_DAYS

CONTENT = {
    "pins": ("ds", "pin_id", "board_id", "title", "tags", "image_uri", "deleted", "source_sha256"),
    "boards": ("ds", "board_id", "user_id", "title"),
    "saves": ("ds", "user_id", "pin_id", "board_id", "saved_at", "deleted"),
    "pin_embeddings": ("ds", "pin_id", "embedding_version", "content_sha256", "has_image", "has_text"),
    "quarantine": ("ds", "stage", "reason", "pin_id", "detail"),
}
"""What a table says, apart from who wrote it and into which files."""


def rows(lake: Lake, contract: TableContract) -> list[dict[str, Any]]:
    return list(read_rows(lake.open(contract)).to_pylist())


def content(lake: Lake) -> dict[str, list[tuple[str, ...]]]:
    return {
        name: sorted(tuple(str(row[column]) for column in columns) for row in rows(lake, TABLES[name]))
        for name, columns in CONTENT.items()
    }


def night(lake: Lake, run_id: str) -> dict[str, Any]:
    return next(row for row in rows(lake, NIGHTS) if row["run_id"] == run_id)


def count(day: Day, *kinds: str) -> int:
    return sum(len(day.kinds.get(kind, ())) for kind in kinds)


def test_each_night_counts_what_the_platform_did(lake_of_three_nights: Lake, exports: Exports) -> None:
    for day in exports.days:
        found = night(lake_of_three_nights, f"night-{day.ds}")
        assert found["status"] == "passed"
        assert found["landed"] == len(day.pins) - count(day, "deleted") == found["embedded"] + found["quarantined"]
        assert found["deleted"] == count(day, "deleted")
        assert found["changed"] == count(day, "text_edited", "image_edited", "moved", "mended")
        assert 0 < found["encoded"] == found["embedded"] - found["reused"]
        assert found["reused"] >= count(day, "repinned", "moved")


def test_each_bad_row_is_in_quarantine_for_its_reason_and_no_good_one(lake_of_three_nights: Lake) -> None:
    found = Counter((row["ds"], row["reason"]) for row in rows(lake_of_three_nights, QUARANTINE))
    assert found == {(DAY_2, reason): number for reason, number in EXPECTED_QUARANTINE.items()}


def test_each_pin_ends_in_one_place(lake_of_three_nights: Lake) -> None:
    landed = {(row["ds"], row["pin_id"]) for row in rows(lake_of_three_nights, PINS) if not row["deleted"]}
    embedded = [(row["ds"], row["pin_id"]) for row in rows(lake_of_three_nights, PIN_EMBEDDINGS)]
    rejected = {(row["ds"], row["pin_id"]) for row in rows(lake_of_three_nights, QUARANTINE) if row["stage"] == "embed"}
    assert len(embedded) == len(set(embedded))
    assert set(embedded) | rejected == landed
    assert not set(embedded) & rejected


def test_a_content_is_encoded_once_whoever_shows_it_and_whenever(lake_of_three_nights: Lake) -> None:
    by_content: dict[str, list[dict[str, Any]]] = {}
    for row in rows(lake_of_three_nights, PIN_EMBEDDINGS):
        by_content.setdefault(row["content_sha256"], []).append(row)
    encoded = sum(row["encoded"] for row in rows(lake_of_three_nights, NIGHTS))
    assert encoded == len(by_content) < sum(map(len, by_content.values()))
    for shown in by_content.values():
        assert len({tuple(row["embedding"]) for row in shown}) == 1
        assert len({row["encoded_by"] for row in shown}) == 1
        assert shown[0]["encoded_by"] in {f"night-{ds}" for ds in DEMO_DAYS}


def test_vectors_are_unit_float32_and_tell_pictures_apart(lake_of_three_nights: Lake) -> None:
    table = read_rows(lake_of_three_nights.open(PIN_EMBEDDINGS), ["embedding"])
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert vectors.shape[1] == 256
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    distinct = np.unique(vectors.round(4), axis=0)
    similarity = distinct @ distinct.T
    assert np.median(similarity[~np.eye(len(distinct), dtype=bool)]) < 0.8


def test_a_deletion_keeps_nothing_but_the_id(lake_of_three_nights: Lake) -> None:
    deletions = [row for row in rows(lake_of_three_nights, PINS) if row["deleted"]]
    assert deletions
    for row in deletions:
        assert [row[name] for name in ("title", "description", "tags", "image_uri", "user_id", "board_id")] == [None] * 6


def test_a_rerun_changes_no_row_and_encodes_nothing(lake_of_three_nights: Lake, run_night: RunNight, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "copy"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    data_tables = [TABLES[name] for name in CONTENT]
    before = [lake.open(contract).version() for contract in data_tables]
    assert run_night(lake, DAY_2, "rerun") == 0
    assert [lake.open(contract).version() for contract in data_tables] == before
    first, again = night(lake, f"night-{DAY_2}"), night(lake, "rerun")
    assert (again["encoded"], again["reused"]) == (0, first["embedded"])
    assert [again[n] for n in ("landed", "deleted", "quarantined")] == [first[n] for n in ("landed", "deleted", "quarantined")]


def test_days_in_any_order_end_in_the_same_tables(lake_of_three_nights: Lake, run_night: RunNight, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for ds in (DAY_3, DAY_1, DAY_2):
        assert run_night(lake, ds, f"backfill-{ds}") == 0
    assert content(lake) == content(lake_of_three_nights)


def test_a_changed_export_replaces_the_day_and_encodes_only_the_change(
    lake_of_three_nights: Lake, exports: Exports, run_night: RunNight, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "copy"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    folder = tmp_path / "exports" / f"ds={DAY_3}"
    shutil.copytree(exports.folder / f"ds={DAY_3}", folder)
    pins = pq.read_table(folder / "pins").to_pylist()
    live = [pin for pin in pins if not pin["deleted"]]
    dropped = live.pop()["pin_id"]
    live[0]["title"] = "a title that nobody has used before"
    schema = pa.schema([field.with_nullable(True) for field in EXPORT_SCHEMAS["pins"]])
    pq.write_table(pa.Table.from_pylist(live, schema=schema), folder / "pins" / "part-0.parquet")
    assert run_night(lake, DAY_3, "corrected", folder=tmp_path / "exports") == 0
    corrected = night(lake, "corrected")
    assert (corrected["landed"], corrected["deleted"], corrected["encoded"]) == (len(live), 0, 1)
    assert dropped not in {row["pin_id"] for row in rows(lake, PIN_EMBEDDINGS) if row["ds"] == DAY_3}


def test_a_pin_with_a_vector_and_a_reason_is_settled_anew(
    lake_of_three_nights: Lake, run_night: RunNight, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "copy"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    (version,) = {file.partition["embedding_version"] for file in data_files(lake.open(PIN_EMBEDDINGS))}
    where = partition_is(ds=DAY_1, embedding_version=version)
    row: dict[str, Any] = read_rows(lake.open(PIN_EMBEDDINGS), None, where).to_pylist()[0]
    partition = {"ds": DAY_1, "stage": "embed", "embedding_version": version}
    bad = row | {"entity": "pin", "reason": "fetch_failed", "detail": "for a moment", "image_uri": None}
    with Stager(lake.table_uri(QUARANTINE), QUARANTINE, partition) as stager:
        stager.add(pa.Table.from_pylist([{n: bad.get(n) for n in QUARANTINE.file_schema.names}]))
        stager.flush()
    seen = partition_version(lake.open(QUARANTINE), partition)
    replace_partition(lake, QUARANTINE, partition, stager.files, expected_version=seen, run_id="late")
    assert run_night(lake, DAY_1, "second") == 0
    assert read_rows(lake.open(QUARANTINE), ["pin_id"], partition_is(**partition)).num_rows == 0


def test_a_night_that_fails_its_gate_says_why_and_is_not_released(
    lake_of_three_nights: Lake, run_night: RunNight, tmp_path: Path
) -> None:
    from embedding.index.release import ReleaseError
    from jobs import build_index

    lake = Lake(str(tmp_path / "copy"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    shutil.rmtree(lake.table_uri(NIGHTS))
    assert run_night(lake, DAY_2, "bad", min_coverage=0.999) == 3
    failed = night(lake, "bad")
    assert failed["status"] == "failed"
    assert "coverage" in failed["failures"][0]
    with pytest.raises(ReleaseError, match="no night has passed its gate"):
        build_index.main(["--home", lake.home, "--ds", DAY_2, "--run-id", "bad"])


def test_a_day_without_an_export_is_refused_by_name(run_night: RunNight, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no export of 2026-12-24: the folder"):
        run_night(Lake(str(tmp_path)), "2026-12-24", "none")
