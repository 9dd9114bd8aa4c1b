"""What the frozen towers say of pictures and texts, computed once, so that what stands on them trains in seconds an epoch.

A tower is *frozen* where training changes at most its last linear layer, its *projection*. Its features are what reaches that
layer or, without one, the tower's output. They depend on the frozen weights and the content alone.

Shape suffixes: N pins, F features of a tower (each tower its own), E dimensions of a tower's vector, D of a pin's vector.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from embedding.encoder.model import PinEncoder

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

PINS_A_PASS = 64


@dataclass(frozen=True)
class Projections:
    """Names of the towers' last linear layers in the model; None where training leaves the whole tower as it is."""

    image: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class TowerFeatures:
    """Features (N, F) of each tower, float32 and as the tower left them, zeros where a pin lacks picture or text."""

    image_NF: Floats  # noqa: N815
    text_NF: Floats  # noqa: N815
    has_image_N: Flags  # noqa: N815
    has_text_N: Flags  # noqa: N815

    def __len__(self) -> int:
        return len(self.image_NF)

    def take(self, rows: npt.NDArray[Any]) -> TowerFeatures:
        """Some rows, in the order asked for."""
        return TowerFeatures(self.image_NF[rows], self.text_NF[rows], self.has_image_N[rows], self.has_text_N[rows])

    def save(self, file: Path, key: str) -> None:
        """Writes them where `load` finds them; `key` names the content and the towers."""
        unfinished = file.with_name(f".{file.name}.partial.npz")
        np.savez(unfinished, key=key, **vars(self))
        unfinished.replace(file)

    @classmethod
    def load(cls, file: Path, key: str) -> TowerFeatures | None:
        """What `save` wrote under this key; None where there is no such file, or one of another key."""
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as saved:
            if str(saved["key"]) != key:
                return None
            return cls(*(saved[name] for name in ("image_NF", "text_NF", "has_image_N", "has_text_N")))


@dataclass(frozen=True)
class PinVectors:
    """Unit vectors (N, D) of pins: seen by the picture alone, by the text alone, by all they have; zeros where absent."""

    image_ND: Floats  # noqa: N815
    text_ND: Floats  # noqa: N815
    fused_ND: Floats  # noqa: N815


Progress = Callable[[int, int], None]


def compute_features(
    encoder: PinEncoder,
    pictures: Sequence[bytes | None],
    texts: Sequence[str],
    projections: Projections,
    progress: Progress = lambda done, total: None,  # noqa: ARG005
) -> TowerFeatures:
    """Runs both towers over N pins. `pictures` are PNG bytes as a training set holds them, or None; "" is no text."""
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures for {len(texts)} texts")
    images: list[Floats] = []
    words: list[Floats] = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(texts), PINS_A_PASS):
            some = slice(start, start + PINS_A_PASS)
            pixels = list(pool.map(lambda picture: None if picture is None else _pixels(encoder, picture), pictures[some]))
            images.append(_image_features(encoder, pixels, projections.image))
            words.append(_text_features(encoder, texts[some], projections.text))
            progress(min(start + PINS_A_PASS, len(texts)), len(texts))
    return TowerFeatures(
        _stack(images),
        _stack(words),
        np.array([picture is not None for picture in pictures], dtype=np.bool_),
        np.array([bool(text) for text in texts], dtype=np.bool_),
    )


def project(encoder: PinEncoder, features: TowerFeatures, projections: Projections) -> PinVectors:
    """The pins' vectors from features, as `encoder` would make them from the contents."""
    with torch.inference_mode():
        image_NE = _projected(encoder.model, projections.image, features.image_NF, features.has_image_N)
        text_NE = _projected(encoder.model, projections.text, features.text_NF, features.has_text_N)
    has_image, has_text = torch.from_numpy(features.has_image_N), torch.from_numpy(features.has_text_N)
    nothing, none = torch.zeros_like(image_NE), torch.zeros_like(has_image)
    some = (has_image | has_text).numpy()[:, None]
    return PinVectors(
        encoder.combine(image_NE, nothing, has_image, none) * features.has_image_N[:, None],
        encoder.combine(nothing, text_NE, none, has_text) * features.has_text_N[:, None],
        encoder.combine(image_NE, text_NE, has_image, has_text) * some,
    )


def _projected(model: nn.Module, projection: str | None, features_NF: Floats, has_N: Flags) -> Tensor:
    given_NF = torch.from_numpy(features_NF)
    if projection is None:
        projected = given_NF
    else:
        layer = model.get_submodule(projection)
        projected = layer(given_NF.to(next(layer.parameters()).dtype))
    return nn.functional.normalize(projected.float(), dim=-1) * torch.from_numpy(has_N)[:, None]


def _pixels(encoder: PinEncoder, picture: bytes) -> Tensor:
    with Image.open(io.BytesIO(picture)) as image:
        return encoder.transform(image.convert("RGB"))


def _image_features(encoder: PinEncoder, pixels: list[Tensor | None], projection: str | None) -> Floats:
    rows = [row for row, pixel in enumerate(pixels) if pixel is not None]
    if not rows:
        return np.zeros((len(pixels), 0), np.float32)
    with _inputs_of(encoder.model, projection) as inputs:
        outputs = encoder.image_vectors(torch.stack([pixels[row] for row in rows]))  # type: ignore[misc]
    return _spread(inputs or [outputs], rows, len(pixels))


def _text_features(encoder: PinEncoder, texts: Sequence[str], projection: str | None) -> Floats:
    # In order of length, which is the order in which the encoder takes them: the hook sees rows in this order.
    rows = sorted((row for row, text in enumerate(texts) if text), key=lambda row: len(texts[row]))
    if not rows:
        return np.zeros((len(texts), 0), np.float32)
    with _inputs_of(encoder.model, projection) as inputs:
        outputs = encoder.text_vectors([texts[row] for row in rows])
    return _spread(inputs or [outputs], rows, len(texts))


@contextmanager
def _inputs_of(model: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """What reaches `layer` while the context lasts: a tower's features, taken on the very path that encodes pins."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])

    hook = None if layer is None else model.get_submodule(layer).register_forward_pre_hook(keep)
    try:
        yield inputs
    finally:
        if hook is not None:
            hook.remove()


def _spread(parts: list[Tensor], rows: list[int], count: int) -> Floats:
    """The parts' rows at their places among `count` rows, zeros elsewhere."""
    found = torch.cat(parts).float().cpu().numpy()
    spread_NF = np.zeros((count, found.shape[1]), np.float32)
    spread_NF[rows] = found
    return spread_NF


def _stack(parts: list[Floats]) -> Floats:
    """Concatenated; a pass in which no pin had the modality gets the width of the others."""
    width = max((part.shape[1] for part in parts), default=0)
    return cast(Floats, np.concatenate([p if p.shape[1] else np.zeros((len(p), width), np.float32) for p in parts]))
