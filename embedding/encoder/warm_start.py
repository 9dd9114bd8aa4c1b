"""Where new weights start: at what the frozen towers know already, by principal components instead of at random.

A few thousand pins cannot teach a random projection what the towers learned from millions of pictures and texts; they can
improve on it. The towers' projections start as the principal components of the towers' features, the fusion head as those of
picture and text side by side.

Shape suffixes: N pins, F features, E dimensions of a tower's vector, D of a pin's vector.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from embedding.encoder.recipe import Recipe
from embedding.encoder.sources import Source


def warm_start(model: nn.Module, recipe: Recipe, new: Collection[str], source: Source) -> None:
    """Sets those of the `new` tensors that can be derived from features; leaves all others at their random start."""
    pins = source.sample()
    fusion = cast(Any, getattr(model, "fusion", None))
    if pins is None:
        if fusion is not None and "fusion.image.weight" in new:
            _start_as_sum(fusion, recipe)
        return
    with torch.no_grad():
        towers = []
        for given, has, projection in (
            (pins.image[pins.index_N], pins.has_image_N, recipe.image_projection),
            (pins.text[pins.index_N], pins.has_text_N, recipe.text_projection),
        ):
            layer = None if projection is None else cast(nn.Linear, model.get_submodule(projection))
            if layer is not None and f"{projection}.weight" in new and bool(has.any()):
                layer.weight.copy_(principal_components(given[has], layer.out_features))
            projected = given if layer is None else layer(given)
            towers.append(nn.functional.normalize(projected.float(), dim=-1) * has[:, None])
        if fusion is not None and "fusion.image.weight" in new:
            width = fusion.image.in_features
            side_by_side = torch.cat([recipe.picture_weight * towers[0], towers[1]], dim=1)
            components_D2E = principal_components(side_by_side, fusion.image.out_features)
            fusion.image.weight.copy_(recipe.picture_weight * components_D2E[:, :width])
            fusion.text.weight.copy_(components_D2E[:, width:])


def principal_components(given_NF: Tensor, dim: int) -> Tensor:
    """The first `dim` directions (dim, F) of greatest variance, orthonormal; small random ones where F has fewer."""
    centred = (given_NF - given_NF.mean(dim=0)).double()
    covariance = centred.T @ centred / max(1, len(centred) - 1)
    _, vectors = torch.linalg.eigh(covariance)
    found: Tensor = vectors.flip(1).T[:dim]
    # A sign is arbitrary, and may differ between machines: the largest entry is made positive.
    signs = torch.sign(found.gather(1, found.abs().argmax(dim=1, keepdim=True)))
    found = (found * signs).to(given_NF.dtype)
    if len(found) == dim:
        return found
    rest = torch.randn(dim - len(found), given_NF.shape[1], dtype=given_NF.dtype) * 0.01
    return torch.cat([found, rest.to(found.device)])


def _start_as_sum(fusion: Any, recipe: Recipe) -> None:
    """Both towers mapped by the same random directions, so that a trained joint space stays one."""
    with torch.no_grad():
        shared = torch.linalg.qr(torch.randn(fusion.image.in_features, fusion.image.out_features))[0].T
        shared = shared if shared.shape == fusion.image.weight.shape else torch.randn_like(fusion.image.weight) * 0.02
        fusion.image.weight.copy_(recipe.picture_weight * shared)
        fusion.text.weight.copy_(shared)
