"""Teaches a model of users to foresee later saves, and judges by those that it has not seen.

PinnerFormer's dense all-action loss (arXiv 2205.04507): from places drawn anywhere in a history, what was known there is to
foretell a save drawn from the window after it. It is told from what others saved in this batch and from pins drawn at
random; the logits are corrected by how often a pin is expected among them (log Q), so that what is popular is not punished for
being met often. A user counts alike whether they saved ten pins or ten thousand. Pins' vectors stay as they are.

Symbols: B users, E examples, C candidates, P pins of the pool, D dimensions.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedding.taste.interests import DAY_MINUTES, Floats, Ids
from embedding.taste.sequence import Contrast, History, UserModel, UserSetting, collate, decayed_mean, like_length

DECAYS = (1e6, 100.0, 30.0, 10.0, 3.0)
"""Places after which a save weighs 1/e in the mean that a model starts from: the first is the plain mean."""
POWERS = (0.5, 1.0)
MAX_SCALE = 100.0
HELD_OUT, LEAST_JUDGED = 0.2, 5
"""Of a history the newest share that is held out, and the saves from which on it is."""
TOP = 10
_USERS_A_BLOCK = 256

Batches = Callable[[np.random.Generator], Iterator[list[History]]]
"""Gives all users once, in an order and in lots that the generator draws."""

log = logging.getLogger("pinlake")


@dataclass(frozen=True)
class LearningSetting:
    """How a model learns.

    cuts: Places drawn of a history each time it is met. window, window_days: How far after them a save may lie. negatives: Pins
        drawn at random beside the batch's own. steps_a_round: At least so many, if need be of the same users again; then the
        model is judged. patience: Rounds without a better judgement before it ends.
    """

    rounds: int = 40
    steps_a_round: int = 20
    most_steps: int = 20_000
    cuts: int = 4
    window: int = 32
    window_days: float = 28.0
    negatives: int = 1_024
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    patience: int = 6
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Pool:
    """Pins in the order of their ids (P,), vectors to score them by (P, D), and of all saves the share of each (P,).

    drawn_from: How many pins there are in all.
    """

    pins_P: Ids  # noqa: N815
    vectors_PD: Floats  # noqa: N815
    share_P: Floats  # noqa: N815
    drawn_from: int

    @classmethod
    def empty(cls, dim: int) -> Pool:
        return cls(np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty(0, np.float32), 1)

    def __len__(self) -> int:
        return len(self.pins_P)

    def with_saves_of(self, histories: Sequence[History]) -> Pool:
        """The pool and all pins of some histories."""
        pins = np.concatenate([self.pins_P, *(history.pins_N for history in histories)])
        unique, first = np.unique(pins, return_index=True)
        vectors = np.concatenate([self.vectors_PD, *(history.targets_ND for history in histories)])[first]
        share = np.concatenate([self.share_P, *(history.share_N for history in histories)])[first]
        return Pool(unique, vectors, share, self.drawn_from)


@dataclass(frozen=True, eq=False)
class Judged:
    """Users whose newest saves are asked for: what is known of them, and what is asked (ids), among a pool that has it all."""

    known: list[History]
    asked: list[Ids]
    pool: Pool

    @classmethod
    def of(cls, histories: Sequence[History], pool: Pool) -> Judged:
        """Holds out the newest saves of histories that are long enough."""
        parts = [(known, later) for known, later in map(hold_out, histories) if later is not None]
        return cls(
            [known for known, _ in parts],
            [later.pins_N for _, later in parts],
            pool.with_saves_of([later for _, later in parts]),
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Of each judged user the share of what is asked that is among the ten best, at most ten counting; and a gain of all ranks,
    the mean of 1 / log2(rank + 2), which moves where the other does not yet."""

    recall_B: Floats  # noqa: N815
    gain_B: Floats  # noqa: N815

    @property
    def recall(self) -> float:
        return float(self.recall_B.mean()) if len(self.recall_B) else 0.0

    @property
    def gain(self) -> float:
        return float(self.gain_B.mean()) if len(self.gain_B) else 0.0


