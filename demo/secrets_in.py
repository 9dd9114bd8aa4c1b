"""Looks for secrets in what programs leave behind: logs, tables, event logs, databases."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq

_LEAST_CHARS = 8


def forms(secret: str) -> set[bytes]:
    """What a secret looks like as it is, in an address, in JSON, and in base64 wherever it begins within a longer text.

    >>> any(look in b64encode(b"user:hunter2-hunter2") for look in forms("hunter2-hunter2"))
    True
    """
    if len(secret) < _LEAST_CHARS:
        raise ValueError(f"a secret of under {_LEAST_CHARS} characters is found everywhere")
    found = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    for before in range(3):
        # A character stands for six bits: those at both ends, which hold bits of what is beside the secret, are left out.
        whole = b64encode(b"\0" * before + secret.encode())
        kept = whole.rstrip(b"=")[(before * 8 + 5) // 6 : (before + len(secret.encode())) * 8 // 6].decode()
        found |= {kept, kept.replace("+", "-").replace("/", "_")}
    return {text.encode() for text in found}


def find_secrets(folders: Iterable[Path | str], secrets: Mapping[str, str]) -> list[tuple[Path, int, str]]:
    """Where secrets stand: file, line (of a Parquet file its row), and the secret's name. Empty where all is well.

    Compressed files (by their names: .gz, .zst, .lz4, .bz2) and Parquet files are read as what they hold.

    secrets: values of 8 characters or more, by a name that may be shown.
    """
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    return [
        (path, number, name)
        for folder in folders
        for path in sorted(p for p in (Path(folder).rglob("*") if Path(folder).is_dir() else [Path(folder)]) if p.is_file())
        for number, line in enumerate(_lines(path), start=1)
        for name, looks in wanted.items()
        if any(look in line for look in looks)
    ]


def _lines(path: Path) -> Iterator[bytes]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from (str(row).encode() for row in batch.to_pylist())
        return
    compression = "zstd" if path.suffix == ".zstd" else "detect"  # as Spark calls its event logs
    with pa.input_stream(str(path), compression=compression) as stream:
        left = b""
        while piece := stream.read(1 << 20):
            *lines, left = (left + piece).split(b"\n")
            yield from lines
        yield left
