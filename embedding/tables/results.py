"""Answers of SQL as text or files: a table for people, CSV and JSON lines for programs, Parquet. Streams but for the table."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("table", "csv", "json", "parquet")
CELL_CHARS, LIST_VALUES = 60, 4


def first_rows(batches: Iterable[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows; no batch after them is asked for."""
    left = math.inf if limit is None else limit
    for batch in batches:
        if left <= 0:
            return
        yield batch if batch.num_rows <= left else batch.slice(0, int(left))
        left -= batch.num_rows


def values(batches: Iterable[pa.RecordBatch]) -> Iterator[list[Any]]:
    """Rows, a list a row, of what JSON has."""
    for batch in batches:
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield [_plain(value) for value in row]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):  # what DuckDB makes of a sum of whole numbers
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def shown(value: Any) -> Any:
    """A value as a table's cell: a long text is cut, of a long list the first values and the length are told."""
    if isinstance(value, list):
        some = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(shown(v)) for v in value[:LIST_VALUES])
        return f"[{some}]" if len(value) <= LIST_VALUES else f"[{some}, … {len(value)} values]"
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and len(value) > CELL_CHARS:
        return value[: CELL_CHARS - 1] + "…"
    return value


def table_rows(batches: Iterable[pa.RecordBatch], limit: int) -> tuple[list[list[Any]], bool]:
    """The first rows as cells, and whether there are more."""
    rows = list(itertools.islice(values(first_rows(batches, limit + 1)), limit + 1))
    return [[shown(value) for value in row] for row in rows[:limit]], len(rows) > limit


def write_text(form: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], file: IO[str]) -> None:
    """CSV with a head, lists as JSON in it; or JSON, an object a line."""
    if form == "json":
        for row in values(batches):
            file.write(json.dumps(dict(zip(schema.names, row, strict=True)), ensure_ascii=False) + "\n")
        return
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(schema.names)
    for row in values(batches):
        writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict | bool) else v for v in row])


def write_parquet(schema: pa.Schema, batches: Iterable[pa.RecordBatch], file: IO[bytes]) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def write_file(form: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> None:
    """The whole answer in a file, which is there when it is whole. Raises OSError where it cannot be."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if form == "parquet":
            with unfinished.open("wb") as binary:
                write_parquet(schema, batches, binary)
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as text:
                write_text(form, schema, batches, text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
