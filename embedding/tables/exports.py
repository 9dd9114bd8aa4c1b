"""Reading a day's export (docs/exports.md) and judging its rows. Plain Arrow; the landing job runs it on executors.

A fault of the whole export (no folder, no marker, a missing column, a wrong type) is an ExportError with a message for
people. A fault of a row gives that row a `reason`, and loses nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding.contracts import (
    EXPORT_SCHEMAS,
    MAX_TEXT_CHARS,
    REQUIRED_EXPORT_COLUMNS,
    SUCCESS_MARKER,
    Reason,
    export_day_folder,
    pin_text,
)
from embedding.redaction import shown_address
from embedding.tables import storage

RULES_VERSION = "1"
"""Part of every `export_sha256`: raise it when landing would judge the same export otherwise, so that days land anew."""

ENTITY_OF = {"pins": "pin", "boards": "board", "saves": "save", "users": "user"}
_TEXT_COLUMNS = ("title", "description", "image_uri")
_READ_ROWS = 8_192


class ExportError(ValueError):
    """The export as a whole cannot be landed; the message says which file and what to do."""


@dataclass(frozen=True)
class ExportFile:
    """One Parquet file of an export."""

    entity: str
    uri: str
    size_bytes: int
    num_rows: int


def find_export(exports_uri: str, ds: str) -> list[ExportFile]:
    """The files of day `ds`, their schemas checked from their footers.

    Raises:
        ExportError: There is no folder, no marker, no pins, or a file that does not fit the contract.
    """
    folder = export_day_folder(storage.normalise_uri(exports_uri), ds)
    if not storage.exists(folder):
        raise ExportError(f"no export of {ds}: the folder {folder} does not exist. Write the day there (docs/exports.md).")
    if not storage.exists(f"{folder}/{SUCCESS_MARKER}"):
        raise ExportError(f"the export of {ds} is not finished: {folder} has no {SUCCESS_MARKER}")
    files = [
        ExportFile(entity, uri, size_bytes, _check_footer(entity, uri))
        for entity in EXPORT_SCHEMAS
        for uri, size_bytes in storage.list_files(f"{folder}/{entity}", ".parquet")
    ]
    if not any(file.entity == "pins" for file in files):
        raise ExportError(
            f"the export of {ds} has no pins: {folder}/pins holds no .parquet file (an empty day is a file without rows)"
        )
    return files


def _check_footer(entity: str, uri: str) -> int:
    """The number of rows of a file that fits the contract of its entity."""
    filesystem, path = storage.filesystem_of(uri)
    try:
        footer = pq.ParquetFile(path, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise ExportError(f"{uri}: not a readable Parquet file ({error})") from error
    with footer:
        found = footer.schema_arrow
        missing = [name for name in REQUIRED_EXPORT_COLUMNS[entity] if name not in found.names]
        if missing:
            raise ExportError(f"{uri}: column {', '.join(missing)} missing; {entity} need {REQUIRED_EXPORT_COLUMNS[entity]}")
        for field in EXPORT_SCHEMAS[entity]:
            if field.name in found.names and not _castable(found.field(field.name).type, field.type):
                got = found.field(field.name).type
                raise ExportError(f"{uri}: column {field.name} is {got}; the contract (docs/exports.md) says {field.type}")
        return int(footer.metadata.num_rows)


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Widths and time units may differ, kinds may not: an integer is no text, a text is no list."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _castable(found.value_type, wanted)
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return is_list and _castable(found.value_type, wanted.value_type)
    same_kind = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_timestamp)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))
    return any(kind(wanted) and kind(found) for kind in same_kind)


def file_sha256(uri: str) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    filesystem, path = storage.filesystem_of(uri)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def export_sha256(entity: str, file_hashes: list[str]) -> str:
    """The fingerprint of one entity's files, whatever their names and order."""
    return hashlib.sha256("\n".join([RULES_VERSION, entity, *sorted(file_hashes)]).encode()).hexdigest()


def read_export_file(entity: str, uri: str) -> Iterator[pa.RecordBatch]:
    """The file's rows in the contract's columns and types; a column the file lacks is null. `deleted` is never null."""
    filesystem, path = storage.filesystem_of(uri)
    schema = EXPORT_SCHEMAS[entity]
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        present = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_READ_ROWS, columns=present):
            yield _conform(entity, uri, batch)


