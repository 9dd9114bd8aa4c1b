"""A language model that sees pins through a projector: what a batch costs it, and how likely it finds each answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assistant.projector import Projector
from assistant.training.batches import Batch, Encoded, by_length, collate
from embedding.index.recall import Floats

SCORED_TOKENS = 1_024
"""Tokens of a batch that is only scored."""


class Seeing(nn.Module):
    """language_model: A causal model of transformers with `.model` and `.lm_head`: Llama's, or Qwen3-VL's without its tower.

    Batches may be on another device than the model; what is returned is where the model is.
    """

    def __init__(self, language_model: Any, projector: Projector, placeholder: int):
        super().__init__()
        self.language_model, self.projector, self.placeholder = language_model, projector, placeholder

    def answer_tokens(self, batch: Batch) -> Tensor:
        """(M,) log likelihood of each token of the answers, the end of the turn with them."""
        weights = self.language_model.get_input_embeddings().weight
        batch = batch.to(weights.device)
        embedded = nn.functional.embedding(batch.ids_BT, weights)
        if len(batch.pins_ND):
            tokens = self.projector(batch.pins_ND).flatten(0, 1).to(embedded.dtype)
            embedded = embedded.masked_scatter(batch.is_pin_BT.unsqueeze(-1), tokens)
        inner = self.language_model.model
        mask_B1TT = batch.mask_B1TT.to(weights.dtype).clamp(min=torch.finfo(weights.dtype).min)
        said = getattr(inner, "language_model", inner)(
            inputs_embeds=embedded, attention_mask=mask_B1TT, position_ids=batch.positions_BT, use_cache=False
        )
        logits_MV = self.language_model.lm_head(said.last_hidden_state.flatten(0, 1)[batch.asked_M])
        return -nn.functional.cross_entropy(logits_MV.float(), batch.answers_M, reduction="none")

    def loss(self, batch: Batch) -> Tensor:
        """Of the right answers' tokens, and, where there are several answers, of finding the right one the likeliest."""
        tokens_M = self.answer_tokens(batch)
        batch, zeros_C = batch.to(tokens_M.device), tokens_M.new_zeros(len(batch.example_C))
        is_right_C = zeros_C.bool()
        is_right_C[batch.right_B] = True
        saying = -tokens_M[is_right_C[batch.of_M]].mean()
        # What an answer gains by the pins: else the shortest and most usual one would be chosen, whatever is shown.
        scores_C = zeros_C.index_add(0, batch.of_M, tokens_M) - batch.priors_C
        counts_B = torch.bincount(batch.example_C, minlength=len(batch.right_B))
        wide_BC = tokens_M.new_full((len(counts_B), int(counts_B.max())), -torch.inf)
        starts_B = counts_B.cumsum(0) - counts_B
        wide_BC[batch.example_C, torch.arange(len(scores_C), device=tokens_M.device) - starts_B[batch.example_C]] = scores_C
        several = counts_B > 1
        if not several.any():
            return saying
        choosing = nn.functional.cross_entropy(wide_BC[several], (batch.right_B - starts_B)[several])
        return saying + choosing

    @torch.no_grad()
    def score(self, encoded: Sequence[Encoded]) -> list[tuple[Floats, Floats]]:
        """Of each example the log likelihood of its answers (C,), and how many tokens each has (C,)."""
        found: list[tuple[Floats, Floats]] = [(np.empty(0, np.float32), np.empty(0, np.float32))] * len(encoded)
        for places, batch in batches_of(encoded, SCORED_TOKENS, self.placeholder, seed=0):
            tokens_M = self.answer_tokens(batch).cpu()
            sums_C = torch.zeros(len(batch.example_C)).index_add(0, batch.of_M, tokens_M).numpy()
            counts_C = torch.bincount(batch.of_M).numpy().astype(np.float32)
            for row, place in enumerate(places):
                own = batch.example_C.numpy() == row
                found[place] = sums_C[own], counts_C[own]
        return found


def batches_of(
    encoded: Sequence[Encoded], tokens: int, placeholder: int, seed: int, skip: int = 0
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of like lengths in an order drawn by the seed, with the examples' places; the first `skip` are left out."""
    lengths = [one.length for one in encoded]
    for number, places in enumerate(by_length(lengths, tokens, np.random.default_rng(seed))):
        if number >= skip:
            yield places, collate([encoded[place] for place in places], placeholder)
