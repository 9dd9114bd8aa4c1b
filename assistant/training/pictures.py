"""What the encoder makes of the pins' pictures alone: without the words that a pin's own embedding has read.

A projector that is trained on both learns to see, and not only to repeat the title that the embedding knows.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import pyarrow as pa
import torch
from PIL import Image

from embedding.encoder.model import PinEncoder
from embedding.encoder.store import worker_encoder
from embedding.tables.lake import Lake

PICTURE_VECTORS = pa.schema([("pin_id", pa.int64()), ("picture_embedding", pa.binary())])


def encode_pictures(batches: Iterable[pa.RecordBatch], lake: Lake, version: str) -> Iterator[pa.RecordBatch]:
    """From `pin_id` and `picture`, a training set's PNG, to PICTURE_VECTORS: the vector's float32, L2-normalised."""
    encoder = None
    for batch in batches:
        if not batch.num_rows:
            continue
        encoder = encoder or PinEncoder.load(worker_encoder(lake, version), threads=1)
        pictures = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in batch.column("picture").to_pylist()]
        vectors_ND = encoder.encode_images(torch.stack([encoder.transform(picture) for picture in pictures]))
        values = pa.array([vector.tobytes() for vector in vectors_ND], pa.binary())
        yield pa.RecordBatch.from_arrays([batch.column("pin_id").cast(pa.int64()), values], schema=PICTURE_VECTORS)
