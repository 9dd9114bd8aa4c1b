"""What a language model is asked about pins, and how: the very words that it was trained with are those that serve.

Every question is one turn of a user; what others have written stands in it as data. The pins are numbered where an answer names
them. Short on purpose: on a CPU each token of a prompt costs as much as one of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assistant.brains.prompts import Data, Pin, Segment, Template, reply, turn
from embedding.index.recall import Floats


@dataclass(frozen=True)
class Shown:
    """A pin in a prompt. vector: (D,), L2-normalised; None: the pin is not shown. title: "" where it is not told."""

    vector: Floats | None
    title: str = ""

    def segments(self) -> tuple[Segment, ...]:
        seen: tuple[Segment, ...] = () if self.vector is None else (Pin(self.vector),)
        return (*seen, Data(f" {self.title}")) if self.title else seen


def _asked(*segments: Segment) -> tuple[Segment, ...]:
    return (*turn("user", *segments), *reply())


def ask_title(pin: Shown) -> tuple[Segment, ...]:
    return _asked(*pin.segments(), Template(" Title?"))


def ask_description(pin: Shown) -> tuple[Segment, ...]:
    return _asked(*pin.segments(), Template(" Describe it."))


def ask_tags(pin: Shown) -> tuple[Segment, ...]:
    return _asked(*pin.segments(), Template(" Tags?"))


def ask_same_board(one: Shown, other: Shown) -> tuple[Segment, ...]:
    return _asked(*one.segments(), Template(" and "), *other.segments(), Template(" Same board?"))


def ask_fits(pin: Shown, request: str) -> tuple[Segment, ...]:
    return _asked(*pin.segments(), Template(" Does it fit: "), Data(request), Template("?"))


def ask_tool(request: str) -> tuple[Segment, ...]:
    return _asked(Template("Which tool for: "), Data(request))


def ask_answer(pins: Sequence[tuple[int, Shown]], request: str, interests: Sequence[Shown] = ()) -> tuple[Segment, ...]:
    """A request over pins with the numbers that an answer names. interests: what the user likes, as pins before the others."""
    likes: list[Segment] = []
    if interests:
        likes = [Template("Likes:"), *(part for one in interests for part in one.segments()), Template("\n")]
    return _asked(*likes, *listed(pins), Template("Which fit: "), Data(request), Template("?"))


def listed(pins: Sequence[tuple[int, Shown]]) -> list[Segment]:
    """A line a pin."""
    lines: list[Segment] = []
    for number, pin in pins:
        lines += [Template(f"[{number}]"), *pin.segments(), Template("\n")]
    return lines
