"""Qwen3-VL's published layer shapes with random weights: the model that the assistant's protocol times.

Read off the published config.json of Qwen3-VL-2B-Instruct and -4B-Instruct; the Thinking editions have the same shapes.
Random weights are fair for time: no layer's time depends on its weights' values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

SHAPES: dict[str, dict[str, int]] = {
    "2B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "patch_size": 16}
DEEPSTACK = (5, 11, 17)
KEY_HEADS, HEAD_DIM, VOCABULARY = 8, 128, 151_936
TOKENS_A_PICTURE = 1_024
"""Of 1024 x 1024 pixels: patches of 16 pixels, two by two to a token."""


def teraflop(size: str, tokens: int, pictures: int) -> float:
    """Arithmetic of reading a prompt and encoding so many pictures, 10^12 operations: the same on every machine."""
    shape = SHAPES[size]
    hidden, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"] * HEAD_DIM
    weights = hidden * (2 * heads + 2 * KEY_HEADS * HEAD_DIM + 3 * shape["intermediate_size"])
    text = layers * (2 * weights * tokens + 2 * heads * tokens**2)  # attention sees half of all pairs of tokens
    wide, patches, merged = VISION["hidden_size"], 4 * TOKENS_A_PICTURE, 4 * VISION["hidden_size"]
    block = 2 * (4 * wide**2 + 2 * wide * VISION["intermediate_size"]) * patches + 4 * wide * patches**2
    mergers = (1 + len(DEEPSTACK)) * 2 * (merged**2 + merged * hidden) * TOKENS_A_PICTURE
    return (text + 2 * hidden * VOCABULARY + pictures * (VISION["depth"] * block + mergers)) / 1e12


@dataclass(frozen=True)
class Depth:
    """How many layers are built, of how many. Times are scaled layer by layer to the whole."""

    text: int
    text_whole: int
    vision: int
    vision_whole: int

    @property
    def whole(self) -> bool:
        return (self.text, self.vision) == (self.text_whole, self.vision_whole)


def build(
    size: str, text_layers: int | None, vision_layers: int | None, placeholder: int, device: str
) -> tuple[Qwen3VLForConditionalGeneration, Depth]:
    """A model of real widths and heads in bfloat16. layers: None: all. placeholder: the id that stands for pictures' tokens."""
    shape = SHAPES[size]
    text = text_layers or shape["num_hidden_layers"]
    vision = vision_layers or VISION["depth"]
    config = Qwen3VLConfig(
        text_config=shape
        | {
            "num_hidden_layers": text,
            "num_key_value_heads": KEY_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config=VISION
        | {
            "depth": vision,
            "out_hidden_size": shape["hidden_size"],
            # All three of DeepStack's mergers run, wherever there are three layers.
            "deepstack_visual_indexes": list(DEEPSTACK if vision == VISION["depth"] else range(min(3, vision))),
        },
        image_token_id=placeholder,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    nn.Module.eval(model)
    model.requires_grad_(False)
    return model, Depth(text, shape["num_hidden_layers"], vision, VISION["depth"])


@dataclass
class Watch:
    """Adds up the seconds that layers take, by name, so that what is not a layer is not scaled with them.

    On a GPU layers return before they are done; there the whole depth is run, and nothing is scaled.
    """

    depth: Depth
    seconds: dict[str, float] = field(default_factory=lambda: {"text": 0.0, "vision": 0.0})
    _began: float = 0.0

    def attach(self, model: Qwen3VLForConditionalGeneration) -> None:
        inner: Any = model.model
        for name, layers in (("text", inner.language_model.layers), ("vision", inner.visual.blocks)):
            for layer in layers:
                layer.register_forward_pre_hook(lambda *_: self._begin())
                layer.register_forward_hook(lambda *_, name=name: self._end(name))

    def _begin(self) -> None:
        self._began = time.perf_counter()

    def _end(self, name: str) -> None:
        self.seconds[name] += time.perf_counter() - self._began

    @contextmanager
    def timing(self, device: torch.device) -> Iterator[Span]:
        """The time of a block: as it was, and as it would be with all layers."""
        before = dict(self.seconds)
        _wait(device)
        span = Span()
        started = time.perf_counter()
        yield span
        _wait(device)
        span.measured_s = span.whole_s = time.perf_counter() - started
        if not self.depth.whole:
            depth = self.depth
            factors = {"text": depth.text_whole / depth.text - 1, "vision": depth.vision_whole / depth.vision - 1}
            span.whole_s += sum(factors[name] * (self.seconds[name] - before[name]) for name in factors)


@dataclass
class Span:
    """measured_s: As it was. whole_s: scaled to all layers."""

    measured_s: float = 0.0
    whole_s: float = 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
