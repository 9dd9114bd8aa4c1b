"""A training set's pins as encoders see them: what the judge is given.

Judged is on every pin of a set, since a search runs over all pins and not over the held-out ones alone. Towers that encoders
have in common run once over the pictures and texts, which is nearly all of the time that judging takes.

Shape suffixes: N pins of the set, F features of a tower.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedding.encoder.config import EncoderConfig
from embedding.encoder.features import PinVectors, Projections, TowerFeatures, compute_features, project
from embedding.encoder.judge import JudgedPins, has_queries, unit
from embedding.encoder.model import PinEncoder
from embedding.encoder.training_set import (
    DROPPED,
    MEASURED_SPLITS,
    THUMBNAIL_BYTES,
    TRAIN,
    Manifest,
    TrainingSetError,
    files_of,
    read_pins,
)
from embedding.tables.lake import Lake

SPLITS = (*MEASURED_SPLITS, DROPPED)
SAY_EVERY_S = 10.0

log = logging.getLogger("pinlake")


@dataclass(frozen=True)
class JudgedSet:
    """A set with its pins in ascending order of pin_id, the order of every row of vectors and features here."""

    lake: Lake
    manifest: Manifest
    pins: JudgedPins
    thumbnails_NF: npt.NDArray[np.uint8]  # noqa: N815

    @classmethod
    def open(cls, lake: Lake, manifest: Manifest) -> JudgedSet:
        """Reads all but the pictures. Raises TrainingSetError."""
        table = read_pins(lake, manifest, JudgedPins.COLUMNS, SPLITS).sort_by("pin_id")
        pins = JudgedPins.of_table(table)
        if not has_queries(pins):
            raise TrainingSetError(f"{manifest.set_id}: no test pin has a board-mate in it, so nothing can be judged on it")
        thumbnails = b"".join(small or bytes(THUMBNAIL_BYTES) for small in table["thumbnail"].to_pylist())
        shaped_NF = np.frombuffer(thumbnails, np.uint8).reshape(-1, THUMBNAIL_BYTES)
        return cls(lake, manifest, pins, shaped_NF)

    def compute_features(self, encoder: PinEncoder, projections: Projections) -> TowerFeatures:
        """What the encoder's towers say of every pin. Minutes for some thousands of pins on two cores; says how far it is.

        Memory: the pictures of one file of the set, and the features.
        """
        parts: list[TowerFeatures] = []
        ids: list[npt.NDArray[np.int64]] = []
        done, total, said = 0, len(self.pins), time.monotonic()

        def progress(in_file: int, _: int) -> None:
            nonlocal said
            if time.monotonic() - said > SAY_EVERY_S or done + in_file == total:
                said = time.monotonic()
                log.info("features of %d of %d pins", done + in_file, total)

        for file in files_of(self.manifest, "pins"):
            one = replace(self.manifest, files=[file])
            table = read_pins(self.lake, one, ["pin_id", "picture", "text"], SPLITS)
            pictures, texts = table["picture"].to_pylist(), table["text"].to_pylist()
            parts.append(compute_features(encoder, pictures, texts, projections, progress))
            ids.append(table["pin_id"].to_numpy())
            done += table.num_rows
        order = np.argsort(np.concatenate(ids), kind="stable")
        return _joined(parts).take(order)


class TowerCache:
    """Features of a set's pins by the towers that made them: once for encoders that share their towers.

    file: where the features of the first towers are kept for another program; one of another set or towers is replaced.
    """

    def __init__(self, judged: JudgedSet, file: Path | None = None) -> None:
        self._judged, self._file = judged, file
        self._known: dict[str, TowerFeatures] = {}

    def features(self, encoder: PinEncoder, projections: Projections) -> TowerFeatures:
        """See JudgedSet.compute_features."""
        key = f"{self._judged.manifest.set_id}/{tower_fingerprint(encoder, projections)}"
        if key not in self._known:
            file = self._file if not self._known else None
            found = TowerFeatures.load(file, key) if file else None
            if found is None:
                found = self._judged.compute_features(encoder, projections)
                if file:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    found.save(file, key)
            self._known[key] = found
        return self._known[key]

    def vectors(self, config: EncoderConfig, device: str = "cpu") -> PinVectors:
        """The vectors of every pin of the set under the encoder of `config`. Raises ConfigError."""
        encoder = PinEncoder.load(config, device)
        projections = find_projections(encoder.model)
        features = self.features(encoder, projections)
        # What is left to do are a few products of small matrices.
        return project(PinEncoder.of_model(config, encoder.version, encoder.model), features, projections)


def find_projections(model: nn.Module) -> Projections:
    """The towers' last linear layers, where they have one by open_clip's names; what comes before them may be shared."""

    def linear(name: str) -> str | None:
        try:
            return name if isinstance(model.get_submodule(name), nn.Linear) else None
        except AttributeError:
            return None

    return Projections(linear("visual.head.proj"), linear("text.proj"))


def tower_fingerprint(encoder: PinEncoder, projections: Projections) -> str:
    """12 hex digits over all that decides the towers' features: equal ones give equal features, on the same machine.

    Covers architecture, preprocessing, tokenizer, precision and every weight but those of projections and fusion head.
    """
    config = encoder.config
    description = [config.model, asdict(config.preprocess), config.precision, config.context_length, asdict(projections)]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    after = tuple(f"{name}." for name in (projections.image, projections.text, "fusion") if name)
    for name, tensor in sorted(cast("dict[str, Tensor]", encoder.model.state_dict()).items()):
        if not name.startswith((*after, "logit_")):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _joined(parts: Sequence[TowerFeatures]) -> TowerFeatures:
    return TowerFeatures(*(np.concatenate([getattr(part, name) for part in parts]) for name in TowerFeatures.__annotations__))


def pixel_vectors(judged: JudgedSet) -> npt.NDArray[np.float32]:
    """The baseline's vectors: 8 x 8 pixels, less the mean of the training pins, as unit rows; zeros without a picture."""
    pins = judged.pins
    pixels_NF = judged.thumbnails_NF.astype(np.float32)
    trained_on = pins.has_image_N & (pins.splits_N == TRAIN)
    return unit((pixels_NF - pixels_NF[trained_on].mean(axis=0)) * pins.has_image_N[:, None])
