"""Batch norms that stand behind a convolution become part of it: the same function, in fewer passes over memory.

In inference a batch norm is a multiplication and an addition a channel, which the convolution before it can do with other
weights (Jacob et al., arXiv 1712.05877, section 3.2). Vectors differ by rounding alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4
"""Most that a unit vector's components may differ afterwards; folding moves them by some 1e-6."""


def fold_batch_norms(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> nn.Module:
    """The model with its batch norms folded where that changes nothing but time, or the model itself where there are none.

    `run` passes an example through a model and returns unit vectors. Which batch norm stands behind which convolution is
    seen in that pass; that nothing else reads a convolution's output is seen by comparing what comes out. The model must be
    in evaluation mode.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    folded = copy.deepcopy(model)
    pairs = _pairs(folded, run)
    for conv, norm in pairs:
        _replace(folded, conv, norm)
    if not pairs:
        return model
    folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        moved = (run(folded) - run(model)).abs().max()
    return folded if float(moved) <= TOLERANCE else model


def _pairs(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that were given their very outputs; each called once."""
    outputs: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no other tensor takes an output's place in memory, and its id
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    handles = []

    def after_conv(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            kept.append(output)
            outputs[id(output)] = name

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if id(args[0]) in outputs:
                pairs.append((outputs[id(args[0])], name))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        with torch.inference_mode():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _replace(model: nn.Module, conv: str, norm: str) -> None:
    batch_norm = cast(nn.BatchNorm2d, model.get_submodule(norm))
    model.set_submodule(conv, fuse_conv_bn_eval(cast(nn.Conv2d, model.get_submodule(conv)), batch_norm))
    # timm's batch norms hold their activation, which stays.
    kept = [part for part in (getattr(batch_norm, "drop", None), getattr(batch_norm, "act", None)) if part is not None]
    model.set_submodule(norm, nn.Sequential(*kept) if kept else nn.Identity())
