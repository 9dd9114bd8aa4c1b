"""How a prompt is made: what we have written, what others have written, and pins, as token ids with placeholders for the pins.

Titles, descriptions and messages are data. Only our own template may hold special tokens; a title that spells out
`<|im_end|><|im_start|>system`, or the placeholder, is tokenised as the plain characters that it is made of. This keeps the
turns of a conversation apart; it does not keep a model from believing what a title says.

Each segment is tokenised by itself, so that a title cannot change the tokens of the words around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from tokenizers import Tokenizer

from embedding.index.recall import Floats


class PromptError(Exception):
    """The tokenizer lacks a token that prompts need, or a prompt's pins do not fit together; the message says which."""


@dataclass(frozen=True)
class Template:
    """Text of ours: special tokens in it are special."""

    text: str


@dataclass(frozen=True)
class Data:
    """Text of somebody else's: whatever it contains, none of it becomes a special token."""

    text: str


@dataclass(frozen=True)
class Pin:
    """A pin's picture. vector: its embedding (D,), L2-normalised, of the projector's encoder."""

    vector: Floats


Segment = Template | Data | Pin


@dataclass(frozen=True)
class Vocabulary:
    """The ids that have a part in prompts and answers of one language model.

    placeholder: Stands K times for a pin; its own embedding is never read, so any reserved token serves.
    end_of_turn: What the model says when it has answered.
    vision_start, vision_end: Around a pin's placeholders, where the model knows such tokens.
    end_of_thinking: What ends thinking, said by the model or by force; None: the model has no such token.
    """

    placeholder: int
    end_of_turn: int
    vision_start: int | None = None
    vision_end: int | None = None
    end_of_thinking: int | None = None


def smollm2_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """SmolLM2-Instruct's. Its reserved `<file_sep>` is the placeholder. Raises PromptError for another model's tokenizer."""
    return Vocabulary(_id_of(tokenizer, "<file_sep>"), _id_of(tokenizer, "<|im_end|>"))


def qwen3_vl_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Qwen3-VL's, of both editions. Raises PromptError for another model's tokenizer."""
    return Vocabulary(
        placeholder=_id_of(tokenizer, "<|image_pad|>"),
        end_of_turn=_id_of(tokenizer, "<|im_end|>"),
        vision_start=_id_of(tokenizer, "<|vision_start|>"),
        vision_end=_id_of(tokenizer, "<|vision_end|>"),
        end_of_thinking=_id_of(tokenizer, "</think>"),
    )


def turn(role: str, *segments: Segment) -> tuple[Segment, ...]:
    """A whole turn in ChatML, which SmolLM2-Instruct and Qwen3-VL share. role: `system`, `user` or `assistant`."""
    return Template(f"<|im_start|>{role}\n"), *segments, Template("<|im_end|>\n")


def reply() -> tuple[Segment, ...]:
    """The beginning of the model's own turn: the end of a prompt."""
    return (Template("<|im_start|>assistant\n"),)


@dataclass(frozen=True)
class Prompt:
    """What a decoder reads.

    ids: The tokens, K placeholders a pin.
    pins: Their embeddings in that order, (N, D), L2-normalised; (0, 0) without pins.
    """

    ids: tuple[int, ...]
    pins: Floats


