"""Examples as tensors: a prompt once, and behind it all of its answers side by side, each of which sees the prompt and itself.

So four titles are weighed for little more than the price of one. Positions start anew behind the prompt for each answer.

Shape suffixes: B examples of a batch, T tokens, C answers of all examples, D dimensions of a pin's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assistant.brains.prompts import Prompt, Prompter, Segment
from assistant.brains.wording import (
    Shown,
    ask_answer,
    ask_description,
    ask_fits,
    ask_same_board,
    ask_tags,
    ask_title,
    ask_tool,
)
from assistant.training.conversations import ANSWER, DESCRIPTION, FITS, SAME_BOARD, TAG, TAGS, TITLE, TOOL, WORD, Example

_QUESTIONS: dict[str, Callable[[list[Shown], str], tuple[Segment, ...]]] = {
    WORD: lambda pins, _: ask_title(pins[0]),
    TITLE: lambda pins, _: ask_title(pins[0]),
    DESCRIPTION: lambda pins, _: ask_description(pins[0]),
    TAGS: lambda pins, _: ask_tags(pins[0]),
    TAG: lambda pins, _: ask_tags(pins[0]),
    SAME_BOARD: lambda pins, _: ask_same_board(*pins),
    FITS: lambda pins, words: ask_fits(pins[0], words),
    ANSWER: lambda pins, words: ask_answer(list(enumerate(pins, 1)), words),
    TOOL: lambda _, words: ask_tool(words),
}


def question(example: Example) -> tuple[Segment, ...]:
    pins = [Shown(vector, title) for vector, title in zip(example.vectors_ND, example.titles, strict=True)]
    return _QUESTIONS[example.kind](pins, example.words)


@dataclass(frozen=True)
class Encoded:
    """An example's tokens.

    choices: Ids of each answer, the end of the turn with them.
    priors: How likely each answer is without the pins: sums of log-probabilities; () where that is no matter.
    """

    prompt: Prompt
    choices: tuple[tuple[int, ...], ...]
    right: int
    priors: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + sum(map(len, self.choices))


def encode(segments: Sequence[Segment], choices: Sequence[str], right: int, prompter: Prompter) -> Encoded:
    end = prompter.vocabulary.end_of_turn
    answers = tuple((*prompter.data(text), end) for text in choices)
    return Encoded(prompter.prompt(segments), answers, right)


def encode_example(example: Example, prompter: Prompter, choices: Sequence[str] | None = None) -> Encoded:
    """choices: Instead of the example's own, of which the first is the right one."""
    if choices is None:
        return encode(question(example), example.choices, example.right, prompter)
    return encode(question(example), choices, 0, prompter)


@dataclass(frozen=True)
class Batch:
    """ids_BT: tokens, padded at the end. positions_BT. mask_B1TT: 0 where attention looks, the least number elsewhere.
    is_pin_BT: the pins' places. pins_ND: in their order. asked_M: places, in the flat (B * T), whose next token is scored;
    answers_M: that token; of_M: which answer it belongs to. example_C: whose answer it is;
    priors_C: how likely it is without pins. right_B: the right one among all C.
    """

    ids_BT: Tensor  # noqa: N815
    positions_BT: Tensor  # noqa: N815
    mask_B1TT: Tensor  # noqa: N815
    is_pin_BT: Tensor  # noqa: N815
    pins_ND: Tensor  # noqa: N815
    asked_M: Tensor  # noqa: N815
    answers_M: Tensor  # noqa: N815
    of_M: Tensor  # noqa: N815
    example_C: Tensor  # noqa: N815
    right_B: Tensor  # noqa: N815
    priors_C: Tensor  # noqa: N815

    @property
    def tokens(self) -> int:
        return self.ids_BT.numel()


def collate(encoded: Sequence[Encoded], placeholder: int) -> Batch:
    """A batch of examples, whatever their lengths; like ones cost least."""
    longest = max(one.length for one in encoded)
    shape = (len(encoded), longest)
    ids, positions = np.full(shape, placeholder), np.zeros(shape, np.int64)
    segments = np.full(shape, -1)  # 0: the prompt, then 1 for the first answer and so on; -1: padding
    asked: list[int] = []
    answers: list[int] = []
    of: list[int] = []
    example: list[int] = []
    right: list[int] = []
    priors: list[float] = []
    for row, one in enumerate(encoded):
        prompt = len(one.prompt.ids)
        ids[row, :prompt], positions[row, :prompt], segments[row, :prompt] = one.prompt.ids, np.arange(prompt), 0
        place = prompt
        right.append(len(example) + one.right)
        priors += one.priors or [0.0] * len(one.choices)
        for number, choice in enumerate(one.choices):
            end = place + len(choice)
            ids[row, place:end], segments[row, place:end] = choice, number + 1
            positions[row, place:end] = np.arange(prompt, prompt + len(choice))
            asked += [row * longest + where for where in (prompt - 1, *range(place, end - 1))]
            answers += choice
            of += [len(example)] * len(choice)
            example.append(row)
            place = end
    known = torch.from_numpy(segments)
    own, prompt_part = known.unsqueeze(2) == known.unsqueeze(1), (known == 0).unsqueeze(1)
    sees = (own | prompt_part) & torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min).unsqueeze(1)
    pins = [one.prompt.pins for one in encoded if len(one.prompt.pins)]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        mask,
        torch.from_numpy((ids == placeholder) & (segments == 0)),
        torch.from_numpy(np.concatenate(pins)) if pins else torch.empty(0, 0),
        torch.tensor(asked),
        torch.tensor(answers),
        torch.tensor(of),
        torch.tensor(example),
        torch.tensor(right),
        torch.tensor(priors),
    )


def by_length(lengths: Sequence[int], tokens: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Places of `lengths` in batches of at most about `tokens`, like lengths together, the batches in an order that is drawn.

    Among like lengths the order is drawn too.
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], rng.random()))
    batches: list[list[int]] = [[]]
    for place in order:
        if batches[-1] and (len(batches[-1]) + 1) * lengths[place] > tokens:
            batches.append([])
        batches[-1].append(place)
    yield from (batches[place] for place in rng.permutation(len(batches)) if batches[place])
