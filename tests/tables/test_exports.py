"""What landing makes of exports that are not as they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.contracts import EXPORT_SCHEMAS, Reason
from embedding.tables.exports import ExportError, find_export, judge_rows, read_export_file

PIN = {"pin_id": 1, "board_id": 2, "user_id": 3, "image_uri": "file:///a.png", "title": "A cat"}


def write(folder: Path, entity: str, table: pa.Table, ds: str = "2026-11-18", *, marker: bool = True) -> Path:
    path = folder / f"ds={ds}" / entity / "part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    if marker:
        (path.parent.parent / "_SUCCESS").touch()
    return path


def judged(folder: Path, table: pa.Table) -> list[dict[str, Any]]:
    path = write(folder, "pins", table)
    find_export(str(folder), "2026-11-18")
    return [row for batch in read_export_file("pins", str(path)) for row in judge_rows("pins", batch).to_pylist()]


def test_a_day_without_export_marker_or_pins_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no export of 2026-11-18: the folder .*ds=2026-11-18 does not exist"):
        find_export(str(tmp_path), "2026-11-18")
    write(tmp_path, "boards", pa.table({"board_id": [1], "user_id": [1]}), marker=False)
    with pytest.raises(ExportError, match="not finished"):
        find_export(str(tmp_path), "2026-11-18")
    write(tmp_path, "boards", pa.table({"board_id": [1], "user_id": [1]}))
    with pytest.raises(ExportError, match="has no pins"):
        find_export(str(tmp_path), "2026-11-18")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"pin_id": [1], "board_id": [1], "user_id": [1]}), "column image_uri missing"),
        (pa.table({**{k: [v] for k, v in PIN.items()}, "pin_id": ["one"]}), "column pin_id is string; .* says int64"),
        (pa.table({**{k: [v] for k, v in PIN.items()}, "tags": ["a, b"]}), "column tags is string; .* says list<"),
        (pa.table({**{k: [v] for k, v in PIN.items()}, "pin_id": pa.array([1.5])}), "column pin_id is double"),
    ],
)
def test_a_file_of_a_wrong_shape_is_named_with_what_is_wrong(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = write(tmp_path, "pins", table)
    with pytest.raises(ExportError, match=message) as error:
        find_export(str(tmp_path), "2026-11-18")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>not found</html>"])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, "pins", pa.table({"pin_id": [1]}))
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not a readable Parquet file"):
        find_export(str(tmp_path), "2026-11-18")


def test_a_value_too_large_for_its_column_is_an_error_not_a_wrong_id(tmp_path: Path) -> None:
    table = pa.table({**{k: [v] for k, v in PIN.items()}, "pin_id": pa.array([2**63], pa.uint64())})
    with pytest.raises(ExportError, match="pin_id holds values that are no int64"):
        judged(tmp_path, table)


def test_optional_columns_may_be_missing_and_narrow_types_are_widened(tmp_path: Path) -> None:
    table = pa.table({**{k: [v] for k, v in PIN.items()}, "pin_id": pa.array([1], pa.int32())})
    (row,) = judged(tmp_path, table)
    assert row["reason"] is None
    assert (row["pin_id"], row["tags"], row["deleted"]) == (1, None, False)


def test_each_bad_row_gets_its_reason_and_the_good_ones_none(tmp_path: Path) -> None:
    rows: list[tuple[dict[str, Any], Reason | None]] = [
        (PIN, None),
        ({**PIN, "pin_id": None}, Reason.NULL_ID),
        ({**PIN, "board_id": None}, Reason.NULL_ID),
        ({**PIN, "title": "x" * 100_000}, Reason.TEXT_TOO_LONG),
        ({**PIN, "tags": ["tag"] * 50_000}, Reason.TEXT_TOO_LONG),
        ({**PIN, "title": "a\x00b"}, Reason.INVALID_TEXT),
        ({**PIN, "title": None, "image_uri": None}, Reason.EMPTY_PIN),
        ({**PIN, "title": " \n", "image_uri": ""}, Reason.EMPTY_PIN),
        ({**PIN, "image_uri": None}, None),
        ({**PIN, "title": None}, None),
        ({"pin_id": 9, "deleted": True}, None),
        ({**PIN, "title": "😀 " * 5_000 + "اللغة"}, None),
    ]
    schema = pa.schema([field.with_nullable(True) for field in EXPORT_SCHEMAS["pins"]])
    found = judged(tmp_path, pa.Table.from_pylist([row for row, _ in rows], schema=schema))
    assert [row["reason"] for row in found] == [reason for _, reason in rows]
    assert all(bool(row["detail"]) == bool(row["reason"]) for row in found)


def test_bytes_that_are_no_utf8_quarantine_their_row_alone(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        2, pa.array([0, 2, 5], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfecat"), None, 0, 0
    )
    table = pa.table({"pin_id": [1, 2], "board_id": [1, 1], "user_id": [1, 1], "image_uri": ["a", "b"], "title": broken})
    found = judged(tmp_path, table)
    assert [(row["reason"], row["title"] == "cat") for row in found] == [(Reason.INVALID_TEXT, False), (None, True)]


def test_only_what_the_encoder_could_see_changes_the_source_hash(tmp_path: Path) -> None:
    variants = [PIN, {**PIN, "board_id": 77}, {**PIN, "title": "A  cat "}, {**PIN, "title": "A dog"}]
    first, moved, spaced, edited = (row["source_sha256"] for row in judged(tmp_path, pa.Table.from_pylist(variants)))
    assert first == moved == spaced
    assert edited != first
