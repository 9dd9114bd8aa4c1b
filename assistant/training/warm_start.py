"""Where a projector starts, before the language model has read a token: a pin's k-th token is about the k-th of its title.

First in closed form: the inner layer stays as it was drawn, random features (extreme learning machines, Huang et al. 2006), and
the outer one is the ridge regression from these to the language model's own embeddings of the title. Then by gradients, each
token to find its own among those of the other pins in the batch (InfoNCE, arXiv 1807.03748). Both see pins and single words,
and cost a hundredth of a step through the language model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assistant.projector import Projector

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""A sample's; the one is taken that fits a fifth of the pins, which were left out, best."""


NAMES_A_BATCH, RATE, NOISE = 512, 1e-3, 0.02
"""NOISE is added to each number of a vector: a word's vector is near that of a pin so called, and not the same."""

log = logging.getLogger("pinlake")


def name_targets(names: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """(N, K): the first K tokens of each name, a short one said again from its beginning."""
    return torch.tensor([[name[place % len(name)] for place in range(tokens)] for name in names])


@torch.no_grad()
def fit_names(projector: Projector, vectors_ND: Tensor, targets_NK: Tensor, embeddings_VH: Tensor, left_out: Tensor) -> float:
    """Sets the outer layer in closed form. left_out: (N,) which are not learned from while the penalty is chosen.

    Returns the mean cosine of their tokens with those of their names.
    """
    config = projector.config
    targets = nn.functional.layer_norm(embeddings_VH[targets_NK], (config.hidden,)).flatten(1)
    features = nn.functional.gelu(projector.inner(vectors_ND * config.dim**0.5))
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    fits = {}
    shape = (-1, config.tokens, config.hidden)
    for penalty in PENALTIES:
        found = features[left_out] @ _ridge(features[~left_out], targets[~left_out], penalty)
        fits[penalty] = float(nn.functional.cosine_similarity(found.view(shape), targets[left_out].view(shape), dim=-1).mean())
    best = max(PENALTIES, key=lambda penalty: fits[penalty])
    weights = _ridge(features, targets, best)
    projector.outer.weight.copy_(weights[:-1].T)
    projector.outer.bias.copy_(weights[-1])
    return fits[best]


def learn_names(
    projector: Projector,
    vectors_ND: Tensor,
    targets_NK: Tensor,
    embeddings_VH: Tensor,
    is_pin_N: Tensor,
    steps: int,
    seed: int,
) -> None:
    """Trains the projector alone for so many steps. is_pin_N: which are pins: half of a batch, however many words there are."""
    sharpness = nn.Parameter(torch.tensor(2.3))
    optimizer = torch.optim.AdamW([*projector.parameters(), sharpness], lr=RATE, weight_decay=0.01)
    unit_VH = nn.functional.normalize(embeddings_VH, dim=-1)
    rng = torch.Generator().manual_seed(seed)
    chances_N = torch.where(is_pin_N, 1 / is_pin_N.sum().clamp(min=1), 1 / (~is_pin_N).sum().clamp(min=1))
    for step in range(steps):
        some = torch.multinomial(chances_N, NAMES_A_BATCH, replacement=True, generator=rng)
        noise = NOISE * torch.randn((NAMES_A_BATCH, vectors_ND.shape[1]), generator=rng)
        tokens = nn.functional.normalize(projector(nn.functional.normalize(vectors_ND[some] + noise, dim=-1)), dim=-1)
        offered, place = torch.unique(targets_NK[some], return_inverse=True)
        logits = tokens @ unit_VH[offered].T * sharpness.exp()
        near = (tokens * unit_VH[targets_NK[some]]).sum(-1).mean()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), place.flatten()) - near
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(0.05, 1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % 100 == 0:
            log.info("names: step %d of %d, loss %.3f", step + 1, steps, float(loss.detach()))


def _ridge(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    gram = features.T @ features + penalty * len(features) * torch.eye(features.shape[1])
    return torch.as_tensor(torch.linalg.solve(gram, features.T @ targets))
