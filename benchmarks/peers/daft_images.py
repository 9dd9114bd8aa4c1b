"""A folder of pictures encoded by Daft into Parquet files of vectors; run by benchmarks/encode.py.

As documented: the guide "Working with Images" and the documentation of `embed_image`. Files are found by a glob, downloaded,
decoded, made RGB and resized by Daft's own expressions; a class UDF in the place of `embed_image` (which asks a model hub)
takes its 16 pictures a call.

Tuned: the UDF takes bytes, decodes them at reduced scale, and transforms as open_clip does; a process a core, a thread each.
"""

from __future__ import annotations

import argparse
import io
import os
from typing import Any

import daft
import numpy as np
import open_clip
import torch
from daft import DataType, col
from daft.functions import convert_image, decode_image, resize
from PIL import Image

BATCH = 16
SIDE = 224
FULL_SIDE = 2 * SIDE
VECTOR = DataType.embedding(DataType.float32(), 512)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
CORES = len(os.sched_getaffinity(0))


class Embedder:
    """Holds the model."""

    def __init__(self, weights: str, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        model, _, self.transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights)
        self.model: Any = model.eval()

    def encode(self, pixels: torch.Tensor) -> Any:
        with torch.inference_mode():
            vectors = self.model.encode_image(pixels)
        return torch.nn.functional.normalize(vectors, dim=-1).numpy()


@daft.cls
class EmbedPixels(Embedder):
    """As documented: arrays of pixels, which Daft has resized."""

    @daft.method.batch(return_dtype=VECTOR, batch_size=BATCH)  # type: ignore[untyped-decorator]
    def embed(self, images: daft.Series) -> Any:
        pixels = (np.stack(images.to_pylist()).astype(np.float32) / 255 - MEAN) / STD
        return self.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2))


@daft.cls(use_process=True, max_concurrency=CORES)
class EmbedBytes(Embedder):
    """Tuned: bytes come, vectors go."""

    @daft.method.batch(return_dtype=VECTOR, batch_size=BATCH)  # type: ignore[untyped-decorator]
    def embed(self, files: daft.Series) -> Any:
        pictures = []
        for data in files.to_pylist():
            picture = Image.open(io.BytesIO(data))
            picture.draft("RGB", (FULL_SIDE, FULL_SIDE))
            pictures.append(picture.convert("RGB"))
        return self.encode(torch.stack([self.transform(picture) for picture in pictures]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    files = daft.from_glob_path(f"{args.images}/*.jpg").with_column("data", col("path").download())
    if args.tuned:
        embedded = files.with_column("embedding", EmbedBytes(args.weights, 1).embed(col("data")))
    else:
        images = resize(convert_image(decode_image(col("data")), "RGB"), SIDE, SIDE)
        embedded = files.with_column("image", images).with_column(
            "embedding", EmbedPixels(args.weights, None).embed(col("image"))
        )
    embedded.select("path", "embedding").write_parquet(args.out)


if __name__ == "__main__":
    main()
