"""What a turn of a conversation is made of, and what a brain must do with it.

A turn goes: a request comes in; the router gives it a mode; a brain decides which retrieval tool is asked for what; the tool
finds candidates; a brain answers over them. Everything here is immutable: turns of several conversations share nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from embedding.index.recall import Floats

Role = Literal["user", "assistant"]
Mode = Literal["quick", "thinking"]
ToolName = Literal["search_text", "search_picture", "search_pin", "search_interests", "talk"]
"""`talk`: nothing is retrieved; the answer is about what was found before, or about what no search could find."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation. Its text is what somebody has written: data, never an instruction of ours."""

    role: Role
    text: str


@dataclass(frozen=True)
class Candidate:
    """A pin that a tool has found.

    number: From 1, in the order of retrieval: how an answer names it, `[3]`. Pins that were shown before keep their numbers, so
        that there may be gaps.
    title, tags: What somebody has written, as data: without control characters, and cut (`Limits`).
    score: Cosine with the query, or visits of walks, by `why`.
    vector: Its embedding (D,), L2-normalised, of the release's encoder.
    why: In words, which tool found it and by what.
    """

    number: int
    pin_id: int
    title: str
    tags: tuple[str, ...]
    board_id: int | None
    image_uri: str | None
    score: float
    vector: Floats
    why: str


@dataclass(frozen=True)
class Interest:
    """One of the user's interests, most important first. vector: of its medoid, (D,), L2-normalised."""

    label: str
    importance: float
    vector: Floats


@dataclass(frozen=True)
class Request:
    """What the user asks now.

    messages: The conversation so far, oldest first; the last one is the user's.
    picture: A picture file's bytes that the user has attached, or None.
    pin_id: A pin that the user points at ("more like this"), or None.
    user_id: Whose interests steer, or None.
    board, tag: What the search is confined to; None: no matter.
    shown: Pins that the answer before named, in the order of their numbers: `[3]` is still the third of them.
    max_tokens: The most that this turn may cost in thinking and answer together, where that is less than the limits; or None.
    """

    messages: tuple[Message, ...]
    picture: bytes | None = None
    pin_id: int | None = None
    user_id: int | None = None
    board: int | None = None
    tag: str | None = None
    shown: tuple[int, ...] = ()
    max_tokens: int | None = None

    @property
    def text(self) -> str:
        return self.messages[-1].text


@dataclass(frozen=True)
class ToolCall:
    """Which tool is asked for what. query: the words, for `search_text`. reason: for a person."""

    tool: ToolName
    query: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Turn:
    """What an answer is made from.

    embedding_version: Whose vectors the candidates and interests are; a brain refuses another than its own.
    thinking_tokens: The most that a brain may think before it answers; 0 in quick mode.
    answer_tokens: The most that an answer may have.
    """

    request: Request
    mode: Mode
    embedding_version: str
    candidates: tuple[Candidate, ...] = ()
    interests: tuple[Interest, ...] = ()
    thinking_tokens: int = 0
    answer_tokens: int = 160


@dataclass(frozen=True)
class Piece:
    """A piece of what a brain says, as soon as it is said. tokens: how many of the brain's tokens it took."""

    kind: Literal["thinking", "answer"]
    text: str
    tokens: int = 1


@dataclass(frozen=True)
class Usage:
    """What a turn has cost the brain, in its tokens. Cached ones are part of `prompt`."""

    prompt: int = 0
    cached: int = 0
    thinking: int = 0
    answer: int = 0


class Answering(Protocol):
    """An answer under way: pieces as they come. `close` ends it early and frees what it holds."""

    def __iter__(self) -> Iterator[Piece]: ...

    def close(self) -> None: ...

    @property
    def usage(self) -> Usage:
        """Whole once the pieces have ended."""


class Brain(Protocol):
    """What decides and answers. Thread-safe: several turns at once share no state."""

    @property
    def name(self) -> str:
        """For logs, metrics and the shadow table."""

    def decide(self, request: Request, tools: Sequence[ToolName]) -> ToolCall:
        """Which tool is asked, and for what. Raises BrainError where the brain cannot be reached, or is past its time."""

    def answer(self, turn: Turn) -> Answering:
        """An answer that names candidates by number, `[3]`. Raises BrainError as `decide`, and for another encoder's turn."""


class BrainError(Exception):
    """The brain could not decide or answer; the message says why, without a secret in it."""


@dataclass(frozen=True)
class Limits:
    """What a request may have. Over it: refused with the limit's name, before any work.

    Those after `shown` bound our own work: candidates a turn; characters of a title and of a tag, tags a pin, and interests
    that a brain sees; tokens of thinking and of an answer; seconds that a turn may take in all.
    """

    messages: int = 40
    message_chars: int = 4_000
    picture_bytes: int = 8 * 2**20
    shown: int = 100
    candidates: int = 20
    title_chars: int = 120
    tag_chars: int = 40
    tags: int = 8
    interests: int = 8
    thinking_tokens: int = 512
    answer_tokens: int = 160
    turn_s: float = 120.0
