"""Days of a platform of a few rows, for tests that say what happens on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedding.contracts import EXPORT_SCHEMAS, SUCCESS_MARKER, export_day_folder

Row = dict[str, Any]


def at(ds: str) -> datetime:
    """Noon of a day."""
    return datetime.fromisoformat(ds).replace(hour=12, tzinfo=UTC)


def pin(ds: str, pin_id: int | None, user: int, board: int, title: str | None, **other: Any) -> Row:
    row = {"pin_id": pin_id, "user_id": user, "board_id": board, "title": title, "image_uri": None}
    return row | {"created_at": at(ds), "updated_at": at(ds)} | other


def save(ds: str, user: int, pin_id: int, board: int, **other: Any) -> Row:
    return {"user_id": user, "pin_id": pin_id, "board_id": board, "saved_at": at(ds)} | other


def write_day(exports: Path, ds: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """A day's export; `pins` has a file, if only of no rows, and what is not named has none."""
    folder = Path(export_day_folder(str(exports), ds))
    for entity in sorted({"pins", *rows}):
        (folder / entity).mkdir(parents=True, exist_ok=True)
        schema = pa.schema([field.with_nullable(True) for field in EXPORT_SCHEMAS[entity]])
        pq.write_table(pa.Table.from_pylist(list(rows.get(entity, [])), schema), folder / entity / "part-0.parquet")
    (folder / SUCCESS_MARKER).touch()
