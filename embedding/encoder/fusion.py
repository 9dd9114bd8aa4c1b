"""The fusion head: what a pin's picture and text say, together or alone, as one vector of one space.

A hybrid of the two towers as PinCLIP describes it (arXiv 2603.03544): the towers' own vectors are mapped and added, and a small
network over both corrects the sum. A pin with only a picture, or only text, goes through the same head with a learned vector
in the other's place, so that all pins, and searches by picture or by words, share one space. The first 128 or 64 dimensions
are usable by themselves once they are brought to length 1 again (Matryoshka, arXiv 2205.13147), if training asks for it.

Shape suffixes: N pins, E dimensions of a tower's vector, D dimensions of a pin's vector.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class FusionHead(nn.Module):
    """Maps unit vectors of the towers to unit vectors of pins.

    Args:
        width: E.
        dim: D.
        hidden: Width of the network that corrects the sum.
        dropout: Of its hidden layer, in training.
    """

    def __init__(self, width: int, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.image = nn.Linear(width, dim, bias=False)
        self.text = nn.Linear(width, dim, bias=False)
        self.no_image = nn.Parameter(torch.zeros(dim))
        self.no_text = nn.Parameter(torch.zeros(dim))
        self.mix = nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        # The correction starts at nothing: the head starts as the plain sum.
        last = cast(nn.Linear, self.mix[3])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, image_NE: Tensor, text_NE: Tensor, has_image_N: Tensor, has_text_N: Tensor) -> Tensor:
        """Unit vectors (N, D), float32. Where `has_image_N` or `has_text_N` is False, what the tower said is not looked at."""
        with_image, with_text = has_image_N[:, None].float(), has_text_N[:, None].float()
        image_NE, text_NE = image_NE.float() * with_image, text_NE.float() * with_text
        summed = self.image(image_NE) + self.text(text_NE)
        absent = (1 - with_image) * self.no_image + (1 - with_text) * self.no_text
        mixed = self.mix(torch.cat([image_NE, text_NE], dim=1))
        return nn.functional.normalize((summed + absent + mixed).float(), dim=-1)
