"""A folder of pictures encoded by Ray Data into Parquet files of vectors; run by benchmarks/encode.py.

As documented: the guide "Working with Images" and the tutorial "Batch embeddings". `read_images` decodes in tasks, a pool of
actors that hold the model transforms and encodes 64 pictures a call, `write_parquet` writes.

Tuned: pictures go to the actors as bytes, not as arrays of pixels, and are decoded there at reduced scale; an actor a core, a
thread each, 16 pictures a call; a call's results hold no pixels.
"""

from __future__ import annotations

import argparse
import io
import os
from typing import Any

import numpy as np
import open_clip
import ray
import torch
from PIL import Image

DOCUMENTED_BATCH, TUNED_BATCH = 64, 16
FULL_SIDE = 448
"""A JPEG is decoded to at least this side: twice the model's."""

Batch = dict[str, Any]


class Embedder:
    """An actor that holds the model."""

    def __init__(self, weights: str, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        model, _, self.transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights)
        self.model: Any = model.eval()

    def encode(self, pictures: list[Any]) -> Any:
        pixels = torch.stack([self.transform(picture) for picture in pictures])
        with torch.inference_mode():
            vectors = self.model.encode_image(pixels)
        return torch.nn.functional.normalize(vectors, dim=-1).numpy()


class EmbedImages(Embedder):
    """As documented: the batch that came, with the vectors beside its pictures."""

    def __call__(self, batch: Batch) -> Batch:
        batch["embedding"] = self.encode([Image.fromarray(np.uint8(image)).convert("RGB") for image in batch["image"]])
        return batch


class EmbedBytes(Embedder):
    """Tuned: bytes come, vectors go."""

    def __call__(self, batch: Batch) -> Batch:
        pictures = []
        for data in batch["bytes"]:
            picture = Image.open(io.BytesIO(data))
            picture.draft("RGB", (FULL_SIDE, FULL_SIDE))
            pictures.append(picture.convert("RGB"))
        return {"path": batch["path"], "embedding": self.encode(pictures)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if not args.tuned:
        ray.init(num_cpus=cores)
        images = ray.data.read_images(args.images, mode="RGB", include_paths=True)
        embedded = images.map_batches(
            EmbedImages,
            fn_constructor_kwargs={"weights": args.weights, "threads": None},
            batch_size=DOCUMENTED_BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        embedded.drop_columns(["image"]).write_parquet(args.out)
    else:
        # Twice the cores, half of them the actors': tasks that only read and write find room beside them.
        ray.init(num_cpus=2 * cores)
        files = ray.data.read_binary_files(args.images, include_paths=True)
        embedded = files.repartition(max(1, files.count() // (4 * TUNED_BATCH))).map_batches(
            EmbedBytes,
            fn_constructor_kwargs={"weights": args.weights, "threads": 1},
            batch_size=TUNED_BATCH,
            compute=ray.data.ActorPoolStrategy(size=cores),
        )
        embedded.write_parquet(args.out)


if __name__ == "__main__":
    main()
