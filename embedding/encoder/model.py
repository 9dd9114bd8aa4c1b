"""The encoder itself: batches of pictures and texts in, unit vectors out.

Builds an open_clip model from an `EncoderConfig`, fills every parameter of it from local files, and runs it. It fetches
nothing (see `stream`), trains nothing, and asks no hub for anything.

Shape suffixes: N pins, D dimensions, H and W pixels, L tokens. Vectors are float32 and L2-normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from embedding.contracts import EmbeddingVersion
from embedding.encoder.building import build_model, load_weights, make_tokenizer
from embedding.encoder.config import EncoderConfig, LearnedFusion, embedding_version
from embedding.encoder.folding import fold_batch_norms
from embedding.encoder.images import decode_image
from embedding.encoder.precision import computes_bf16, to_bf16, weight_type

Vectors = npt.NDArray[np.float32]

MAX_ASPECT_RATIO = 8.0
"""Pictures longer than this lose their ends before they are resized with `resize_mode` "shortest", which would take the
centre square anyway, but only after blowing a line of pixels up to gigabytes."""

CPU_IMAGES_A_PASS = 32
"""On a CPU, with a transformer: its matrix products are a sixth quicker than with 8 (benchmarks/encode.py)."""

CPU_CONVOLVED_A_PASS = 8
"""On a CPU, with a convolutional tower: a larger pass gains nothing, and its activations take memory."""

CPU_TEXTS_A_PASS = 8
"""On a CPU padding costs as much as text: few texts a pass, of like length, are quickest."""

SCALED_MARGIN = 2
"""A scaled JPEG is decoded to at least so many times the image tower's side, so that the resize that follows still filters.
Without the margin six to eight in a hundred of a picture's neighbours change; with it one or two (benchmarks/shortcuts.py)."""

_CHARS_A_TOKEN = 32  # more than any tokenizer here averages; open_clip's takes quadratic time over one long word
_MAX_CACHED_WORDS = 200_000


@dataclass(frozen=True, eq=False)
class PinBatch:
    """N pins as the towers' input, on the encoder's device. Made by `PinEncoder.collate`.

    pixels_N3HW: of the pins `with_image`, or None where there is none of these. texts: passes of pins' numbers and their tokens
    (M, L), together the pins with text. Numbers are from 0 to N - 1.
    """

    count: int
    with_image: list[int]
    pixels_N3HW: Tensor | None  # noqa: N815 - a shape suffix
    texts: list[tuple[list[int], Tensor]]


