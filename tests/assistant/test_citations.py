"""Whatever a brain says, and however it is cut into pieces: only what was retrieved is cited."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from assistant.citations import CitationFilter, check
from assistant.turns import Candidate

IDS = (7, 1714136935482013140, 6228034196910448874, 12345)
BITS = [
    *(
        "[",
        "]",
        "[",
        "]",
        "(",
        " ",
        " ",
        ", ",
        ",",
        "\n",
        ".",
        ": ",
        "#",
        "-",
        " and ",
        "…",
        "pin",
        "pins",
        "Pin ",
        "pi",
        "n",
        "id",
    ),
    *("1", "2", "3", "4", "5", "9", "0", "99", "12", "345", "12345", "1714136935482013140", "6228034196910448875", "7777777"),
    *(
        "[3]",
        "[99]",
        "[ 3 , 41 ]",
        "pin 12345",
        "pins 3 and 41",
        "【2】",
        "[³]",
        "\u200b",
        "\u200d",
        "\x00",
        "a",
        "red bicycle",
    ),
]


def candidates() -> list[Candidate]:
    vector = np.zeros(4, np.float32)
    return [Candidate(n, pin, "title", (), None, None, 0.5, vector, "why") for n, pin in enumerate(IDS, start=1)]


def streamed(pieces: list[str]) -> tuple[str, list[int], int]:
    passed = CitationFilter(candidates())
    shown = "".join([*map(passed.feed, pieces), passed.end()])
    return shown, passed.cited, passed.removed


@pytest.mark.parametrize(
    ("said", "shown", "cited", "removed"),
    [
        ("A bike [2], or [1].", "A bike [2], or [1].", [IDS[1], IDS[0]], 0),
        ("A bike [99], or [ 3 , 41 ] today.", "A bike, or [3] today.", [IDS[2]], 2),
        ("See pin 12345 and pin 54321 or Pin #2!", "See [4] and or [2]!", [IDS[3], IDS[1]], 1),
        ("It is 1714136935482013140, not 1714136935482013141.", "It is [2], not.", [IDS[1]], 1),
        ("[1 and 2] then [3", "[1][2] then [3]", [IDS[0], IDS[1], IDS[2]], 0),
        ("[9\u200b9] [٩٩] 【41】 [⁹]", "", [], 4),
        ("[[99]98] and pin[99] 98", "[…98] and pin… 98", [], 2),
        ("In 2026, 3 red bikes [of 20] for 100 (2 pins).", "In 2026, 3 red bikes [of 20] for 100 (2 pins).", [], 0),
    ],
)
def test_what_a_user_sees(said: str, shown: str, cited: list[int], removed: int) -> None:
    assert check(said, candidates()) == (shown, cited, removed)
    assert streamed(list(said)) == (shown, cited, removed)


def test_no_text_in_any_pieces_cites_what_was_not_retrieved() -> None:
    rng = random.Random(0)
    for _ in range(4_000):
        said = "".join(rng.choices(BITS, k=rng.randint(1, 14)))
        whole = check(said, candidates())
        cuts = sorted(rng.sample(range(len(said) + 1), min(len(said), rng.randint(0, 8))))
        pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
        assert streamed(pieces) == whole, (said, pieces)
        shown, cited, _ = whole
        named = re.findall(r"[\[【]\s*(?:pins?)?[\s#,:]*(\d+)[^\]】]?", shown)
        assert set(map(int, named)) <= set(range(1, len(IDS) + 1)), (said, shown)
        assert {IDS[int(number) - 1] for number in named} == set(cited), (said, shown)
        assert not re.search(r"\d{7}|(?<![a-z])pins? *#? *\d", shown, re.IGNORECASE), (said, shown)
        assert check(shown, candidates())[0] == shown, "what has passed once passes again"


@pytest.mark.parametrize("said", ["[" + "1," * 2_000 + "99]", "pin " + " " * 2_000 + "99", "9" * 2_000, "[ " * 1_000 + "99]"])
def test_endless_lists_end(said: str) -> None:
    shown, cited, _ = streamed(list(said))
    assert set(cited) <= {IDS[0]}
    assert "pin" not in shown or "…" in shown
    assert not re.search(r"\[\s*99|\d{7}", shown)


def test_plain_words_are_not_held_back() -> None:
    passed = CitationFilter(candidates())
    assert [passed.feed(piece) for piece in ("Bold", " red", " bicycles", " in", " 3")] == [
        "Bold",
        " red",
        " bicycles",
        " in",
        "",
    ]
    assert passed.feed(" kinds") == " 3 kinds"
