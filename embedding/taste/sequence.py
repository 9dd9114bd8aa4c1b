"""A person as one vector, learned to foresee what they save next: PinnerFormer in small (arXiv 2205.04507).

A transformer reads the newest saves, each as its frozen pin vector with its age and the gap to the save after it. What it
finds is added to where it starts from: the mean of the pins' vectors, the newest ones weighing most, told from the mean of all
pins by a linear map (`Contrast`). So a model that has learned nothing is already a good query, and little data is enough.

The tower of the pins is the identity: a user's vector lies in the space of the pins' vectors, and its product with a pin is
the score. The live release can be asked with it as it is. How it learns is in embedding/taste/foresight.py.

Symbols: B users, N pins of a history, D dimensions of a vector, H of the transformer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from embedding.taste.interests import DAY_MINUTES, Floats, Ids

PERIODS_DAYS = (1.0, 7.0, 30.0, 365.0)
USERS_A_PASS = 64
SHRINKAGE = 0.3
"""Of the covariances' mean, added to each of them: directions in which few pins differ would weigh without bound."""


class UserModelError(Exception):
    """A model of users that is not there, is damaged, or is asked about another encoder's vectors."""


@dataclass(frozen=True)
class UserSetting:
    """The shape of the model.

    dim: D. max_pins: Of a history the newest that are read. decay: Places after which a save weighs 1/e in the mean that the
        model starts from.
    """

    dim: int
    max_pins: int = 128
    width: int = 64
    heads: int = 4
    layers: int = 2
    dropout: float = 0.1
    decay: float = 30.0


@dataclass(frozen=True, eq=False)
class History:
    """A user's saves, newest first: numbers or ids of pins (N,), minutes since 1970 (N,), the pins' vectors (N, D).

    targets_ND: Vectors that foretold saves are scored against, where they are others than those that are read.
    share_N: Of all saves those of this pin, for the correction of sampled negatives.
    """

    user_id: int
    pins_N: Ids  # noqa: N815 - a shape suffix
    saved_N: Ids  # noqa: N815
    vectors_ND: Floats  # noqa: N815
    targets_ND: Floats  # noqa: N815
    share_N: Floats  # noqa: N815

    def __len__(self) -> int:
        return len(self.pins_N)

    def before(self, newest: int, most: int | None = None) -> History:
        """The history without its newest saves; of the rest the newest `most`."""
        rows = slice(newest, None if most is None else newest + most)
        return self._rows(rows)

    def newest(self, count: int) -> History:
        """The newest saves alone."""
        return self._rows(slice(0, count))

    def _rows(self, rows: slice) -> History:
        ids, vectors = (self.pins_N[rows], self.saved_N[rows]), (self.vectors_ND[rows], self.targets_ND[rows])
        return History(self.user_id, *ids, *vectors, self.share_N[rows])


def end_of_day(minute: int) -> int:
    """The end of the day that has this minute, in minutes since 1970 (UTC)."""
    return (minute // DAY_MINUTES + 1) * DAY_MINUTES


@dataclass(frozen=True, eq=False)
class Batch:
    """Histories side by side: vectors (B, N, D), ages and gaps in days (B, N), and which places are filled (B, N)."""

    vectors_BND: Tensor  # noqa: N815
    ages_BN: Tensor  # noqa: N815
    gaps_BN: Tensor  # noqa: N815
    filled_BN: Tensor  # noqa: N815


def collate(histories: Sequence[History], max_pins: int) -> Batch:
    """Histories of one pin or more as a batch, each looked at at the end of the day of its newest save."""
    longest = min(max_pins, max(len(history) for history in histories))
    dim = histories[0].vectors_ND.shape[1]
    vectors = np.zeros((len(histories), longest, dim), np.float32)
    ages, gaps = np.zeros((2, len(histories), longest), np.float32)
    filled = np.zeros((len(histories), longest), bool)
    for row, history in enumerate(histories):
        count = min(longest, len(history))
        saved, now = history.saved_N[:count], end_of_day(int(history.saved_N[0]))
        vectors[row, :count] = history.vectors_ND[:count]
        ages[row, :count] = (now - saved) / DAY_MINUTES
        gaps[row, :count] = np.maximum(0, np.diff(saved[::-1], append=now)[::-1]) / DAY_MINUTES
        filled[row, :count] = True
    return Batch(*(torch.from_numpy(part) for part in (vectors, ages, gaps, filled)))


def time_features(days: Tensor) -> Tensor:
    """(..., 1 + 2 periods): the logarithm of a span, and where it falls in a day, a week, a month, a year.

    The following layer learns the phases (time2vec, arXiv 1907.05321, with the periods held)."""
    angles = days[..., None] * (2 * math.pi / torch.tensor(PERIODS_DAYS))
    return torch.cat([torch.log1p(days)[..., None], torch.sin(angles), torch.cos(angles)], dim=-1)


@dataclass(frozen=True, eq=False)
class Contrast:
    """A linear map of users' means: `map_DD` @ (mean - `centre_D`)."""

    map_DD: Floats  # noqa: N815
    centre_D: Floats  # noqa: N815

    @classmethod
    def none(cls, dim: int) -> Contrast:
        """Leaves means as they are."""
        return cls(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32))

    @classmethod
    def of(cls, vectors_PD: Floats, power: float) -> Contrast:
        """What tells a user's pins from pins at large: the covariance of all, shrunken towards its mean, to the power -`power`.

        With power 1 that is Fisher's linear discriminant between a user's pins and the others, if both are spread alike:
        directions in which all pins differ say little of a user, and so weigh little.
        """
        centre_D = vectors_PD.mean(axis=0)
        values, axes = np.linalg.eigh(np.cov((vectors_PD - centre_D).astype(np.float64).T))
        spread = np.maximum(values, 0) + SHRINKAGE * max(float(values.mean()), 1e-12)
        found = (axes * (spread / spread.mean()) ** -power) @ axes.T
        return cls(found.astype(np.float32), centre_D.astype(np.float32))


