"""A language model as the engine wants it: embeddings in, hidden states out, and a cache of keys and values that is ours.

Nothing is kept on the module between calls. Positions are one-dimensional: pins have no grid, so Qwen3-VL's three axes of
positions agree, DeepStack has nothing to add, and `rope_deltas` is never asked.

Symbols: B rows, L tokens, H hidden size, K tokens a pin, N pins, V vocabulary, Q heads of keys and values, E their dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assistant.brains.prompts import Prompt
from assistant.projector import Projector

KeysValues = tuple[Tensor, Tensor]
"""Of one layer: (B, Q, L, E) each."""


@dataclass(frozen=True)
class Decoder:
    """A language model without a vision tower.

    name: What a projector calls it.
    text_model: Its layers: embeddings to normalised hidden states, called with a cache of ours.
    head: Hidden states to logits.
    placeholder: The id whose positions `projector` fills.
    projector: Pins to token embeddings; None: prompts have no pins.
    """

    name: str
    text_model: nn.Module
    head: nn.Module
    placeholder: int
    projector: Projector | None = None

    @classmethod
    def of(cls, model: nn.Module, name: str, placeholder: int, projector: Projector | None = None) -> Decoder:
        """Of a causal model of transformers: LlamaForCausalLM, or Qwen3VLForConditionalGeneration, whose tower is not used.

        Raises ValueError for a projector of another language model, or of another hidden size.
        """
        inner: Any = model.get_submodule("model")
        text_model = getattr(inner, "language_model", inner)
        decoder = cls(name, text_model, model.get_submodule("lm_head"), placeholder, projector)
        if projector is not None and (projector.config.language_model, projector.config.hidden) != (name, decoder.hidden):
            raise ValueError(
                f"the projector is for {projector.config.language_model} of hidden size {projector.config.hidden}, "
                f"this is {name} of {decoder.hidden}: train one for it"
            )
        return decoder

    @property
    def weight(self) -> Tensor:
        """The token embeddings (V, H)."""
        return torch.as_tensor(self.text_model.get_parameter("embed_tokens.weight"))

    @property
    def hidden(self) -> int:
        return self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def longest(self) -> int:
        """Tokens that the model has positions for."""
        return int(self._config.max_position_embeddings)

    @property
    def layers(self) -> int:
        return int(self._config.num_hidden_layers)

    @property
    def key_heads(self) -> int:
        """Q."""
        return int(self._config.num_key_value_heads)

    @property
    def key_dim(self) -> int:
        """E."""
        config = self._config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def _config(self) -> Any:
        return self.text_model.config

    def embed(self, prompt: Prompt) -> Tensor:
        """(L, H), placeholders filled. Raises ValueError where pins and placeholders do not fit."""
        ids = torch.tensor(prompt.ids, device=self.device)
        projected: Tensor | None = None
        if len(prompt.pins):
            if self.projector is None:
                raise ValueError("the prompt has pins, but this model has no projector for them")
            if prompt.pins.shape[1] != self.projector.config.dim:
                raise ValueError(f"pins of {prompt.pins.shape[1]} dimensions: the projector reads {self.projector.config.dim}")
            place = next(self.projector.parameters()).device
            projected = self.projector(torch.from_numpy(prompt.pins).to(place))
        return fill(nn.functional.embedding(ids, self.weight), ids == self.placeholder, projected)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., V), float32."""
        return torch.as_tensor(self.head(hidden)).float()

    def forward(self, embeds_BLH: Tensor, positions_BL: Tensor, cache: Cache, mask: Tensor | None) -> Tensor:
        """(B, L, H). mask: (B or 1, 1, L, keys), added to attention's scores; None: causal, for a cache without a past."""
        said = self.text_model(
            inputs_embeds=embeds_BLH, position_ids=positions_BL, past_key_values=cache, attention_mask=mask, use_cache=True
        )
        return torch.as_tensor(said.last_hidden_state)


def fill(embeds_LH: Tensor, placeholders_L: Tensor, projected_NKH: Tensor | None) -> Tensor:
    """The embeddings with placeholders replaced, in order, by projected pins. Batches alike: (B, L, H), (B, L), and all pins.

    Raises ValueError where their numbers differ.
    """
    given = 0 if projected_NKH is None else projected_NKH.shape[0] * projected_NKH.shape[1]
    wanted = int(placeholders_L.sum())
    if given != wanted:
        raise ValueError(f"{given} projected tokens for {wanted} placeholders")
    if projected_NKH is None:
        return embeds_LH
    return embeds_LH.masked_scatter(placeholders_L.unsqueeze(-1), projected_NKH.to(embeds_LH.device, embeds_LH.dtype))


@dataclass
class Cache:
    """What attention layers write their keys and values to, in transformers' terms, for one call of the model.

    put: Takes (layer, new keys, new values) and returns all that the new tokens may attend to.
    past: Tokens before the new ones.
    """

    put: Callable[[int, Tensor, Tensor], KeysValues]
    past: int = 0

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeysValues:
        return self.put(layer_idx, keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.past

    def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        return self.past + query_length, 0


@dataclass
class Collected:
    """Keys and values of new tokens, a layer each; before them a past that all rows share.

    past: Of one row, a layer each; empty: none.
    made: Of the new tokens, a layer each, once the model has run.
    """

    past: Sequence[KeysValues] = ()
    made: list[KeysValues] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.past[0][0].shape[2] if self.past else 0

    def cache(self) -> Cache:
        return Cache(self._put, self.length)

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        self.made.append((keys, values))
        if not self.past:
            return keys, values
        before = (part.expand(len(keys), -1, -1, -1) for part in self.past[layer])
        whole = [torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True)]
        return whole[0], whole[1]


def read(decoder: Decoder, rows: Sequence[Tensor], past: Sequence[KeysValues] = ()) -> tuple[Tensor, list[KeysValues]]:
    """Reads several rows at once, each of its own length (L, H), after a past that they share.

    Rows are padded at their ends: attention is causal, so no token sees what follows it, and padding changes nothing.
    Returns hidden states (B, longest L, H) and the new tokens' keys and values; what belongs to padding is to be ignored.
    """
    collected = Collected(past)
    embeds = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    size = embeds.shape[1]
    start = collected.length
    positions = torch.arange(start, start + size, device=embeds.device).expand(len(rows), -1)
    mask = None
    if start:
        later = torch.arange(start + size, device=embeds.device) > positions[0].unsqueeze(-1)
        mask = torch.zeros(later.shape, dtype=embeds.dtype, device=embeds.device)
        mask = mask.masked_fill(later, torch.finfo(embeds.dtype).min)[None, None]
    return decoder.forward(embeds, positions, collected.cache(), mask), collected.made
