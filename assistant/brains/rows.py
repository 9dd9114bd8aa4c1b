"""One answer under way: how it is to be generated, what has been said, and the stream that its reader holds."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assistant.brains.prompts import Prompt, Prompter, TextStream
from assistant.turns import BrainError, Piece, Usage

Allowed = Callable[[Sequence[int]], Collection[int] | None]
"""Of the answer's ids so far, which ids may follow; None: any. Nothing may follow: the answer ends.

Asked once a token: a set that was made beforehand is cheapest, since mostly the likeliest token is in it.
"""

Finish = Literal["stop", "length", "closed"]


class EngineFullError(BrainError):
    """Too many prompts wait already: ask again later."""


class TooLongError(BrainError):
    """The prompt and its answer would not fit into the model, or into the engine's memory."""


class DeadlineError(BrainError):
    """The answer was not finished in the time that it was given."""


class EngineStoppedError(BrainError):
    """The engine was closed, or the model failed, before the answer was finished."""


@dataclass(frozen=True)
class Generation:
    """How an answer is generated.

    max_tokens: Of the answer, thinking apart.
    thinking_tokens: The prompt's end lets the model think first, and it may do so for so many tokens; then `end_of_thinking` is
        said for it (budget forcing, arXiv 2501.19393). 0: the answer begins at once.
    end_of_thinking: The id that ends thinking; None: the vocabulary's own.
    after_thinking: Ids that are said for the model once thinking has ended, before it answers.
    stop: Texts at which the answer ends; they are left out.
    temperature: 0: always the likeliest token.
    seed: Of the choice at a temperature.
    deadline_s: From `submit` on, the wait in the queue included; None: no matter.
    allowed: What may follow; called by the engine's thread once a token of the answer.
    """

    max_tokens: int = 160
    thinking_tokens: int = 0
    end_of_thinking: int | None = None
    after_thinking: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    deadline_s: float | None = None
    allowed: Allowed | None = None

    @property
    def most(self) -> int:
        """Tokens that thinking and answer can take together."""
        thinking = self.thinking_tokens + 1 + len(self.after_thinking) if self.thinking_tokens else 0
        return thinking + self.max_tokens


class Stream:
    """An answer under way, as its reader has it: pieces as they come. An `Answering` of assistant.turns.

    Iterating raises a BrainError where the answer cannot be finished. `close` frees the answer's place in the batch; so does
    leaving the loop over the pieces.
    """

    def __init__(self, wake: Callable[[], None]):
        self._wake = wake
        self._pieces: queue.SimpleQueue[Piece | BrainError | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._usage = Usage()
        self._finish: Finish = "closed"

    def __iter__(self) -> Iterator[Piece]:
        try:
            while (piece := self._pieces.get()) is not None:
                if isinstance(piece, BrainError):
                    self._pieces.put(None)  # for whoever iterates again
                    raise piece
                yield piece
            self._pieces.put(None)
        finally:
            self.close()

    def close(self) -> None:
        self._closed.set()
        self._wake()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def usage(self) -> Usage:
        """Whole once the pieces have ended."""
        return self._usage

    @property
    def finish(self) -> Finish:
        """Why the answer ended: the model was done, the tokens were used up, or nobody listened."""
        return self._finish

    # -- for the engine ----------------------------------------------------------------------------------------------------

    def said(self, piece: Piece) -> None:
        self._pieces.put(piece)

    def ended(self, usage: Usage, finish: Finish) -> None:
        self._usage, self._finish = usage, finish
        self._pieces.put(None)

    def failed(self, error: BrainError) -> None:
        self._pieces.put(error)


class Row:
    """An answer's state between two steps of the model. Used by the engine's thread alone."""

    def __init__(self, prompt: Prompt, how: Generation, prompter: Prompter, stream: Stream, deadline: float | None):
        self.prompt, self.stream, self.deadline = prompt, stream, deadline
        self.length = 0
        """Tokens whose keys and values are held."""
        self.cached = 0
        """Of the prompt's tokens, those that were read earlier."""
        self.next = -1
        """The token that the model reads next."""
        self._how, self._prompter = how, prompter
        self._thinking = how.thinking_tokens > 0
        ends = how.end_of_thinking if how.end_of_thinking is not None else prompter.vocabulary.end_of_thinking
        if self._thinking and ends is None:
            raise ValueError("thinking needs `end_of_thinking`: this vocabulary has none")
        self._end_of_thinking = -1 if ends is None else ends
        self._forced: deque[int] = deque()
        self._texts = TextStream(prompter, () if self._thinking else how.stop)
        self._quiet = 0  # tokens since the last piece
        self._thought = 0
        self._answer: list[int] = []
        self._random = torch.Generator().manual_seed(how.seed) if how.temperature > 0 else None

    @property
    def most(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.prompt.ids) + self._how.most

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt.ids), self.cached, self._thought, len(self._answer))

    def advance(self, likeliest: int, logits_V: Tensor) -> bool:
        """Takes the next token, given what the model has said; False once the answer is whole."""
        if self._forced:
            self.next = self._forced.popleft()
            return True
        if self._thinking and self._thought >= self._how.thinking_tokens:
            return self._end_thinking()
        token = self._choose(likeliest, logits_V)
        if token is None:
            return self._end("stop")
        done = token == self._prompter.vocabulary.end_of_turn
        if self._thinking and (done or token == self._end_of_thinking):
            return self._end_thinking()
        if done:
            return self._end("stop")
        self.next = token
        if self._thinking:
            self._thought += 1
        else:
            self._answer.append(token)
        self._quiet += 1
        self._say(self._texts.push(token))
        if self._texts.stopped:
            return self._end("stop")
        if not self._thinking and len(self._answer) >= self._how.max_tokens:
            return self._end("length")
        return True

    def _choose(self, likeliest: int, logits_V: Tensor) -> int | None:
        """None: nothing may follow."""
        allowed = None if self._thinking or self._how.allowed is None else self._how.allowed(tuple(self._answer))
        if allowed is not None:
            if not allowed:
                return None
            if self._random is None and likeliest in allowed:
                return likeliest
            only = torch.tensor(list(allowed), device=logits_V.device)
            logits_V = torch.full_like(logits_V, -torch.inf).index_copy(0, only, logits_V[only])
        if self._random is not None:
            chances = torch.softmax(logits_V.cpu().double() / self._how.temperature, -1)
            return int(torch.multinomial(chances, 1, generator=self._random))
        return likeliest if allowed is None else int(logits_V.argmax())

    def _end_thinking(self) -> bool:
        self._say(self._texts.end())
        self._thinking = False
        self._texts = TextStream(self._prompter, self._how.stop)
        self._forced.extend(self._how.after_thinking)
        self.next = self._end_of_thinking
        return True

    def _end(self, finish: Finish) -> bool:
        self._say(self._texts.end(), last=True)
        self.stream.ended(self.usage, finish)
        return False

    def _say(self, text: str, last: bool = False) -> None:
        if text or (last and self._quiet):
            self.stream.said(Piece("thinking" if self._thinking else "answer", text, self._quiet))
            self._quiet = 0
