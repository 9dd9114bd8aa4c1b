"""Folding batch norms into convolutions changes the time that a picture takes, and no vector."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from embedding.contracts import EmbeddingVersion
from embedding.encoder.building import build_model, load_weights
from embedding.encoder.config import load_config
from embedding.encoder.folding import fold_batch_norms
from embedding.encoder.model import PinEncoder


def run(model: nn.Module) -> Tensor:
    pixels = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(cast(Any, model)(pixels).flatten(1), dim=-1)


class TwoReaders(nn.Module):
    """A convolution that a batch norm reads, and a sum beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean = torch.tensor([1.0, -2.0, 3.0, 0.5])

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.conv(pixels)
        return cast(Tensor, self.norm(seen) + 3 * seen)


def test_the_shipped_encoder_gives_the_same_vectors_without_batch_norms() -> None:
    config = load_config("pinclip-base")
    plain = build_model(config)
    load_weights(plain, config)
    folded = PinEncoder.load(config)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.model.modules())
    unfolded = PinEncoder.of_model(config, EmbeddingVersion(config.name, "0" * 12), plain)
    assert any(isinstance(module, nn.BatchNorm2d) for module in unfolded.model.modules())
    pixels = torch.rand((3, 3, 224, 224)) * 2 - 1
    torch.testing.assert_close(folded.image_vectors(pixels), unfolded.image_vectors(pixels), atol=1e-5, rtol=0)


def test_a_convolution_that_others_read_too_is_left_as_it_is() -> None:
    model = TwoReaders().eval()
    assert fold_batch_norms(model, run) is model
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_a_batch_norm_without_a_convolution_before_it_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    assert fold_batch_norms(model, run) is model
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    cast(nn.BatchNorm2d, chain[1]).running_var = torch.tensor([0.1, 2.0, 3.0, 4.0])
    folded = fold_batch_norms(chain, run)
    assert isinstance(cast(nn.Sequential, folded)[1], nn.Identity)
    torch.testing.assert_close(run(folded), run(chain))