@dataclass(frozen=True, eq=False)
class Learned:
    """The best model that was met, the round of it (0: the start), and what each round was worth."""

    model: UserModel
    round: int
    gains: list[float]


def hold_out(history: History) -> tuple[History, History | None]:
    """What is known of a user, and their newest saves; None of these where the history is too short to take some away."""
    if len(history) < LEAST_JUDGED:
        return history, None
    newest = max(1, round(HELD_OUT * len(history)))
    return history.before(newest), history.newest(newest)


# -- judging ---------------------------------------------------------------------------------------------------------------


def judge(model: UserModel, judged: Judged) -> Found:
    """What a model finds of the saves that are asked for, among the pool less what the user has. Ties count as half found."""
    recalls, gains = np.zeros((2, len(judged.known)), np.float32)
    for start in range(0, len(judged.known), _USERS_A_BLOCK):
        known = judged.known[start : start + _USERS_A_BLOCK]
        users_BD = model.encode(known)
        scores_BP = users_BD @ judged.pool.vectors_PD.T
        for row, history in enumerate(known):
            scores_P, asked = scores_BP[row], judged.asked[start + row]
            scores_P[np.isin(judged.pool.pins_P, history.pins_N)] = -np.inf
            own = scores_P[np.searchsorted(judged.pool.pins_P, asked)]
            in_order = np.sort(scores_P)
            above = len(in_order) - np.searchsorted(in_order, own, "right")
            equal = len(in_order) - np.searchsorted(in_order, own, "left") - above
            ranks = above + (equal - 1) / 2
            recalls[start + row] = (ranks < TOP).sum() / min(TOP, len(asked))
            gains[start + row] = (1 / np.log2(ranks + 2)).mean()
    return Found(recalls, gains)


def best_mean(setting: UserSetting, judged: Judged) -> UserModel:
    """The decayed mean that finds most: what a model is to be better than."""
    return _best([decayed_mean(setting, decay) for decay in DECAYS], judged)


def best_start(setting: UserSetting, judged: Judged, pool: Pool) -> UserModel:
    """The decayed mean and its contrast with all pins that find most together: what a model starts from."""
    contrasts = [Contrast.none(setting.dim), *(Contrast.of(pool.vectors_PD, power) for power in POWERS if len(pool) > 1)]
    return _best([decayed_mean(setting, decay, contrast) for contrast in contrasts for decay in DECAYS], judged)


def _best(models: Sequence[UserModel], judged: Judged) -> UserModel:
    return max(models, key=lambda model: judge(model, judged).gain)  # of equal ones the first


# -- learning --------------------------------------------------------------------------------------------------------------


def learn(batches: Batches, pool: Pool, judged: Judged, start: UserModel, setting: LearningSetting) -> Learned:
    """Trains a copy of `start` on histories that hold nothing of what is asked. The same arguments give the same weights, on as
    many threads. Memory: a lot of histories and the pool.

    What comes back is the round that finds most of what is asked: where no round is better, the start itself.
    """
    rng = np.random.default_rng(setting.seed)
    with torch.random.fork_rng():
        torch.manual_seed(setting.seed)
        model = copy.deepcopy(start)
        optimizer = _optimizer(model, setting)
        best, best_round, steps = copy.deepcopy(model), 0, 0
        gains = [judge(model, judged).gain]
        for number in range(1, setting.rounds + 1):
            steps += _round(model, optimizer, batches, pool, setting, rng)
            gains.append(judge(model, judged).gain)
            log.info("round %d, %d steps: a gain of %.4f, at the start %.4f", number, steps, gains[-1], gains[0])
            if gains[-1] > gains[best_round]:
                best, best_round = copy.deepcopy(model), number
            if number - best_round >= setting.patience or steps >= setting.most_steps or not steps:
                break
    return Learned(best.eval(), best_round, gains)


