"""An endpoint's answer as it streams in: pieces of thinking and of answer, bounded in time and length, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import openai

from assistant.brains.endpoint_config import KEY_VARIABLE, MODEL_VARIABLE, URL_VARIABLE, EndpointConfig
from assistant.turns import BrainError, Piece, Turn, Usage

CHARS_A_TOKEN = 16
"""More than any tokenizer's: an endpoint that says more than its bound of tokens times this is cut off."""
_THINK, _END_OF_THINKING = "<think>", "</think>"


class StreamedAnswer:
    """An answer that streams in."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        stream: openai.Stream[Any],
        turn: Turn,
        deadline: float,
        clock: Callable[[], float],
    ):
        self._name, self._config, self._stream, self._deadline, self._clock = name, config, stream, deadline, clock
        self._thinks, self._chars_left = turn.mode == "thinking", CHARS_A_TOKEN * (turn.thinking_tokens + turn.answer_tokens)
        self._said, self._thoughts = _Said(), _Thoughts()

    def __iter__(self) -> Iterator[Piece]:
        try:
            for piece in chain(self._thoughts.apart(self._streamed()), self._thoughts.rest()):
                self._chars_left -= len(piece.text)
                if piece.kind == "thinking":
                    self._said.thinking += 1
                else:
                    self._said.answer += 1
                if piece.kind == "answer" or self._thinks:
                    yield piece
                if self._chars_left < 0:
                    return
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise failed(self._name, self._config, error) from None
        finally:
            self.close()
        if not self._said.chunks:
            raise no_endpoint(self._name)

    def _streamed(self) -> Iterator[Piece]:
        for chunk in self._stream:
            if self._clock() > self._deadline:
                raise BrainError(f"{self._name} took too long for one answer")
            self._said.chunks += 1
            self._said.usage = _usage(chunk) or self._said.usage
            yield from _pieces(chunk)

    def close(self) -> None:
        """Hangs up, which ends the work of most servers."""
        self._stream.close()

    @property
    def usage(self) -> Usage:
        """As the endpoint counts; pieces for tokens where it does not."""
        return self._said.usage or Usage(thinking=self._said.thinking, answer=self._said.answer)


@dataclass
class _Said:
    chunks: int = 0
    thinking: int = 0
    answer: int = 0
    usage: Usage | None = None


class _Thoughts:
    """Tells thinking that a server streams within the answer, `<think>...</think>`, from the answer after it."""

    def __init__(self) -> None:
        self._held, self._thinking, self._begun = "", False, False

    def apart(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.kind == "thinking" or (self._begun and not self._thinking):
                yield piece
            else:
                yield from self._sorted(piece.text)

    def rest(self) -> Iterator[Piece]:
        """What was held back, once the stream has ended."""
        if self._held:
            yield Piece("thinking" if self._thinking else "answer", self._held)
            self._held = ""

    def _sorted(self, text: str) -> Iterator[Piece]:
        self._held += text
        if not self._begun:
            start = self._held.lstrip()
            if len(start) < len(_THINK) and _THINK.startswith(start):
                return
            self._begun, self._thinking = True, start.startswith(_THINK)
            if not self._thinking:
                yield Piece("answer", self._held)
                self._held = ""
                return
            self._held = start.removeprefix(_THINK)
        thought, end, rest = self._held.partition(_END_OF_THINKING)
        if not end:  # the end may have begun
            kept = max((n for n in range(len(_END_OF_THINKING)) if thought.endswith(_END_OF_THINKING[:n])), default=0)
            thought, rest = thought[: len(thought) - kept], thought[len(thought) - kept :]
        self._held, self._thinking = rest, not end
        if thought:
            yield Piece("thinking", thought)
        if end:
            yield from self.rest()


def _pieces(chunk: Any) -> Iterator[Piece]:
    for choice in chunk.choices[:1]:
        thought = getattr(choice.delta, "reasoning_content", None) or getattr(choice.delta, "reasoning", None)
        if isinstance(thought, str) and thought:
            yield Piece("thinking", thought)
        if choice.delta.content:
            yield Piece("answer", choice.delta.content)


def _usage(chunk: Any) -> Usage | None:
    if (said := getattr(chunk, "usage", None)) is None:
        return None
    cached = getattr(said.prompt_tokens_details, "cached_tokens", None) or 0
    thought = getattr(said.completion_tokens_details, "reasoning_tokens", None) or 0
    return Usage(said.prompt_tokens, cached, thought, max(0, said.completion_tokens - thought))


def no_endpoint(name: str) -> BrainError:
    return BrainError(f"{name} answers, but not as a chat endpoint does: is {URL_VARIABLE} right?")


def failed(name: str, config: EndpointConfig, error: Exception) -> BrainError:
    """A sentence about an error. What the endpoint itself said is left out: it may repeat the key, or what a user wrote."""
    if isinstance(error, openai.APITimeoutError):
        return BrainError(f"{name} said nothing for {config.silence_timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        return BrainError(f"{name} cannot be reached, or hung up: is its server running?")
    if isinstance(error, openai.APIStatusError):
        why = {401: f": is {KEY_VARIABLE} right?", 403: f": is {KEY_VARIABLE} right?", 404: f": is {MODEL_VARIABLE} right?"}
        why |= {429: ": it is asked too often"}
        return BrainError(f"{name} refused with status {error.status_code}{why.get(error.status_code, '')}")
    return BrainError(f"{name} broke off, or its answer cannot be read ({type(error).__name__})")
