"""Whole turns over a real release. The brain here says what a test wants said, as the worst model might."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from assistant.navigator import Navigator, TurnRecord, budget
from assistant.router import Router
from assistant.tools import Tools
from assistant.turns import BrainError, Limits, Message, Piece, Request, ToolCall, ToolName, Turn, Usage
from embedding.index.live import LiveRelease
from embedding.index.release import LivePointer
from embedding.tables.lake import Lake
from tests.assistant.small_lake import FIRST_PIN, PINS, USER, add_interests, add_release, version
from tests.small_release import point_at

LIMITS = Limits(candidates=5, messages=3, message_chars=100, picture_bytes=10_000, shown=6)


@dataclass
class Saying:
    """An answer under way."""

    pieces: Sequence[Piece]
    fails: bool
    closed: int = 0

    def __iter__(self) -> Iterator[Piece]:
        yield from self.pieces
        if self.fails:
            raise BrainError("the brain has gone")

    def close(self) -> None:
        self.closed += 1

    @property
    def usage(self) -> Usage:
        return Usage(prompt=10, cached=4, thinking=1, answer=len(self.pieces))


@dataclass
class Parrot:
    """A brain that says the same whatever it is asked, and keeps what it was given."""

    says: Sequence[Piece] = (Piece("answer", "Take [1]."),)
    call: ToolCall = field(default_factory=lambda: ToolCall("search_text", "owl", "as told"))
    fails: bool = False
    while_deciding: Callable[[], object] = lambda: None
    name: str = "parrot"
    turns: list[Turn] = field(default_factory=list)
    offered: tuple[ToolName, ...] = ()
    saying: Saying | None = None

    def decide(self, request: Request, tools: Sequence[ToolName]) -> ToolCall:
        self.offered = tuple(tools)
        self.while_deciding()
        return self.call if self.call.query != "=" else replace(self.call, query=request.text)

    def answer(self, turn: Turn) -> Saying:
        self.turns.append(turn)
        self.saying = Saying(self.says, self.fails)
        return self.saying


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    add_release(lake, "r1", PINS)
    add_release(lake, "r2", PINS[:20], live=False)
    add_interests(lake, [("castle", 2.0)])
    return lake


@pytest.fixture(scope="module")
def live(lake: Lake) -> LiveRelease:
    return LiveRelease(lake)


@pytest.fixture(scope="module")
def tools(lake: Lake, live: LiveRelease) -> Tools:
    return Tools(lake, live, LIMITS)


def asking(text: str = "an owl", **more: Any) -> Request:
    return Request((Message("user", text),), **more)


def turn(navigator: Navigator, request: Request, mode: str = "auto") -> dict[str, Any]:
    """A turn's data by event; pieces of one kind together."""
    said: dict[str, Any] = {}
    for event in navigator.chat(request, mode):
        if event.name in ("answer", "thinking"):
            said[event.name] = said.get(event.name, "") + event.data()["text"]
        else:
            assert event.name not in said
            said[event.name] = event.data()
    return said


def test_a_turn_from_the_request_to_the_last_event(tools: Tools) -> None:
    ticks = iter(range(100))
    told: list[TurnRecord] = []
    pieces = [
        Piece("thinking", "Is it [9"),
        Piece("thinking", "9]?"),
        *(Piece("answer", text) for text in ("See [", "2] or [7", "].")),
    ]
    brain = Parrot(pieces)
    navigator = Navigator(tools, brain, watcher=told.append, clock=lambda: next(ticks))
    said = turn(navigator, asking("why are owls wise", user_id=USER))
    assert list(said) == ["mode", "tool", "candidates", "thinking", "answer", "done"]
    assert said["mode"] == {"mode": "thinking", "reason": "you ask why"}
    assert said["tool"] == {"tool": "search_text", "query": "owl", "reason": "as told"}
    assert brain.offered == ("search_text", "search_interests", "talk")
    pins = said["candidates"]["pins"]
    assert {pin["title"].split()[1] for pin in pins[:4]} == {"owl"}
    assert (said["thinking"], said["answer"]) == ("Is it?", "See [2] or.")
    done = said["done"]
    assert done["cited"] == [pins[1]["pin_id"]]
    assert done["removed"] == 2
    assert done["usage"] == {"prompt": 10, "cached": 4, "thinking": 1, "answer": 5}
    assert 0 < done["first_token_ms"] < done["total_ms"]
    (given,) = brain.turns
    assert [interest.label for interest in given.interests] == ["castle"]
    assert (given.embedding_version, given.thinking_tokens) == (version(), LIMITS.thinking_tokens)
    assert (told[0].answer, told[0].done.data()) == ("See [2] or.", done)


def test_pictures_and_pins_are_searched_without_the_brain(tools: Tools) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), (250, 0, 0)).save(picture, "PNG")
    navigator = Navigator(tools, Parrot(while_deciding=lambda: pytest.fail("it was asked")))
    assert turn(navigator, asking("", picture=picture.getvalue()))["tool"]["tool"] == "search_picture"
    said = turn(navigator, asking("", pin_id=FIRST_PIN))
    assert said["tool"]["tool"] == "search_pin"
    assert str(FIRST_PIN) not in [pin["pin_id"] for pin in said["candidates"]["pins"]]


def test_talk_is_about_what_was_shown(tools: Tools) -> None:
    brain = Parrot([Piece("answer", "The third, [3], not [4].")], ToolCall("talk"))
    said = turn(Navigator(tools, brain), asking(shown=(FIRST_PIN + 8, 1, FIRST_PIN + 9)))
    assert [(pin["number"], pin["pin_id"]) for pin in said["candidates"]["pins"]] == [
        (1, str(FIRST_PIN + 8)),
        (3, str(FIRST_PIN + 9)),
    ]
    assert (said["answer"], said["done"]["cited"]) == ("The third, [3], not.", [str(FIRST_PIN + 9)])


