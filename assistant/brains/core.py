"""The core brain: a language model of our own that sees candidates as projected tokens, on one engine for all conversations.

What somebody else has written, titles, tags and messages, reaches it as data. Its answers can name candidates and nothing else
(citing.py). Two kinds of model serve: the small one that comes with the package, trained on short questions (small.py), and
Qwen3-VL without its tower, which follows instructions (instructed.py); what differs between them is a `Manner`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from assistant.brains.citing import CitingVocabulary
from assistant.brains.engine import Engine
from assistant.brains.prompts import Segment
from assistant.brains.rows import Generation
from assistant.turns import Answering, BrainError, Candidate, Piece, Request, ToolCall, ToolName, Turn, Usage


@dataclass(frozen=True)
class Asked:
    """What an answer is generated from.

    numbers: Of the candidates that are shown, and may be named.
    begins: The texts of tokens that the answer may begin with; (): any.
    thinking_tokens: The prompt lets the model think first, for so many tokens.
    """

    segments: tuple[Segment, ...]
    numbers: tuple[int, ...] = ()
    begins: tuple[str, ...] = ()
    thinking_tokens: int = 0


class Checking(Protocol):
    """Thinking that is done candidate by candidate, before the answer: pieces, and then the candidates that are left."""

    def __iter__(self) -> Iterator[Piece]: ...

    @property
    def kept(self) -> tuple[Candidate, ...]: ...

    @property
    def prompt_tokens(self) -> int: ...


class Manner(Protocol):
    """How one kind of language model is asked."""

    def choose(self, engine: Engine, request: Request, tools: Sequence[ToolName]) -> ToolCall: ...

    def check(self, engine: Engine, turn: Turn) -> Checking | None:
        """None: this model thinks in its own words, or the turn asks for no thinking."""

    def ask(self, turn: Turn) -> Asked | str:
        """A text: what is answered, and no model is asked."""


class CoreBrain:
    """See the module. Thread-safe; `close` ends its engine.

    embedding_version: Of the vectors that the engine's projector reads.
    deadline_s: For one answer, or one choice of a tool.
    """

    def __init__(self, engine: Engine, embedding_version: str, manner: Manner, deadline_s: float = 120.0):
        self._engine, self._manner, self._deadline_s = engine, manner, deadline_s
        self.embedding_version = embedding_version
        self._citing = CitingVocabulary(engine.prompter, engine.decoder.weight.shape[0])

    @property
    def name(self) -> str:
        return f"core/{self._engine.decoder.name}"

    @property
    def engine(self) -> Engine:
        return self._engine

    def decide(self, request: Request, tools: Sequence[ToolName]) -> ToolCall:
        if not tools:
            raise BrainError("there is no tool to choose from")
        return self._manner.choose(self._engine, request, tools)

    def answer(self, turn: Turn) -> Answering:
        if (turn.candidates or turn.interests) and turn.embedding_version != self.embedding_version:
            raise BrainError(f"the turn's vectors are of {turn.embedding_version}, this brain reads {self.embedding_version}")
        checking = self._manner.check(self._engine, turn) if turn.mode == "thinking" else None
        if checking is None:
            return self._submit(turn)
        return _Checked(self, turn, checking)

    def close(self) -> None:
        self._engine.close()

    def _submit(self, turn: Turn) -> Answering:
        asked = self._manner.ask(turn)
        if isinstance(asked, str):
            return _Said(asked)
        how = Generation(
            max_tokens=turn.answer_tokens,
            thinking_tokens=asked.thinking_tokens,
            deadline_s=self._deadline_s,
            allowed=self._citing.rule(asked.numbers, turn.answer_tokens, asked.begins),
        )
        return self._engine.submit(self._engine.prompter.prompt(asked.segments), how)


class _Said:
    """An answer that is known."""

    def __init__(self, text: str):
        self._text = text

    def __iter__(self) -> Iterator[Piece]:
        yield Piece("answer", self._text, tokens=0)

    def close(self) -> None: ...

    @property
    def usage(self) -> Usage:
        return Usage()


class _Checked:
    """An answer over what a check has left of the candidates."""

    def __init__(self, brain: CoreBrain, turn: Turn, checking: Checking):
        self._brain, self._turn, self._checking = brain, turn, checking
        self._answering: Answering | None = None
        self._checks = 0
        self._closed = False

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._checking:
            if self._closed:
                return
            self._checks += piece.tokens
            yield piece
        if self._closed:
            return
        self._answering = self._brain._submit(
            replace(self._turn, candidates=self._checking.kept, thinking_tokens=0, mode="quick")
        )
        yield from self._answering

    def close(self) -> None:
        self._closed = True
        if self._answering is not None:
            self._answering.close()

    @property
    def usage(self) -> Usage:
        said = self._answering.usage if self._answering is not None else Usage()
        return replace(said, prompt=said.prompt + self._checking.prompt_tokens, thinking=said.thinking + self._checks)
