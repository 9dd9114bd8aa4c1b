"""A config's open_clip model and tokenizer, with every parameter from files of this machine. Asks no hub for anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor, nn

from embedding.encoder.config import ConfigError, EncoderConfig, LearnedFusion, WeightsFile
from embedding.encoder.fusion import FusionHead
from embedding.encoder.layouts import LAYOUT_NAMES


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


def make_tokenizer(config: EncoderConfig) -> Any:
    """What turns texts into tokens, from files of this machine."""
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