def test_a_tool_that_was_not_offered_is_not_used(tools: Tools) -> None:
    said = turn(Navigator(tools, Parrot(call=ToolCall("search_interests"))), asking("blue tulip"))
    assert said["tool"]["tool"] == "search_text"
    assert said["candidates"]["pins"][0]["title"] == "blue tulip"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(()), "the last message must be the user's"),
        (Request((Message("user", "a"), Message("assistant", "b"))), "the last message must be the user's"),
        (Request((Message("user", "a"),) * 4), "3 messages"),
        (asking("x" * 101), "at most 100"),
        (asking(picture=bytes(10_001)), "at most 10,000"),
        (asking(shown=tuple(range(7))), "at most 6"),
        (asking(max_tokens=0), "at least 1"),
        (asking(" "), "nothing asked"),
        (asking(pin_id=12), "there is no pin 12"),
        (asking(picture=b"rubbish"), "cannot be read"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(tools: Tools, request_: Request, sentence: str) -> None:
    said = turn(Navigator(tools, Parrot()), request_)
    assert sentence in said["error"]["error"]
    assert not said["error"]["retryable"]
    assert "answer" not in said


def test_a_brain_that_fails_ends_the_turn_and_may_be_asked_again(tools: Tools) -> None:
    said = turn(Navigator(tools, Parrot(fails=True)), asking())
    assert said["answer"] == "Take [1]."
    assert said["error"] == {"error": "the brain has gone", "retryable": True}
    assert "done" not in said


def test_an_answer_that_takes_too_long_is_ended(lake: Lake, live: LiveRelease) -> None:
    seconds = iter(range(0, 100_000, 30))
    brain = Parrot([Piece("answer", "on and on ")] * 50)
    slow = Navigator(Tools(lake, live, LIMITS), brain, clock=lambda: next(seconds))
    assert "too long" in turn(slow, asking())["error"]["error"]
    assert brain.saying is not None
    assert brain.saying.closed == 1


def test_who_stops_listening_ends_the_brain_s_answer(tools: Tools) -> None:
    brain = Parrot([Piece("answer", "word ")] * 50)
    events = Navigator(tools, brain).chat(asking())
    next(event for event in events if event.name == "answer")
    assert brain.saying is not None
    assert brain.saying.closed == 0
    events.close()
    assert brain.saying.closed == 1


def test_a_turn_asks_one_release_though_another_goes_live(lake: Lake, live: LiveRelease, tools: Tools) -> None:
    def swap() -> None:
        point_at(lake, LivePointer("r2", embedding_version=version()))
        assert live.refresh()

    try:
        navigator = Navigator(tools, Parrot([Piece("answer", "[1]")], ToolCall("search_text", "pumpkin"), while_deciding=swap))
        first = turn(navigator, asking())
        assert first["candidates"]["release_id"] == "r1"
        assert "pumpkin" in first["candidates"]["pins"][0]["title"]
        assert first["done"]["cited"] == [first["candidates"]["pins"][0]["pin_id"]]
        later = turn(Navigator(tools, Parrot(call=ToolCall("search_text", "pumpkin"))), asking())
        assert later["candidates"]["release_id"] == "r2"
        assert not any("pumpkin" in pin["title"] for pin in later["candidates"]["pins"])
    finally:
        point_at(lake, LivePointer("r1", embedding_version=version()))
        live.refresh()


def test_a_turn_goes_without_interests_that_cannot_be_read(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    add_release(lake, "r1", PINS)
    add_interests(lake, [("castle", 2.0)])
    for file in (tmp_path / "tables" / "user_interests").rglob("*.parquet"):
        file.unlink()
    brain = Parrot()
    said = turn(Navigator(Tools(lake, LiveRelease(lake), LIMITS), brain), asking(user_id=USER))
    assert said["done"]["cited"] == [said["candidates"]["pins"][0]["pin_id"]]
    assert brain.offered == ("search_text", "talk")


def test_turns_at_once_share_nothing(tools: Tools) -> None:
    navigator = Navigator(tools, Parrot([Piece("answer", "[1]")], ToolCall("search_text", "=")))
    texts = [pin.title for pin in PINS] * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: turn(navigator, asking(text)), texts))
    assert [one["candidates"]["pins"][0]["title"] for one in found] == texts


@pytest.mark.parametrize(
    ("mode", "most", "expected"),
    [
        ("quick", None, (0, 160)),
        ("thinking", None, (512, 160)),
        ("quick", 50, (0, 50)),
        ("thinking", 400, (200, 160)),
        ("thinking", 260, (100, 160)),
        ("thinking", 40, (0, 40)),
        ("thinking", 10_000, (512, 160)),
    ],
)
def test_thinking_is_bounded_and_shrinks_with_the_request_s_own_bound(mode: Any, most: int | None, expected: object) -> None:
    thinking, answer = budget(mode, asking(max_tokens=most), Limits())
    assert (thinking, answer) == expected
    assert most is None or thinking + answer <= most


def test_the_user_s_own_mode_wins(tools: Tools) -> None:
    brain, other = Parrot(), Parrot(name="thinker")
    navigator = Navigator(tools, brain, thinking=other, router=Router())
    said = turn(navigator, asking("owl"), "thinking")
    assert said["mode"] == {"mode": "thinking", "reason": "you asked for it"}
    assert said["done"]["brain"] == "thinker"
    assert "no mode" in turn(navigator, asking("owl"), "deep")["error"]["error"]
