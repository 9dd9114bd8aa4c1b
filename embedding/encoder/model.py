"""The encoder itself: batches of pictures and texts in, unit vectors out.

Builds an open_clip model from an `EncoderConfig`, fills every parameter of it from local files, and runs it. It fetches and
decodes nothing (see `stream`), trains nothing, and asks no hub for anything.

Shape suffixes: N pins, D dimensions, H and W pixels, L tokens. Vectors are float32 and L2-normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from embedding.contracts import EmbeddingVersion
from embedding.encoder.config import ConfigError, EncoderConfig, LearnedFusion, WeightsFile, embedding_version
from embedding.encoder.folding import fold_batch_norms
from embedding.encoder.fusion import FusionHead
from embedding.encoder.layouts import LAYOUT_NAMES

Vectors = npt.NDArray[np.float32]

MAX_ASPECT_RATIO = 8.0
"""Pictures longer than this lose their ends before they are resized with `resize_mode` "shortest", which would take the
centre square anyway, but only after blowing a line of pixels up to gigabytes."""

CPU_IMAGES_A_PASS = 8
"""On a CPU a larger pass gains nothing, and its activations take memory."""

CPU_TEXTS_A_PASS = 8
"""On a CPU padding costs as much as text: few texts a pass, of like length, are quickest."""

_CHARS_A_TOKEN = 32  # more than any tokenizer here averages; open_clip's takes quadratic time over one long word
_MAX_CACHED_WORDS = 200_000


class PinEncoder:
    """One encoder on one device. Not for concurrent forward passes; `transform` may be called from any thread."""

    def __init__(self, config: EncoderConfig, version: EmbeddingVersion, model: nn.Module, device: torch.device) -> None:
        self.config = config
        self.version = version
        self.model = model
        self.device = device
        self._tokenizer = _make_tokenizer(config)
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
        encoder.model = fold_batch_norms(encoder.model, encoder._example_vectors)
        return encoder

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
        model = model.to(target).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        size = CPU_IMAGES_A_PASS if self.device.type == "cpu" else len(pixels_N3HW)
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
        return pixels_N3HW.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] of texts, each read up to the config's `context_length` tokens."""
        if isinstance(texts, str):
            raise ValueError("a list of texts is needed, not one text")
        if not len(texts):
            return np.empty((0, self.dim), np.float32)
        return self._alone(self.text_vectors(texts), image=False)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """What the text tower says: unit vectors [N, E], on the CPU."""
        # Texts of like length together: one long description would have all others padded to its length.
        order = np.argsort([len(text) for text in texts], kind="stable")
        size = CPU_TEXTS_A_PASS if self.device.type == "cpu" else len(texts)
        vectors_NE = torch.empty((len(texts), self.config.width), dtype=torch.float32)
        with torch.inference_mode(), self._autocast():
            for rows in (order[start : start + size] for start in range(0, len(order), size)):
                tokens_NL = self.tokens([texts[row] for row in rows]).to(self.device)
                vectors_NE[torch.from_numpy(rows)] = cast(Any, self.model).encode_text(tokens_NL).float().cpu()
        return nn.functional.normalize(vectors_NE, dim=-1)

    def encode_pins(self, pixels: Sequence[Tensor | None], texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] of pins, each from its picture ([3, H, W] or None), its text ("" for none), or both fused.

        Raises ValueError for a pin that has neither.
        """
        if len(pixels) != len(texts):
            raise ValueError(f"{len(pixels)} pictures for {len(texts)} texts")
        with_image = [i for i, pixel in enumerate(pixels) if pixel is not None]
        with_text = [i for i, text in enumerate(texts) if text]
        if empty := sorted(set(range(len(texts))) - set(with_image) - set(with_text)):
            raise ValueError(f"pins {empty[:5]} of this batch have neither picture nor text")
        images = torch.zeros((len(texts), self.config.width))
        words = torch.zeros((len(texts), self.config.width))
        if with_image:
            images[with_image] = self.image_vectors(torch.stack([p for p in pixels if p is not None]))
        if with_text:
            words[with_text] = self.text_vectors([texts[i] for i in with_text])
        numbers = torch.arange(len(texts))
        image_N, text_N = (torch.isin(numbers, torch.tensor(rows, dtype=torch.long)) for rows in (with_image, with_text))
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
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

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


def build_model(config: EncoderConfig) -> nn.Module:
    """The open_clip model of `config`, on the CPU, with random weights. Raises ConfigError for an architecture that is none."""
    model = {**config.model, "vision_cfg": dict(config.model["vision_cfg"]), "text_cfg": dict(config.model["text_cfg"])}
    model["vision_cfg"]["timm_model_pretrained"] = False
    model["text_cfg"]["hf_model_pretrained"] = False
    custom_text = model.pop("custom_text", False) or bool(model["text_cfg"].get("hf_model_name"))
    try:
        built = cast(nn.Module, (CustomTextCLIP if custom_text else CLIP)(**model))
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ConfigError(f"{config.source}: model: open_clip cannot build it: {error}") from error
    if isinstance(config.fusion, LearnedFusion):
        built.add_module("fusion", FusionHead(config.width, config.fusion.dim, config.fusion.hidden))
    return built


def load_weights(model: nn.Module, config: EncoderConfig, untrained: Collection[str] = ()) -> None:
    """Fills `model` from the files of `config`: every tensor of it exactly once, and nothing else.

    `untrained` names tensors that keep what they have, and that files may hold or not; for training them.
    Raises ConfigError, listing what is missing, unexpected, named twice, or of another shape.
    """
    loaded: dict[str, Tensor] = {}
    for weights in config.weights:
        tensors = _read_weights(weights)
        if twice := sorted(loaded.keys() & tensors.keys()):
            raise ConfigError(f"{weights.file}: holds weights that an earlier file held: {_some(twice)}")
        loaded.update(tensors)
    expected = cast(dict[str, Tensor], model.state_dict())
    loaded = {name: tensor for name, tensor in loaded.items() if name not in untrained}
    missing = sorted(expected.keys() - loaded.keys() - set(untrained))
    unexpected = sorted(loaded.keys() - expected.keys())
    shapes = [
        f"{name} is {list(loaded[name].shape)}, not {list(expected[name].shape)}"
        for name in sorted(expected.keys() & loaded.keys())
        if expected[name].shape != loaded[name].shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    if said := "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in faults if names):
        raise ConfigError(f"{config.source}: the weights do not fit the model: {said}")
    model.load_state_dict(loaded, strict=not untrained)


def weights_names(config: EncoderConfig) -> set[str]:
    """The names of all tensors that the files of `config` hold."""
    return {name for weights in config.weights for name in _read_weights(weights)}


def _read_weights(weights: WeightsFile) -> dict[str, Tensor]:
    try:
        if weights.file.suffix == ".safetensors":
            from safetensors.torch import load_file

            raw: Any = load_file(weights.file)
        else:
            raw = torch.load(weights.file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file: pickle, zip and safetensors errors have no common class
        raise ConfigError(f"{weights.file}: no readable weights: {error}") from error
    raw = raw.get("state_dict", raw) if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or not all(isinstance(tensor, Tensor) for tensor in raw.values()):
        raise ConfigError(f"{weights.file}: holds no state dict (names and tensors)")
    rename = LAYOUT_NAMES[weights.layout]
    try:
        renamed = {rename(str(name)): tensor for name, tensor in raw.items()}
    except LookupError as error:
        raise ConfigError(f"{weights.file}: not of layout {weights.layout}: {error} is unknown to it") from error
    return {weights.prefix + name: tensor for name, tensor in renamed.items() if name is not None}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _make_tokenizer(config: EncoderConfig) -> Any:
    text = config.model["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    if config.tokenizer_folder is None:
        return SimpleTokenizer(context_length=config.context_length, **options)
    return HFTokenizer(
        str(config.tokenizer_folder),
        context_length=config.context_length,
        tokenizer_mode=text.get("tokenizer_mode"),
        local_files_only=True,
        **options,
    )


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
