"""What a turn tells while it goes: the events that the service sends, each with its name and its data as JSON has it.

In this order: `mode`, `tool`, `candidates`, any number of `thinking` and `answer`, and `done`. `error` may come at any place,
and is the last then.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from assistant.turns import Candidate, Mode, ToolCall, Usage


@dataclass(frozen=True)
class ModeChosen:
    """How the turn is answered, and why so, in words."""

    name: ClassVar[str] = "mode"
    mode: Mode
    reason: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ToolChosen:
    """Which retrieval tool is asked for what, and why."""

    name: ClassVar[str] = "tool"
    call: ToolCall

    def data(self) -> dict[str, Any]:
        return asdict(self.call)


@dataclass(frozen=True)
class Candidates:
    """The pins that the answer may name, of one release."""

    name: ClassVar[str] = "candidates"
    release_id: str
    embedding_version: str
    pins: tuple[Candidate, ...]

    def data(self) -> dict[str, Any]:
        """Without the vectors and the pictures' addresses: a reader asks the service for a pin's picture by its id."""
        return {
            "release_id": self.release_id,
            "embedding_version": self.embedding_version,
            "pins": [pin_data(pin) for pin in self.pins],
        }


@dataclass(frozen=True)
class Thinking:
    """A piece of what the brain thinks before it answers."""

    name: ClassVar[str] = "thinking"
    text: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """A piece of the answer. A citation, `[3]`, is never split, and always one of a candidate."""

    name: ClassVar[str] = "answer"
    text: str

    def data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Done:
    """The end of a turn.

    cited: Pins that the answer names, in its order, each once. Where it names none, the candidates are what there is to show.
    removed: Citations of what was not retrieved, taken out of the answer before anyone saw it.
    first_token_ms: From the request to the first piece that the user saw; None where there was none.
    """

    name: ClassVar[str] = "done"
    cited: tuple[int, ...]
    removed: int
    brain: str
    mode: Mode
    usage: Usage
    first_token_ms: float | None
    total_ms: float

    def data(self) -> dict[str, Any]:
        return asdict(self) | {"cited": [str(pin) for pin in self.cited]}


@dataclass(frozen=True)
class Failed:
    """The turn ended early. error: a sentence for the user. retryable: whether the same request may succeed later."""

    name: ClassVar[str] = "error"
    error: str
    retryable: bool

    def data(self) -> dict[str, Any]:
        return asdict(self)


Event = ModeChosen | ToolChosen | Candidates | Thinking | Answer | Done | Failed


def pin_data(pin: Candidate) -> dict[str, Any]:
    """A candidate as JSON has it. Ids are text: they go beyond 2^53, where a browser would round them."""
    return {
        "number": pin.number,
        "pin_id": str(pin.pin_id),
        "title": pin.title,
        "tags": list(pin.tags),
        "board_id": None if pin.board_id is None else str(pin.board_id),
        "score": round(float(pin.score), 4),
        "why": pin.why,
    }
