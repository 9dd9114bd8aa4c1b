"""What a training step computes on: the towers' features where both towers are frozen, pictures and texts where not.

Shape suffixes: N pins, F features of a tower.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from embedding.encoder.examples import Batch
from embedding.encoder.features import Projections, TowerFeatures, compute_features
from embedding.encoder.model import PinEncoder
from embedding.encoder.training_set import TRAIN, Manifest, TrainingSetError, read_pins
from embedding.tables.lake import Lake

log = logging.getLogger("pinlake")

FEATURES_FILE = "features-{rank}.npz"


@dataclass(frozen=True)
class Pins:
    """N pins on the device, of which U are distinct: each goes through the towers once.

    image, text: features (U, F), or pixels (U, 3, H, W) and tokens (U, L) where a tower is trained. index_N says which of the
    distinct pins row n is.
    """

    image: Tensor
    text: Tensor
    index_N: Tensor  # noqa: N815
    has_image_N: Tensor  # noqa: N815
    has_text_N: Tensor  # noqa: N815
    frozen_image: bool = True
    frozen_text: bool = True


class Source(Protocol):
    """Gives a batch's anchors and then its positives as one `Pins`, and its hard negatives, row by row, as another."""

    needs_contents: bool

    def pins(self, batch: Batch) -> tuple[Pins, Pins | None]:
        """What the model is given of a batch."""

    def sample(self) -> Pins | None:
        """Some pins for a warm start; None where there are no features to start from."""


@dataclass(frozen=True)
class PinFeatures:
    """Features by pin: row i is of pin_ids[i], which are in ascending order."""

    pin_ids: npt.NDArray[np.int64]
    features: TowerFeatures

    def rows(self, pin_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of these pins. Raises TrainingSetError for one that is unknown."""
        places = np.minimum(np.searchsorted(self.pin_ids, pin_ids), len(self.pin_ids) - 1)
        if not np.array_equal(self.pin_ids[places], pin_ids):
            unknown = pin_ids[self.pin_ids[places] != pin_ids]
            raise TrainingSetError(f"the set's bags hold pins that its list of pins lacks: {unknown[:3].tolist()}")
        return places

    @classmethod
    def of_set(
        cls,
        lake: Lake,
        manifest: Manifest,
        encoder: PinEncoder,
        projections: Projections,
        folder: Path,
        rank: int = 0,
        world_size: int = 1,
        splits: tuple[str, ...] = (TRAIN,),
    ) -> PinFeatures:
        """Of all pins of some splits. Each process computes its part and leaves it in `folder`, where all read all parts.

        A training that was killed finds them there again.
        """
        key = hashlib.sha256(repr([manifest.set_id, encoder.config, projections, splits, world_size]).encode()).hexdigest()
        ids = np.sort(read_pins(lake, manifest, ["pin_id"], splits)["pin_id"].to_numpy())
        mine = folder / FEATURES_FILE.format(rank=rank)
        if TowerFeatures.load(mine, key) is None:
            pins = read_pins(lake, manifest, ["pin_id", "picture", "text"], splits).sort_by("pin_id")
            part = pins.take(np.arange(rank, len(ids), world_size))
            said = time.monotonic()

            def progress(done: int, total: int) -> None:
                nonlocal said
                if time.monotonic() - said > 5 or done == total:
                    said = time.monotonic()
                    log.info("features of %d of %d pins", done, total)

            pictures, texts = part["picture"].to_pylist(), part["text"].to_pylist()
            compute_features(encoder, pictures, texts, projections, progress).save(mine, key)
        if world_size > 1:
            dist.barrier()
        parts = [TowerFeatures.load(folder / FEATURES_FILE.format(rank=other), key) for other in range(world_size)]
        whole = [part for part in parts if part is not None]
        if len(whole) != world_size:
            raise TrainingSetError(f"{folder}: features of another process are missing; the processes must share this folder")
        order = np.argsort(np.concatenate([np.arange(other, len(ids), world_size) for other in range(world_size)]))
        joined = TowerFeatures(
            *(
                np.concatenate([getattr(part, name) for part in whole])[order]
                for name in ("image_NF", "text_NF", "has_image_N", "has_text_N")
            )
        )
        return cls(ids, joined)


class FeatureSource:
    """Pins as the features of frozen towers."""

    needs_contents = False

    def __init__(self, features: PinFeatures, device: str, *, use_text: bool = True) -> None:
        self._features, self._device, self._use_text = features, device, use_text

    def pins(self, batch: Batch) -> tuple[Pins, Pins | None]:
        """See Source."""
        negatives = None
        if batch.negative_NH.size:
            # Where there is no negative the anchor stands in: its logit is masked.
            filled = np.where(batch.has_negative_NH, batch.negative_NH, batch.anchor_N[:, None])
            negatives = self._of(filled.ravel())
        return self._of(np.concatenate([batch.anchor_N, batch.positive_N])), negatives

    def sample(self) -> Pins | None:
        """See Source."""
        return self._of(self._features.pin_ids[:20_000])

    def _of(self, pin_ids: npt.NDArray[np.int64]) -> Pins:
        distinct, index = np.unique(pin_ids, return_inverse=True)
        taken = self._features.features.take(self._features.rows(distinct))
        has_text = taken.has_text_N & self._use_text

        def moved(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self._device)

        has = (moved(taken.has_image_N[index]), moved(has_text[index]))
        return Pins(moved(taken.image_NF), moved(taken.text_NF), moved(index), *has)


class PictureSource:
    """Pins as pixels and tokens, decoded in threads. Hard negatives are left to those within the batch: a picture each would
    cost as much as an example."""

    needs_contents = True

    def __init__(self, encoder: PinEncoder, *, use_text: bool = True) -> None:
        self._encoder, self._use_text = encoder, use_text
        self._pool = ThreadPoolExecutor(4)

    def pins(self, batch: Batch) -> tuple[Pins, Pins | None]:
        """See Source."""
        assert batch.contents is not None, "the stream was asked for ids alone"
        pin_ids = np.concatenate([batch.anchor_N, batch.positive_N])
        _, first, index = np.unique(pin_ids, return_index=True, return_inverse=True)
        pixels = list(self._pool.map(self._pixels, [batch.contents.pictures[row] for row in first]))
        texts = [batch.contents.texts[row] for row in first]
        shape = next((pixel.shape for pixel in pixels if pixel is not None), torch.Size((3, 1, 1)))
        has_image = torch.tensor([pixel is not None for pixel in pixels])
        has_text = torch.tensor([bool(text) and self._use_text for text in texts])
        stacked = torch.stack([torch.zeros(shape) if pixel is None else pixel for pixel in pixels])
        rows = torch.from_numpy(index)
        device = self._encoder.device
        parts = [self._encoder.tokens(texts), rows, has_image[rows], has_text[rows]]
        tokens, index_N, has_image_N, has_text_N = (part.to(device) for part in parts)
        return Pins(stacked.to(device), tokens, index_N, has_image_N, has_text_N, False, False), None

    def sample(self) -> Pins | None:
        """See Source."""
        return None

    def _pixels(self, picture: bytes | None) -> Tensor | None:
        if picture is None:
            return None
        with Image.open(io.BytesIO(picture)) as image:
            return self._encoder.transform(image.convert("RGB"))
