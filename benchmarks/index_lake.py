"""A lake of one night of any number of pins, with real vectors as far as they reach, and queries that are like them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.contracts import EMBEDDING_DIM, NIGHTS, PIN_EMBEDDINGS, PINS, TableContract
from embedding.encoder.config import DEFAULT_CONFIG
from embedding.encoder.store import add_encoder
from embedding.index.recall import Floats, Ids
from embedding.tables.lake import Lake, partition_version, replace_partition
from embedding.tables.rows import write_row
from embedding.tables.scan import scan
from embedding.tables.staging import Stager

DS, RUN = "2026-01-01", "benchmark"
NOISE = 0.75
"""Length of the noise beside a unit vector: the cosine between the two is 1 / sqrt(1 + NOISE^2) = 0.8."""
STEP = 100_000
_SAME = {"export_sha256": DS, "run_id": RUN, "encoded_by": RUN, "has_image": False, "has_text": True}


def noisy(base_ND: Floats, seed: int) -> Floats:
    """Unit vectors beside those of `base_ND`."""
    noise = np.random.default_rng(seed).standard_normal(base_ND.shape, dtype=np.float32)
    noise *= NOISE / np.sqrt(base_ND.shape[1])
    noise += base_ND
    unit: Floats = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return unit


def all_vectors(texts_ND: Floats, rows: int) -> Iterator[tuple[Floats, Ids]]:
    """(vectors, pin ids), a step at a time: the texts' own vectors, then noisy ones."""
    for start in range(0, rows, STEP):
        ids = np.arange(start, min(start + STEP, rows), dtype=np.int64)
        base = np.asarray(texts_ND[ids % len(texts_ND)])
        yield (base if start + len(ids) <= len(texts_ND) else noisy(base, seed=start)), ids + 1


def write_lake(folder: Path, texts_ND: Floats, texts: Sequence[str], rows: int) -> tuple[Lake, str]:
    """A lake of one night of so many pins, and its encoder's version. `texts` are those of the vectors, in their order.

    A pin's title is the text of its vector, or of the one that it is near to.
    """
    lake = Lake(str(folder / "lake"))
    version = str(add_encoder(lake, DEFAULT_CONFIG))
    lake.create_all()
    write_night(lake, version, DS, all_vectors(texts_ND, rows), texts)
    return lake, version


def write_night(
    lake: Lake,
    version: str,
    ds: str,
    pieces: Iterable[tuple[Floats, Ids]],
    texts: Sequence[str],
    deleted: Ids | Sequence[int] = (),
) -> None:
    """A night that passed: its pins, pieces of (vectors, pin ids), and those that it deleted."""
    partitions: dict[str, dict[str, str | None]] = {
        "pins": {"ds": ds},
        "pin_embeddings": {"embedding_version": version, "ds": ds},
    }
    rows = 0
    stagers = {c.name: Stager(lake.table_uri(c), c, partitions[c.name]) for c in (PINS, PIN_EMBEDDINGS)}
    with stagers["pins"] as pins, stagers["pin_embeddings"] as vectors:
        for vectors_ND, ids in pieces:
            columns = _columns(ids, texts) | {"deleted": pa.repeat(pa.scalar(False), len(ids))}
            offsets = np.arange(0, vectors_ND.size + 1, EMBEDDING_DIM, dtype=np.int32)
            flat = pa.ListArray.from_arrays(offsets, vectors_ND.ravel())
            pins.add(_whole(PINS, columns, len(ids)))
            vectors.add(_whole(PIN_EMBEDDINGS, columns | {"embedding": flat}, len(ids)))
            rows += len(ids)
        if len(deleted):
            gone = _columns(np.asarray(deleted, np.int64), texts) | {"deleted": pa.repeat(pa.scalar(True), len(deleted))}
            pins.add(_whole(PINS, gone, len(deleted)))
        for contract, stager in ((PINS, pins), (PIN_EMBEDDINGS, vectors)):
            stager.flush()
            partition = partitions[contract.name]
            seen = partition_version(lake.open(contract), partition)
            replace_partition(lake, contract, partition, stager.files, expected_version=seen, run_id=RUN)
    counts = dict.fromkeys(("landed", "new", "embedded", "encoded"), rows) | dict.fromkeys(
        ("changed", "deleted", "reused", "quarantined"), 0
    )
    versions = {"pins_version": lake.open(PINS).version(), "pin_embeddings_version": lake.open(PIN_EMBEDDINGS).version()}
    night = {"run_id": RUN, "ds": ds, "embedding_version": version, "status": "passed", "checked_at": datetime.now(UTC)}
    write_row(lake, NIGHTS, night | counts | {"deleted": len(deleted)} | versions)


def _columns(ids: Ids, texts: Sequence[str]) -> dict[str, Any]:
    hashes = pa.array([f"{pin:064x}" for pin in ids.tolist()])
    return {
        "pin_id": ids,
        "source_sha256": hashes,
        "content_sha256": hashes,
        "board_id": ids // 50,
        "title": pa.array([texts[(pin - 1) % len(texts)] for pin in ids.tolist()]),
        **{name: pa.repeat(pa.scalar(value), len(ids)) for name, value in _SAME.items()},
    }


def _whole(contract: TableContract, columns: dict[str, Any], rows: int) -> pa.Table:
    schema = contract.file_schema
    missing = {field.name: pa.nulls(rows, field.type) for field in schema if field.name not in columns}
    return pa.table({field.name: columns.get(field.name, missing.get(field.name)) for field in schema})


def table_vectors(lake: Lake) -> Iterator[tuple[Floats, Ids]]:
    """(vectors, pin ids) of the whole table, a step at a time."""
    waiting: list[tuple[Floats, Ids]] = []
    for batch in scan(lake.open(PIN_EMBEDDINGS), ["pin_id", "embedding"]):
        ids = batch.column("pin_id").to_numpy()
        waiting.append((batch.column("embedding").flatten().to_numpy().reshape(len(ids), -1), ids))
        if sum(len(some) for _, some in waiting) >= STEP:
            yield np.concatenate([v for v, _ in waiting]), np.concatenate([i for _, i in waiting])
            waiting = []
    if waiting:
        yield np.concatenate([v for v, _ in waiting]), np.concatenate([i for _, i in waiting])