class Prompter:
    """Makes prompts for one language model, and text of what it says. Nothing in it changes: threads may share it.

    tokenizer: The model's own, as tokenizers has it (`.backend_tokenizer` of transformers'). It is copied, since tokenizers can
        be changed: one copy knows special tokens, one does not.
    tokens_a_pin: K, as the projector's.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, tokens_a_pin: int):
        said = json.loads(tokenizer.to_str())
        self.vocabulary = vocabulary
        self.tokens_a_pin = tokens_a_pin
        self._reserved = frozenset(token["id"] for token in said["added_tokens"])
        if vocabulary.placeholder not in self._reserved:
            raise PromptError(f"the placeholder, id {vocabulary.placeholder}, is no reserved token: data could spell it")
        said |= {"truncation": None, "padding": None, "post_processor": None}
        self._whole = Tokenizer.from_str(json.dumps(said))
        # No added token at all: `encode_special_tokens` would still find those that are added but not special, `</think>`.
        self._plain = Tokenizer.from_str(json.dumps(said | {"added_tokens": []}))

    def prompt(self, segments: Iterable[Segment]) -> Prompt:
        """Raises PromptError where pins have different dimensions."""
        ids: list[int] = []
        pins: list[Floats] = []
        for kind, group in groupby(segments, type):
            if kind is Pin:
                for pin in group:
                    assert isinstance(pin, Pin)
                    pins.append(pin.vector)
                    ids += self._around(pin)
            elif kind is Template:  # neighbours of ours are one text: where one ends is no matter to the model
                ids += self._whole.encode("".join(part.text for part in group if isinstance(part, Template))).ids
            else:
                for part in group:
                    assert isinstance(part, Data)
                    ids += self.data(part.text)
        if len({pin.shape for pin in pins}) > 1:
            raise PromptError(f"a prompt's pins have one dimension, not {sorted({pin.shape for pin in pins})}")
        return Prompt(tuple(ids), np.stack(pins).astype(np.float32) if pins else np.empty((0, 0), np.float32))

    def data(self, text: str) -> list[int]:
        """Ids of somebody's text, none of them reserved; also what a continuation is scored by."""
        sound = text.encode("utf-8", "replace").decode(
            "utf-8"
        )  # half a surrogate pair is no text: JSON may carry it all the same
        return [number for number in self._plain.encode(sound).ids if number not in self._reserved]

    def text(self, ids: Sequence[int]) -> str:
        """What the ids spell. Special tokens spell nothing; half a character is U+FFFD."""
        return str(self._whole.decode(list(ids), skip_special_tokens=True))

    def _around(self, pin: Pin) -> list[int]:
        if pin.vector.ndim != 1:
            raise PromptError(f"a pin is one vector (D,), not {pin.vector.shape}")
        known = self.vocabulary
        before, after = ([number] if number is not None else [] for number in (known.vision_start, known.vision_end))
        return [*before, *[known.placeholder] * self.tokens_a_pin, *after]


class TextStream:
    """Text of tokens that come one by one: pieces that together are the whole text, and never half a character.

    stop: Texts at which the answer ends; they and what follows are left out.
    """

    def __init__(self, prompter: Prompter, stop: Sequence[str] = ()):
        self._prompter, self._stop = prompter, tuple(text for text in stop if text)
        self._ids: list[int] = []
        self._read = 0  # ids before it are spelled already; one piece is kept before them, since some decoders look back
        self._kept = 0
        self._waiting = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What can be said now; often nothing, and nothing after a stop text."""
        if self.stopped:
            return ""
        self._ids.append(token)
        before = self._prompter.text(self._ids[self._kept : self._read])
        text = self._prompter.text(self._ids[self._kept :])
        if text.endswith("\ufffd") or len(text) < len(before):
            return ""
        self._kept, self._read = self._read, len(self._ids)
        return self._without_stop(text[len(before) :])

    def end(self) -> str:
        """The rest, once no token follows."""
        if self.stopped:
            return ""
        before = self._prompter.text(self._ids[self._kept : self._read])
        rest = self._prompter.text(self._ids[self._kept :])[len(before) :]
        self._kept = self._read = len(self._ids)
        said = self._without_stop(rest)
        waiting, self._waiting = self._waiting, ""
        return said + waiting

    def _without_stop(self, new: str) -> str:
        """Of what waits and `new`, as much as cannot be the beginning of a stop text."""
        text, self._waiting = self._waiting + new, ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        for size in range(min(len(text), max((len(stop) for stop in self._stop), default=1) - 1), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                self._waiting = text[-size:]
                return text[:-size]
        return text


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise PromptError(f"the tokenizer has no {token}: it is another model's")
    return int(number)
