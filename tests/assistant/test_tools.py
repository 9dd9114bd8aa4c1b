"""What a turn can ask the release, over real vectors of the shipped encoder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant.steering import STEERING
from assistant.tools import (
    Asked,
    BadPictureError,
    Narrowed,
    ToolError,
    Tools,
    UnknownPersonError,
    UnknownPinError,
)
from assistant.turns import Limits
from embedding.encoder.limits import ImageLimits
from embedding.index.live import LiveRelease
from embedding.tables.lake import Lake
from tests.assistant.small_lake import FIRST_PIN, PINS, USER, Pin, add_interests, add_release, encoded

TWINS = (Pin("a lantern", ("lamp",)), Pin("the same lantern", ("lamp",), reads="a lantern. lamp"))


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    add_release(lake, "r1", [*PINS, *TWINS])
    add_interests(lake, [("owl, bird", 9.0), ("castle, old buildings", 4.0)])
    return Tools(lake, LiveRelease(lake), Limits(picture_bytes=2**20, title_chars=40))


@pytest.fixture
def asked(tools: Tools) -> Asked:
    return tools.now()


def titles(found: object) -> list[str]:
    return [pin.title for pin in found]  # type: ignore[attr-defined]


def test_words_find_what_they_say_and_filters_hold(asked: Asked) -> None:
    found = asked.text("a red bicycle", 6)
    assert found[0].title == "red bicycle"
    assert [pin.number for pin in found] == [1, 2, 3, 4, 5, 6]
    assert "a red bicycle" in found[0].why
    assert found[0].vector @ encoded(["a red bicycle"])[0] == pytest.approx(found[0].score, abs=0.01)
    assert {pin.tags[0] for pin in asked.text("red", 9, Narrowed(tag="owl"))} == {"owl"}
    assert {pin.board_id for pin in asked.text("red", 9, Narrowed(board=3))} == {3}
    assert asked.text("red", 9, Narrowed(board=3, tag="teapot")) == ()


def test_of_near_duplicates_one_is_shown(asked: Asked) -> None:
    assert sum("lantern" in title for title in titles(asked.text("a lantern", 5))) == 1


def test_interests_steer_by_the_documented_formula(asked: Asked) -> None:
    interests = asked.interests(USER)
    assert [interest.label for interest in interests] == ["owl, bird", "castle, old buildings"]
    words, k = "something green", 8
    plain, steered = asked.text(words, k), asked.text(words, k, interests=interests)
    wide = asked.text(words, 5 * k)
    vectors = np.stack([pin.vector for pin in wide])
    near = np.maximum(0, vectors @ np.stack([interest.vector for interest in interests]).T) * np.sqrt([1, 4 / 9])
    expected = vectors @ encoded([words])[0] + STEERING * near.max(axis=1)
    assert titles(steered) == [wide[row].title for row in np.argsort(-expected)[:k]]
    assert titles(steered) != titles(plain)
    brought = [pin for pin in steered if "near your interest" in pin.why]
    assert "green owl" in titles(brought)
    assert all("owl" in pin.why or "castle" in pin.why for pin in brought)


def test_a_picture_is_found_and_bounded(asked: Asked) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (60, 40), (220, 20, 20)).save(picture, "PNG")
    assert len(asked.picture(picture.getvalue(), 3)) == 3
    with pytest.raises(BadPictureError, match="cannot be read"):
        asked.picture(b"no picture at all", 3)
    with pytest.raises(BadPictureError, match="at most 1,048,576"):
        asked.picture(bytes(2**20 + 1), 3)
    small = Tools(asked._lake, LiveRelease(asked._lake), image_limits=ImageLimits(max_pixels=2_000))
    with pytest.raises(BadPictureError, match="too_many_pixels"):
        small.now().picture(picture.getvalue(), 3)


def test_like_a_pin_without_a_graph(asked: Asked) -> None:
    pin = FIRST_PIN + titles(asked.shown([FIRST_PIN + n for n in range(len(PINS))])).index("blue owl")
    found = asked.pin(pin, 3)
    assert pin not in [one.pin_id for one in found]
    assert {one.tags[0] for one in found} == {"owl"}
    assert asked.beside_pin(pin, 3) == ()


def test_pins_shown_before_keep_their_numbers(asked: Asked) -> None:
    found = asked.shown([FIRST_PIN + 5, 1, FIRST_PIN])
    assert [(pin.number, pin.pin_id) for pin in found] == [(1, FIRST_PIN + 5), (3, FIRST_PIN)]


def test_what_is_unknown_is_said_in_a_sentence(asked: Asked) -> None:
    with pytest.raises(UnknownPinError, match="there is no pin 5"):
        asked.pin(5, 3)
    with pytest.raises(UnknownPersonError, match="nothing is known of user 5"):
        asked.recommended(5, 3)
    with pytest.raises(UnknownPersonError, match="nobody is signed in"):
        asked.recommended(None, 3)
    with pytest.raises(ToolError, match="no words"):
        asked.text(" \n", 3)
    assert asked.interests(5) == ()


def test_a_broken_lake_is_an_error_that_may_pass(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    add_release(lake, "r1", PINS)
    asked = Tools(lake, LiveRelease(lake)).now()
    add_interests(lake, [("owl", 1.0)])
    for file in Path(lake.home, "tables", "user_interests").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(ToolError, match="cannot be read at the moment") as raised:
        asked.interests(USER)
    assert raised.value.retryable