def _round(
    model: UserModel,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    pool: Pool,
    setting: LearningSetting,
    rng: np.random.Generator,
) -> int:
    """Learns from all users once, or more often where they are few. Returns the steps that it took."""
    model.train()
    steps, met = 0, -1
    while met != steps and steps < setting.steps_a_round:
        met = steps
        for histories in batches(rng):
            loss = loss_of(model, histories, pool, setting, rng)
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                steps += 1
    return steps


def _optimizer(model: UserModel, setting: LearningSetting) -> torch.optim.Optimizer:
    """Weight decay pulls towards the start, where the layers that change it are zeros; scales and phases are left alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=setting.learning_rate, weight_decay=setting.weight_decay)


@dataclass(frozen=True)
class _Example:
    """A place in a history, and the later save that is to be foretold there: numbers of saves, 0 the newest."""

    row: int
    place: int
    save: int


def draw_examples(histories: Sequence[History], setting: LearningSetting, rng: np.random.Generator) -> list[_Example]:
    """Places of each history of two saves or more, and of each place a save in the window after it."""
    found = []
    for row, history in enumerate(histories):
        if len(history) < 2:
            continue
        for place in rng.integers(1, len(history), setting.cuts).tolist():
            later = np.arange(max(0, place - setting.window), place)
            within = history.saved_N[later] - history.saved_N[place] <= setting.window_days * DAY_MINUTES
            if within.any():
                found.append(_Example(row, place, int(rng.choice(later[within]))))
    return found


def loss_of(
    model: UserModel, histories: Sequence[History], pool: Pool, setting: LearningSetting, rng: np.random.Generator
) -> Tensor | None:
    """Sampled softmax of the examples of some histories; None where none of these has any."""
    examples = draw_examples(histories, setting, rng)
    if not examples:
        return None
    cut = [histories[e.row].before(e.place, model.setting.max_pins) for e in examples]
    saves = [histories[e.row].newest(e.save + 1).before(e.save) for e in examples]
    drawn = np.sort(rng.choice(len(pool), min(setting.negatives, len(pool)), replace=False))
    candidates = Pool(pool.pins_P[drawn], pool.vectors_PD[drawn], pool.share_P[drawn], pool.drawn_from).with_saves_of(saves)
    expected_C = len(examples) * candidates.share_P + len(drawn) / pool.drawn_from
    own_E = np.searchsorted(candidates.pins_P, [int(save.pins_N[0]) for save in saves])
    has_BC = np.stack([np.isin(candidates.pins_P, history.pins_N) for history in histories])
    hidden_EC = has_BC[[e.row for e in examples]]
    hidden_EC[np.arange(len(examples)), own_E] = False
    scale = model.log_scale.exp().clamp(max=MAX_SCALE)
    logits_EC = scale * _users(model, cut) @ torch.from_numpy(candidates.vectors_PD).T
    logits_EC = logits_EC - torch.from_numpy(np.log(expected_C).astype(np.float32))
    logits_EC = logits_EC.masked_fill(torch.from_numpy(hidden_EC), -torch.inf)
    return nn.functional.cross_entropy(logits_EC, torch.from_numpy(own_E))


def _users(model: UserModel, histories: Sequence[History]) -> Tensor:
    """The model's vectors (E, D) of histories, those of like length together, in the order given."""
    lots = list(like_length(histories))
    parts = [model(collate([histories[row] for row in rows], model.setting.max_pins)) for rows in lots]
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(lots)))]


def in_memory(histories: Sequence[History], users_a_lot: int = 128) -> Batches:
    """Histories that fit in memory, as `learn` takes them."""

    def batches(rng: np.random.Generator) -> Iterator[list[History]]:
        order: NDArray[np.int64] = rng.permutation(len(histories))
        for start in range(0, len(order), users_a_lot):
            yield [histories[row] for row in order[start : start + users_a_lot]]

    return batches