def _conform(entity: str, uri: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = []
    for field in EXPORT_SCHEMAS[entity]:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        try:
            columns.append(_cast_text_safely(batch.column(field.name), field.type))
        except pa.ArrowInvalid as error:
            raise ExportError(f"{uri}: column {field.name} holds values that are no {field.type} ({error})") from error
    deleted = EXPORT_SCHEMAS[entity].names.index("deleted")
    columns[deleted] = pc.fill_null(columns[deleted], False)
    nullable = pa.schema([field.with_nullable(True) for field in EXPORT_SCHEMAS[entity]])
    return pa.RecordBatch.from_arrays(columns, schema=nullable)


_INVALID_UTF8 = "\ufffd<invalid UTF-8>\ufffd"


def _cast_text_safely(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Casts; bytes that are no UTF-8, which Parquet lets through, become a value that `_text_fault` knows."""
    is_text = pa.types.is_string(wanted) or pa.types.is_list(wanted)
    if is_text:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return pa.array([_decode_or_mark(value) for value in column.cast(_as_binary(wanted)).to_pylist()], wanted)
    return column.cast(wanted)


def _as_binary(wanted: pa.DataType) -> pa.DataType:
    return pa.list_(pa.binary()) if pa.types.is_list(wanted) else pa.binary()


def _decode_or_mark(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_decode_or_mark(item) for item in value]
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return _INVALID_UTF8


JUDGED_COLUMNS = ("source_sha256", "reason", "detail")


def judge_rows(entity: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds `source_sha256` (pins only, null otherwise), `reason` and `detail` (null for a row that may land)."""
    judged = [_judge(entity, row) for row in batch.to_pylist()]
    for name, values in zip(JUDGED_COLUMNS, zip(*judged, strict=True) if judged else ((), (), ()), strict=True):
        batch = batch.append_column(name, pa.array(values, pa.string()))
    return batch


def _judge(entity: str, row: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    # A deletion needs only the id: nothing else of the row is kept.
    required = ("pin_id",) if entity == "pins" and row["deleted"] else REQUIRED_EXPORT_COLUMNS[entity]
    nulls = [name for name in required if name.endswith("_id") and row[name] is None]
    if nulls:
        return None, Reason.NULL_ID, f"{', '.join(nulls)} is null"
    if entity != "pins":
        fault = _text_fault("title", row.get("title"))
        return (None, *fault) if fault else (None, None, None)
    if row["deleted"]:
        return _source_sha256("deleted", "", row["updated_at"]), None, None
    fault = next((f for name in _TEXT_COLUMNS if (f := _text_fault(name, row[name]))), None)
    fault = fault or _text_fault("tags", ", ".join(tag for tag in row["tags"] or () if tag))
    if fault:
        return None, *fault
    text = pin_text(row["title"], row["description"], row["tags"])
    if not row["image_uri"] and not text:
        return None, Reason.EMPTY_PIN, "neither an image nor any text"
    return _source_sha256(row["image_uri"], text, row["updated_at"]), None, None


def _text_fault(column: str, text: str | None) -> tuple[Reason, str] | None:
    if not text:
        return None
    if _INVALID_UTF8 in text:
        return Reason.INVALID_TEXT, f"{column} is not UTF-8"
    if "\x00" in text:
        return Reason.INVALID_TEXT, f"{column} holds a NUL character"
    if len(text) > MAX_TEXT_CHARS:
        return Reason.TEXT_TOO_LONG, f"{column} has {len(text):,} characters; {MAX_TEXT_CHARS:,} are allowed"
    return None


def _source_sha256(image_uri: str | None, text: str, updated_at: object) -> str:
    return hashlib.sha256("\x00".join([image_uri or "", text, str(updated_at)]).encode()).hexdigest()


def cut_detail(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows for `quarantine`, `detail` and `image_uri` cut to 500 characters, without what an address carries of secrets."""
    for name in ("detail", "image_uri"):
        index = batch.schema.get_field_index(name)
        texts = (text and shown_address(text)[:500] for text in batch.column(index).to_pylist())
        batch = batch.set_column(index, name, pa.array(texts, pa.string()))
    return batch
