"""Exports and their pictures copied into an object store, as a platform would leave them there.

Every address of a local picture becomes one in the store, whether the picture is there or not: what is broken stays broken.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from embedding.contracts import SUCCESS_MARKER
from embedding.tables import storage


def upload_exports(exports: Path, exports_uri: str, pictures_uri: str) -> int:
    """Copies every day below `exports`; returns the number of pictures copied.

    A day's marker comes last, so that nobody takes a half copied day for a whole one.
    """
    copied: set[str] = set()
    for day in sorted(exports.glob("ds=*")):
        target = f"{exports_uri}/{day.name}"
        for file in sorted(path for path in day.rglob("*.parquet")):
            table = pq.read_table(file)
            if "image_uri" in table.column_names:
                addresses = table["image_uri"].to_pylist()
                moved = [_in_store(address, pictures_uri) for address in addresses]
                for address, place in zip(addresses, moved, strict=True):
                    path = _local(address)
                    if path and place and place not in copied and path.is_file():
                        storage.write_atomic(place, path.read_bytes())
                        copied.add(place)
                column = table.column_names.index("image_uri")
                table = table.set_column(column, table.schema.field(column), pa.array(moved, pa.string()))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            storage.write_atomic(f"{target}/{file.relative_to(day).as_posix()}", sink.getvalue().to_pybytes())
        if (day / SUCCESS_MARKER).exists():
            storage.write_atomic(f"{target}/{SUCCESS_MARKER}", b"")
    return len(copied)


def _local(address: str | None) -> Path | None:
    """The local file that an address names, if it does."""
    if not address:
        return None
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(address) if address.startswith("/") else None


def _in_store(address: str | None, pictures_uri: str) -> str | None:
    path = _local(address)
    if path is None:
        return address
    return f"{pictures_uri}/{hashlib.sha256(str(path).encode()).hexdigest()[:24]}{path.suffix}"