class PinEncoder:
    """One encoder on one device. Not for concurrent forward passes; `decode`, `transform` and `collate` may be called from any
    thread while one runs."""

    def __init__(self, config: EncoderConfig, version: EmbeddingVersion, model: nn.Module, device: torch.device) -> None:
        self.config = config
        self.version = version
        self.model = model
        self.device = device
        self._tokenizer = make_tokenizer(config)
        self._type = weight_type(model)
        self._convolves = _convolves(model)
        # Copies to a GPU in a stream of their own run while the forward pass of the batch before does.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        cfg = PreprocessCfg(**asdict(config.preprocess))
        self._transform = cast(Callable[[Image.Image], Tensor], image_transform_v2(cfg, is_train=False))

    @classmethod
    def load(cls, config: EncoderConfig, device: str = "cpu", threads: int | None = None) -> PinEncoder:
        """Builds the model of `config` on `device` ("cpu", "cuda:1") with all its weights.

        `threads`: how many of the CPU's threads a forward pass takes, a setting of the whole process; None leaves it.
        fp32 means it: on a GPU, TF32 is switched off for the process.

        Raises ConfigError where the architecture or the weights do not fit.
        """
        model = build_model(config)
        load_weights(model, config)
        encoder = cls.of_model(config, embedding_version(config), model, device, threads)
        # Batch norms are folded in fp32: in bf16 their products would be rounded a second time.
        folded = fold_batch_norms(encoder.model, encoder._example_vectors)
        if config.precision == "bf16" and computes_bf16(encoder.device):
            folded = to_bf16(folded)
        return cls(config, encoder.version, folded, encoder.device)

    @classmethod
    def of_model(
        cls, config: EncoderConfig, version: EmbeddingVersion, model: nn.Module, device: str = "cpu", threads: int | None = None
    ) -> PinEncoder:
        """An encoder around a model that is loaded already; for training. `version` is the caller's word."""
        if threads is not None:
            torch.set_num_threads(threads)
        target = torch.device(device)
        if target.type == "cuda" and config.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        model = model.to(target)
        if _convolves(model):
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(config, version, model.eval().requires_grad_(False), target)

    def _example_vectors(self, model: nn.Module) -> Tensor:
        """What a model's image tower says of two made-up pictures: unit vectors [2, E]."""
        size = self.config.preprocess.size
        height, width = (size, size) if isinstance(size, int) else size
        pixels_N3HW = torch.randn((2, 3, height, width), generator=torch.Generator().manual_seed(0))
        return nn.functional.normalize(cast(Any, model).encode_image(self._on_device(pixels_N3HW)).float(), dim=-1)

    @property
    def dim(self) -> int:
        """D, the number of a vector's dimensions."""
        return self.config.dim

    def decode(self, data: bytes, max_pixels: int) -> Image.Image:
        """A file's bytes as the RGB picture that `transform` takes: `decode_image`, at the scale that the config asks for."""
        exact = self.config.jpeg_decoding == "exact"
        return decode_image(data, max_pixels, None if exact else self._least_scale)

    def _least_scale(self, width: int, height: int) -> float:
        size = self.config.preprocess.size
        side = size if isinstance(size, int) else max(size)
        fitted = max(width, height) if self.config.preprocess.resize_mode == "longest" else min(width, height)
        return SCALED_MARGIN * side / fitted

    def transform(self, image: Image.Image) -> Tensor:
        """An RGB picture as the image tower's input: float32 [3, H, W], resized and normalised as the config says."""
        if self.config.preprocess.resize_mode == "shortest":
            image = _bound_aspect_ratio(image)
        return self._transform(image)

    def encode_images(self, pixels_N3HW: Tensor) -> Vectors:
        """Unit vectors [N, D] of pictures that `transform` made."""
        if pixels_N3HW.ndim != 4 or pixels_N3HW.shape[1] != 3:
            raise ValueError(f"pixels of shape [N, 3, H, W] are needed, not {list(pixels_N3HW.shape)}")
        if not len(pixels_N3HW):
            return np.empty((0, self.dim), np.float32)
        return self._alone(self.image_vectors(pixels_N3HW), image=True)

    def image_vectors(self, pixels_N3HW: Tensor) -> Tensor:
        """What the image tower says: unit vectors [N, E], on the CPU."""
        size = len(pixels_N3HW)
        if self.device.type == "cpu":
            size = CPU_CONVOLVED_A_PASS if self._convolves else CPU_IMAGES_A_PASS
        passes = (pixels_N3HW[start : start + size] for start in range(0, len(pixels_N3HW), size))
        with torch.inference_mode(), self._autocast():
            parts = [cast(Any, self.model).encode_image(self._on_device(part)) for part in passes]
        return nn.functional.normalize(torch.cat(parts).float().cpu(), dim=-1)

    def _alone(self, vectors_NE: Tensor, *, image: bool) -> Vectors:
        """Vectors [N, D] of pins that have nothing but this picture (or this text)."""
        has_image_N, nothing_NE = torch.full((len(vectors_NE),), image), torch.zeros_like(vectors_NE)
        pair = (vectors_NE, nothing_NE) if image else (nothing_NE, vectors_NE)
        return self.combine(*pair, has_image_N, ~has_image_N)

    def _fuse(self, image_NE: Tensor, text_NE: Tensor, has_image_N: Tensor, has_text_N: Tensor) -> Vectors:
        with torch.inference_mode():
            parts = [part.to(self.device) for part in (image_NE, text_NE, has_image_N, has_text_N)]
            return np.asarray(cast(Any, self.model).fusion(*parts).cpu().numpy(), dtype=np.float32)

    def _on_device(self, pixels_N3HW: Tensor) -> Tensor:
        # Channels last is the layout in which convolutions are quickest, on CPUs and GPUs alike.
        layout = torch.channels_last if self._convolves else torch.contiguous_format
        pixels_N3HW = pixels_N3HW.to(self.device, non_blocking=True)
        return pixels_N3HW.to(self._type).contiguous(memory_format=layout)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] of texts, each read up to the config's `context_length` tokens."""
        if isinstance(texts, str):
            raise ValueError("a list of texts is needed, not one text")
        if not len(texts):
            return np.empty((0, self.dim), np.float32)
        return self._alone(self.text_vectors(texts), image=False)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """What the text tower says: unit vectors [N, E], on the CPU."""
        return self._vectors_of_tokens(self._token_passes(texts, range(len(texts))), len(texts))

    def _token_passes(self, texts: Sequence[str], rows: Sequence[int]) -> list[tuple[list[int], Tensor]]:
        """Of the texts that `rows` name: the rows of each pass, and their tokens."""
        # Texts of like length together: one long description would have all others padded to its length.
        order = sorted(rows, key=lambda row: len(texts[row]))
        size = CPU_TEXTS_A_PASS if self.device.type == "cpu" else max(len(order), 1)
        passes = (order[start : start + size] for start in range(0, len(order), size))
        return [(some, self._moved(self.tokens([texts[row] for row in some]))) for some in passes]

    def _vectors_of_tokens(self, passes: Sequence[tuple[list[int], Tensor]], count: int) -> Tensor:
        """Unit vectors [count, E], on the CPU: zeros for the rows that no pass names."""
        vectors_NE = torch.zeros((count, self.config.width), dtype=torch.float32)
        with torch.inference_mode(), self._autocast():
            for rows, tokens_ML in passes:
                vectors_NE[rows] = cast(Any, self.model).encode_text(self._on_compute_stream(tokens_ML)).float().cpu()
        return nn.functional.normalize(vectors_NE, dim=-1)

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the encoder's device. Waits for the copy, but not for what the device computes meanwhile."""
        if self._copies is None:
            return tensor
        with torch.cuda.stream(self._copies):
            moved = tensor.pin_memory().to(self.device, non_blocking=True)
        self._copies.synchronize()
        return moved

    def _on_compute_stream(self, moved: Tensor) -> Tensor:
        if moved.is_cuda:  # made in the stream of copies: its memory must not be given away before the forward pass has read it
            moved.record_stream(torch.cuda.current_stream(self.device))
        return moved

    def encode_pins(self, pixels: Sequence[Tensor | None], texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] of pins, each from its picture ([3, H, W] or None), its text ("" for none), or both fused.

        Raises ValueError for a pin that has neither.
        """
        return self.encode_batch(self.collate(pixels, texts))

    def collate(self, pixels: Sequence[Tensor | None], texts: Sequence[str]) -> PinBatch:
        """Pins as one batch on the encoder's device. Arguments and errors are those of `encode_pins`."""
        if len(pixels) != len(texts):
            raise ValueError(f"{len(pixels)} pictures for {len(texts)} texts")
        with_image = [i for i, pixel in enumerate(pixels) if pixel is not None]
        with_text = [i for i, text in enumerate(texts) if text]
        if empty := sorted(set(range(len(texts))) - set(with_image) - set(with_text)):
            raise ValueError(f"pins {empty[:5]} of this batch have neither picture nor text")
        stacked = self._moved(torch.stack([p for p in pixels if p is not None])) if with_image else None
        return PinBatch(len(texts), with_image, stacked, self._token_passes(texts, with_text))

    def encode_batch(self, batch: PinBatch) -> Vectors:
        """Unit vectors [N, D] of a batch's pins."""
        images = torch.zeros((batch.count, self.config.width))
        if batch.pixels_N3HW is not None:
            images[batch.with_image] = self.image_vectors(self._on_compute_stream(batch.pixels_N3HW))
        words = self._vectors_of_tokens(batch.texts, batch.count)
        numbers = torch.arange(batch.count)
        with_text = [row for rows, _ in batch.texts for row in rows]
        image_N, text_N = (torch.isin(numbers, torch.tensor(r, dtype=torch.long)) for r in (batch.with_image, with_text))
        return self.combine(images, words, image_N, text_N)

    def combine(self, image_NE: Tensor, text_NE: Tensor, has_image_N: Tensor, has_text_N: Tensor) -> Vectors:
        """Unit vectors [N, D] of pins from the towers' unit vectors [N, E], zeros where a pin lacks picture or text."""
        fusion = self.config.fusion
        if isinstance(fusion, LearnedFusion):
            return self._fuse(image_NE, text_NE, has_image_N, has_text_N)
        # A pin that has only one of the two gets that one, whatever its weight.
        weighted = fusion.image_weight * image_NE + fusion.text_weight * text_NE
        alone_N1 = (has_image_N ^ has_text_N)[:, None]
        return _unit(torch.where(alone_N1, image_NE + text_NE, weighted).numpy())

    def _autocast(self) -> AbstractContextManager[Any]:
        # Weights that are in bf16 need none; those of a model in training stay in fp32.
        wanted = self.config.precision == "bf16" and self._type == torch.float32 and computes_bf16(self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids [N, L]. L is the longest text's where the tower masks the padding, so that no vector depends on it."""
        cut = [text[: self.config.context_length * _CHARS_A_TOKEN] for text in texts]
        tokens_NL = cast(Tensor, self._tokenizer(cut))
        if isinstance(self._tokenizer, HFTokenizer):
            transformer = getattr(cast(Any, self.model).text, "config", None)
            if transformer is None:  # SigLIP's text tower reads the padding too, and its last place
                return tokens_NL
            padding = transformer.pad_token_id
            return tokens_NL[:, : max(1, int((tokens_NL != padding).sum(dim=1).max()))]
        if len(self._tokenizer.cache) > _MAX_CACHED_WORDS:  # it keeps every word that it ever saw
            self._tokenizer.cache.clear()
        return tokens_NL


def _convolves(model: nn.Module) -> bool:
    """Whether the image tower is made of convolutions, and is not a transformer whose only one cuts out the patches."""
    return sum(isinstance(module, nn.Conv2d) for module in cast(nn.Module, model.visual).modules()) > 1


def _bound_aspect_ratio(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = int(min(width, height) * MAX_ASPECT_RATIO)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _unit(vectors_ND: npt.NDArray[Any]) -> Vectors:
    """Rows of length 1. A row of zeros stays one, and is told from a vector by its length."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(norms_N1, 1e-12), dtype=np.float32)
