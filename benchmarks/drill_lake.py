"""What a drill looks at: the rows of a lake, against those of an undisturbed night, and the files that no commit names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, TABLES, TableContract
from embedding.tables.lake import Lake, data_files
from embedding.tables.scan import read_rows

VECTOR_TOLERANCE = 1e-5
"""Spark deals contents to tasks and batches in the order in which they arrive, and a matrix product of another shape rounds
otherwise: the same content's vector differs by some 1e-7 in a component from one undisturbed night to the next."""

_NIGHT_COUNTS = ("ds", "status", "landed", "new", "changed", "deleted", "embedded", "encoded", "reused", "quarantined")


@dataclass(frozen=True)
class Contents:
    """All that the tables say, but for which files and runs it lies in, and when it was written."""

    rows: dict[str, list[tuple[str, ...]]]
    vectors: dict[tuple[str, str, int], npt.NDArray[np.float32]]


def contents(lake: Lake) -> Contents:
    """The rows of every table that is there, sorted, and apart from them the vectors by version, day and pin."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    vectors: dict[tuple[str, str, int], npt.NDArray[np.float32]] = {}
    for name, contract in TABLES.items():
        if not lake.exists(contract):
            continue
        table = read_rows(lake.open(contract))
        if contract is PIN_EMBEDDINGS:
            for row in table.to_pylist():
                key = (row["embedding_version"], row["ds"], row["pin_id"])
                vectors[key] = np.asarray(row["embedding"], np.float32)
        rows[name] = sorted(tuple(str(row[column]) for column in _compared(contract)) for row in table.to_pylist())
    return Contents(rows, vectors)


def _compared(contract: TableContract) -> Sequence[str]:
    """The columns that must be equal: all but vectors, which have a tolerance, and which run wrote the row."""
    if contract is NIGHTS:
        return _NIGHT_COUNTS
    return [name for name in contract.schema.names if name not in ("embedding", "run_id", "encoded_by")]


def differences(found: Contents, wanted: Contents) -> tuple[list[str], float]:
    """What differs, in sentences, and the largest difference between two components of a vector."""
    wrong = []
    for name in sorted(wanted.rows.keys() | found.rows.keys()):
        ours, theirs = found.rows.get(name, []), wanted.rows.get(name, [])
        if ours != theirs:
            missing, added = len(set(theirs) - set(ours)), len(set(ours) - set(theirs))
            wrong.append(f"{name}: {len(ours)} rows, not {len(theirs)}; {missing} missing, {added} unknown")
    if found.vectors.keys() != wanted.vectors.keys():
        return [*wrong, "other pins have vectors"], float("nan")
    apart = max((float(np.abs(found.vectors[key] - wanted.vectors[key]).max()) for key in wanted.vectors), default=0.0)
    if not apart <= VECTOR_TOLERANCE:
        wrong.append(f"vectors differ by up to {apart:.1e}")
    return wrong, apart


def promises_kept(lake: Lake) -> list[str]:
    """What must hold of any lake, whatever night it is compared with: the sentences for what does not."""
    wrong = []
    for contract in TABLES.values():
        if lake.exists(contract):
            gone = [file.uri for file in data_files(lake.open(contract)) if not Path(file.uri).is_file()]
            wrong += [f"{contract.name}: the log names {len(gone)} files that are gone"] if gone else []
    if wrong:
        return wrong  # nothing else can be read
    keys = [tuple(row[name] for name in PIN_EMBEDDINGS.key) for row in _rows(lake, "pin_embeddings", PIN_EMBEDDINGS.key)]
    if len(keys) != len(set(keys)):
        wrong.append("a pin has two vectors of one day and version")
    landed = {(r["ds"], r["pin_id"]) for r in _rows(lake, "pins", ("ds", "pin_id", "deleted")) if not r["deleted"]}
    embedded = {(r["ds"], r["pin_id"]) for r in _rows(lake, "pin_embeddings", ("ds", "pin_id"))}
    rejected = {(r["ds"], r["pin_id"]) for r in _rows(lake, "quarantine", ("ds", "pin_id", "stage")) if r["stage"] == "embed"}
    if embedded & rejected or embedded | rejected != landed:
        wrong.append(f"{len(landed)} pins landed, {len(embedded)} have a vector, {len(rejected)} a reason")
    statuses = [row["status"] for row in _rows(lake, "nights", ("status",))]
    if statuses != ["passed"]:
        wrong.append(f"the night's rows say {statuses}, not that it passed, once")
    return wrong


def _rows(lake: Lake, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    if not lake.exists(TABLES[name]):
        return []
    table: pa.Table = read_rows(lake.open(TABLES[name]), list(columns))
    return list(table.to_pylist())


def visible(lake: Lake) -> str:
    """What a reader sees now, in a few words."""
    counts = [f"{len(_rows(lake, name, ('ds',)))} {word}" for name, word in _WORDS.items() if lake.exists(TABLES[name])]
    return ", ".join(counts)


_WORDS = {"pins": "pins", "pin_embeddings": "vectors", "quarantine": "reasons"}


def orphans(lake: Lake) -> list[Path]:
    """The Parquet files in the tables' folders that no version of the log names."""
    found: list[Path] = []
    for contract in TABLES.values():
        if not lake.exists(contract):
            continue
        named = {Path(file.uri) for version in _versions(lake, contract) for file in data_files(lake.open(contract, version))}
        on_disk = Path(lake.table_uri(contract)).rglob("*.parquet")
        found += [path for path in on_disk if "_delta_log" not in path.parts and path not in named]
    return found


def _versions(lake: Lake, contract: TableContract) -> list[int]:
    """The versions that can be opened: all that have a file in the log."""
    log = Path(lake.table_uri(contract)) / "_delta_log"
    return sorted({int(path.name.split(".")[0]) for path in log.glob("*.json") if path.name.split(".")[0].isdigit()})
