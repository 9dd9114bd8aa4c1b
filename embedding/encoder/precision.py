"""Which numbers a device computes with, and the towers' weights in them.

A config's precision is the least one: bf16 is used where the device computes it natively, and fp32, which is finer and there
faster, on all others. What bf16 moves is measured by benchmarks/shortcuts.py
(docs/decisions/0009-encoding-at-the-speed-of-the-hardware.md).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from embedding.encoder.fusion import FusionHead


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX.

    A CPU without these converts back and forth, at a fraction of the speed of fp32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def to_bf16(model: nn.Module) -> nn.Module:
    """The model with its towers' weights in bfloat16, half the bytes to read; a fusion head stays in fp32."""
    fusion = dict(model.named_children()).get("fusion")
    converted = model.to(torch.bfloat16)
    if isinstance(fusion, FusionHead):
        fusion.float()
    return converted


def weight_type(model: nn.Module) -> torch.dtype:
    """The type of the image tower's weights, and so of the pixels that it takes."""
    return next(cast(nn.Module, model.visual).parameters()).dtype
