"""Keys and values of the conversations under way: one buffer a layer, one row a conversation, each filled from the left.

A conversation that joins, grows or leaves touches no other's row but one: when a row becomes free, the last one moves there, so
that the rows in use are the first ones. Symbols as in decoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assistant.brains.decoder import Cache, Decoder, KeysValues

DEEP = 256
"""Rows are made longer by so many tokens at a time."""


class Slots:
    """most_rows: As many at most. Memory: 2 x layers x rows x tokens x Q x E numbers, as much as `reserve` was asked for."""

    def __init__(self, decoder: Decoder, most_rows: int):
        self._decoder, self._most_rows = decoder, most_rows
        self._buffers: list[KeysValues] = []

    def reserve(self, rows: int, tokens: int, used: int) -> None:
        """Room for so many rows of so many tokens each. What the first `used` rows hold is kept."""
        if self._buffers and self._buffers[0][0].shape[0] >= rows and self._buffers[0][0].shape[2] >= tokens:
            return
        wide = min(self._most_rows, 1 << (rows - 1).bit_length())
        deep = -(-tokens // DEEP) * DEEP
        decoder = self._decoder
        shape = (wide, decoder.key_heads, deep, decoder.key_dim)
        old = self._buffers
        self._buffers = []
        for layer in range(decoder.layers):
            # Zeros: attention gives what is masked a weight of 0, but 0 times whatever lay in the memory may be no number.
            keys, values = (torch.zeros(shape, dtype=decoder.weight.dtype, device=decoder.device) for _ in range(2))
            if old:
                kept = min(deep, old[layer][0].shape[2])
                for new, before in zip((keys, values), old[layer], strict=True):
                    new[:used, :, :kept] = before[:used, :, :kept]
                old[layer] = (keys, values)  # frees the layer's former buffers before the next layer's are made
            self._buffers.append((keys, values))

    def write(self, row: int, past: Sequence[KeysValues], made: Sequence[KeysValues], of: int, length: int) -> None:
        """Fills a row with the shared past, if any, and with `length` new tokens: those of row `of` in `made`."""
        start = past[0][0].shape[2] if past else 0
        for layer, buffers in enumerate(self._buffers):
            for kind, buffer in enumerate(buffers):
                if past:
                    buffer[row, :, :start] = past[layer][kind][0]
                buffer[row, :, start : start + length] = made[layer][kind][of, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        for buffers in self._buffers:
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def step(self, lengths: Sequence[int]) -> tuple[Cache, Tensor, Tensor]:
        """For one new token in each of the first rows, which hold `lengths` tokens.

        Returns the cache, the positions (B, 1) and the mask (B, 1, 1, keys).
        """
        device, dtype = self._decoder.device, self._decoder.weight.dtype
        positions = torch.tensor(lengths, device=device)
        rows = torch.arange(len(lengths), device=device)
        longest = max(lengths) + 1
        later = torch.arange(longest, device=device) > positions.unsqueeze(-1)
        mask = torch.zeros(later.shape, dtype=dtype, device=device).masked_fill(later, torch.finfo(dtype).min)

        def put(layer: int, keys: Tensor, values: Tensor) -> KeysValues:
            held = []
            for buffer, new in zip(self._buffers[layer], (keys, values), strict=True):
                buffer[rows, :, positions] = new[:, :, 0]
                held.append(buffer[: len(lengths), :, :longest])
            return held[0], held[1]

        return Cache(put, longest - 1), positions.unsqueeze(-1), mask[:, None, None]