class UserModel(nn.Module):
    """Histories to unit vectors (B, D). New, it gives the decayed mean of a history's vectors, by its contrast."""

    contrast: Tensor
    centre: Tensor

    def __init__(self, setting: UserSetting) -> None:
        super().__init__()
        self.setting = setting
        width, dim = setting.width, setting.dim
        self.register_buffer("contrast", torch.eye(dim))
        self.register_buffer("centre", torch.zeros(dim))
        self.pin = nn.Linear(dim, width)
        self.time = nn.Linear(2 * (1 + 2 * len(PERIODS_DAYS)), width)
        self.place = nn.Embedding(setting.max_pins, width)
        self.user = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, setting.heads, 2 * width, setting.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, setting.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.log_decay = nn.Parameter(torch.tensor(math.log(setting.decay)))
        self.weight = nn.Linear(width, 1)
        self.turn = nn.Linear(dim, dim)
        self.found = nn.Linear(width, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for layer_of_zeros in (self.weight, self.turn, self.found):
            for parameter in layer_of_zeros.parameters():
                nn.init.zeros_(parameter)

    def forward(self, batch: Batch) -> Tensor:
        """Unit vectors (B, D)."""
        places = torch.arange(batch.filled_BN.shape[1])
        times = torch.cat([time_features(batch.ages_BN), time_features(batch.gaps_BN)], dim=-1)
        tokens = self.pin(batch.vectors_BND) + self.time(times) + self.place(places)
        reader = self.user.expand(len(tokens), 1, -1)
        hidden = torch.cat([torch.ones(len(tokens), 1, dtype=torch.bool), batch.filled_BN], dim=1).logical_not()
        read = self.transformer(torch.cat([reader, tokens], dim=1), src_key_padding_mask=hidden)
        logits = self.weight(read[:, 1:])[..., 0] - places / self.log_decay.exp()
        weights_BN = logits.masked_fill(~batch.filled_BN, -torch.inf).softmax(dim=1)
        mean_BD = (weights_BN[..., None] * batch.vectors_BND).sum(dim=1)
        start_BD = nn.functional.normalize((mean_BD - self.centre) @ self.contrast.T, dim=-1)
        return nn.functional.normalize(start_BD + self.turn(start_BD) + self.found(read[:, 0]), dim=-1)

    def encode(self, histories: Sequence[History]) -> Floats:
        """Unit vectors (B, D) of histories of one pin or more. A vector depends on its history alone, and on no clock.

        Raises UserModelError where their vectors have another number of dimensions.
        """
        if any(history.vectors_ND.shape[1] != self.setting.dim for history in histories):
            raise UserModelError(f"the model reads vectors of {self.setting.dim} dimensions, and was given others")
        found = np.empty((len(histories), self.setting.dim), np.float32)
        self.eval()
        with torch.inference_mode():
            for rows in like_length(histories):
                found[rows] = self(collate([histories[row] for row in rows], self.setting.max_pins)).numpy()
        return found


def like_length(histories: Sequence[History]) -> Iterator[list[int]]:
    """Rows of histories of about the same length: a long one would have all others padded to its own."""
    order = np.argsort([len(history) for history in histories], kind="stable")
    for start in range(0, len(order), USERS_A_PASS):
        yield order[start : start + USERS_A_PASS].tolist()


def decayed_mean(setting: UserSetting, decay: float, contrast: Contrast | None = None) -> UserModel:
    """The model that has learned nothing: the mean of a history's vectors, each weighing e^(-1/decay) of the next newer."""
    contrast = contrast or Contrast.none(setting.dim)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UserModel(setting)
    with torch.no_grad():
        model.log_decay.fill_(math.log(decay))
        model.contrast.copy_(torch.from_numpy(contrast.map_DD))
        model.centre.copy_(torch.from_numpy(contrast.centre_D))
    return model.eval()
