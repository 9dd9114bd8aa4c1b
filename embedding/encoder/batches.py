"""Hashing and encoding over Arrow batches: what an engine hands to its executors. No engine is imported.

The columns that come in and go out are fixed here, so that Spark, a test or a service call the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from embedding.contracts import PIN_EMBEDDINGS, QUARANTINE
from embedding.encoder.config import EncoderConfig
from embedding.encoder.limits import ImageLimits
from embedding.encoder.stream import EncodeItem, EncodeResult, encode_stream, hash_stream

HASH_THREADS = 4
"""Reading waits for disks and networks, not for the processor."""

GPU_FETCH_THREADS = 32
"""A GPU reads a thousand pictures a second; from an object store each is some 30 ms away."""

OUTCOMES_A_BATCH = 1_024

SETTLED = pa.schema(
    [
        *[
            PIN_EMBEDDINGS.schema.field(n).with_nullable(True)
            for n in ("pin_id", "source_sha256", "content_sha256", "embedding")
        ],
        *[PIN_EMBEDDINGS.schema.field(n).with_nullable(True) for n in ("has_image", "has_text", "encoded_by", "run_id")],
        *[QUARANTINE.schema.field(n).with_nullable(True) for n in ("reason", "detail", "image_uri")],
    ]
)
"""A pin's outcome, whichever table it goes to: `reason` is null for a vector."""

HASHED = pa.schema(
    [
        *[pa.field(n, pa.int64()) for n in ("pin_id",)],
        *[pa.field(n, pa.string()) for n in ("source_sha256", "image_uri", "text", "content_sha256", "reason", "detail")],
    ]
)
"""A pin with its content's hash, or with the reason why there is none."""


def hash_batches(batches: Iterable[pa.RecordBatch], limits: ImageLimits) -> Iterator[pa.RecordBatch]:
    """From pins (pin_id, source_sha256, image_uri, text) to HASHED: fetches and hashes, decodes nothing."""
    for batch in batches:
        rows = batch.to_pylist()
        items = (EncodeItem(row["pin_id"], row["image_uri"], row["text"]) for row in rows)
        hashed = [
            row | {"content_sha256": h.content_sha256, "reason": h.reason, "detail": h.detail}
            for row, h in zip(rows, hash_stream(items, threads=HASH_THREADS, limits=limits), strict=True)
        ]
        yield pa.RecordBatch.from_pylist(hashed, schema=HASHED)


def encode_batches(
    batches: Iterable[pa.RecordBatch],
    config: EncoderConfig,
    run_id: str,
    *,
    batch_size: int,
    device: str,
    cores: int,
    limits: ImageLimits,
) -> Iterator[pa.RecordBatch]:
    """From contents to SETTLED: each content is encoded once, and gives an outcome for every pin that shows it.

    Contents have content_sha256, image_uri, text and `pins`, a list of (pin_id, source_sha256, image_uri). `device` ("cpu",
    "cuda:1") is the forward pass's, `cores` what it (on a CPU) and decoding may take of the processor.
    """
    from embedding.encoder.cache import keep_freed_memory, shared_encoder

    waiting: dict[int, dict[str, Any]] = {}

    def items() -> Iterator[EncodeItem]:
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows):
            waiting[number] = row
            yield EncodeItem(number, row["image_uri"], row["text"], row["content_sha256"])

    if device == "cpu":
        keep_freed_memory()
    encoder = shared_encoder(config, device, cores)
    on_cpu = encoder.device.type == "cpu"
    threads = cores + (HASH_THREADS if on_cpu else GPU_FETCH_THREADS)
    results = encode_stream(
        encoder, items(), batch_size=batch_size, threads=threads, cores=cores, forward_on_cores=on_cpu, limits=limits
    )
    outcomes = (outcome for result in results for outcome in _outcomes(waiting.pop(result.key), result, run_id))
    # Of a content that a million pins show, too, so many at a time.
    while some := list(islice(outcomes, OUTCOMES_A_BATCH)):
        yield pa.RecordBatch.from_pylist(some, schema=SETTLED)


def _outcomes(row: dict[str, Any], result: EncodeResult, run_id: str) -> Iterator[dict[str, Any]]:
    """An outcome for every pin that shows the row's content."""
    for pin in row["pins"]:
        yield {
            "pin_id": pin["pin_id"],
            "source_sha256": pin["source_sha256"],
            "content_sha256": row["content_sha256"],
            "embedding": result.vector,
            "has_image": row["image_uri"] is not None,
            "has_text": bool(row["text"]),
            "encoded_by": run_id,
            "run_id": run_id,
            "reason": result.reason,
            "detail": result.detail,
            "image_uri": pin["image_uri"],
        }
