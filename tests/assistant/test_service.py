"""The service as its clients see it: a real server over the demo's small lake, with the core brain on a toy language model.

What that says is random, and so is which tool it asks for; so turns here point at a pin, or bring a picture.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from assistant.service.serving import MakeBrain
from assistant.service.settings import Rate, ServiceError, Settings
from assistant.shadow import ShadowConfig
from assistant.turns import Limits
from embedding.contracts import SHADOW_TURNS
from embedding.index.release import LivePointer, read_pointer
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from tests.assistant.serving import Event, asking, copy_release, metric, running, turn, until, whole_turn
from tests.small_release import point_at

TOKEN = "a token of some length"
MANY = Rate(1_000, 10_000)
LONG = Limits(answer_tokens=4_000)
"""Of the toy model: some seconds of an answer."""


def settings(lake: Lake, **changes: Any) -> Settings:
    usual = Settings(lake.home, requests=MANY, chats=MANY, limits=Limits(answer_tokens=24))
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def client(lake_with_interests: Lake, toy_brain: MakeBrain) -> Iterator[httpx.Client]:
    with running(settings(lake_with_interests), toy_brain) as client:
        yield client


def about_a_pin(client: httpx.Client, **more: Any) -> dict[str, Any]:
    """A turn's request for more like some pin."""
    pin = client.get("/search", params={"text": "a flag"}).json()["pins"][0]
    return asking("more like this", pin_id=pin["pin_id"], **more)


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Noise, which no format makes smaller."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pins_of(events: list[Event]) -> list[dict[str, Any]]:
    pins: list[dict[str, Any]] = next(data for name, data in events if name == "candidates")["pins"]
    return pins


def test_a_turn_is_told_in_order_and_cites_what_was_found(client: httpx.Client) -> None:
    events = whole_turn(client, about_a_pin(client, mode="thinking"))
    order = [name for name, _ in groupby(name for name, _ in events)]
    assert order == ["mode", "tool", "candidates", "thinking", "answer", "done"]
    pins, done = pins_of(events), events[-1][1]
    assert [pin["number"] for pin in pins] == list(range(1, len(pins) + 1))
    assert all(isinstance(pin["pin_id"], str) for pin in pins), "JavaScript would round these numbers"
    assert set(done["cited"]) <= {pin["pin_id"] for pin in pins}
    assert done["usage"]["answer"] and done["first_token_ms"] <= done["total_ms"]
    assert metric(client, "pinlake_first_token_seconds_count") >= 1
    assert metric(client, "pinlake_tokens_total") >= done["usage"]["answer"]
    # A conversation goes on: the client sends what was said and what was shown.
    said = "".join(data["text"] for name, data in events if name == "answer")
    again = asking("more like this") | {"shown": [pin["pin_id"] for pin in pins]}
    again["messages"] += [{"role": "assistant", "text": said}, {"role": "user", "text": "thank you"}]
    assert whole_turn(client, again)[-1][0] == "done"


def test_pins_are_found_by_words_pin_picture_and_interests(client: httpx.Client, lake_with_interests: Lake) -> None:
    found = client.get("/search", params={"text": "a flag", "k": 5}).json()
    assert len(found["pins"]) == 5 and found["release_id"] == read_pointer(lake_with_interests).release_id  # type: ignore[union-attr]
    pin = found["pins"][0]
    assert client.get(f"/pins/{pin['pin_id']}").json()["title"] == pin["title"]
    tag = pin["tags"][0]
    narrowed = client.get("/search", params={"text": "a flag", "tag": tag}).json()["pins"]
    assert narrowed and all(tag in other["tags"] for other in narrowed)
    related = client.get(f"/pins/{pin['pin_id']}/related", params={"k": 8}).json()["pins"]
    assert related and pin["pin_id"] not in {other["pin_id"] for other in related}
    picture = client.get(pin["picture"])
    assert picture.headers["content-type"] == "image/webp" and picture.headers["x-content-type-options"] == "nosniff"
    assert max(Image.open(io.BytesIO(picture.content)).size) <= 400
    assert client.get(pin["picture"], headers={"If-None-Match": picture.headers["etag"]}).status_code == 304
    form: dict[str, Any] = {"data": {"request": json.dumps({"k": 3})}, "files": {"picture": ("p.webp", picture.content)}}
    alike = client.post("/search", **form).json()["pins"]
    assert pin["pin_id"] in {other["pin_id"] for other in alike}
    from_turn = whole_turn(client, asking("like this"), picture.content)
    assert pin["pin_id"] in {other["pin_id"] for other in pins_of(from_turn)}


def test_a_user_sees_interests_and_gets_pins_for_them(
    client: httpx.Client, lake_with_interests: Lake, toy_brain: MakeBrain
) -> None:
    assert client.get("/people").status_code == 404, "nobody is listed unless the service is told to"
    with running(settings(lake_with_interests, people=True), toy_brain) as listing:
        people = listing.get("/people").json()
    user = people[0]["user_id"]
    interests = client.get("/interests", params={"user_id": user}).json()
    assert 0.99 < sum(row["share"] for row in interests["interests"]) <= 1.01 or interests["more"]
    assert client.get(interests["interests"][0]["medoid"]["picture"]).status_code == 200
    pins = client.get("/recommendations", params={"user_id": user, "k": 6}).json()["pins"]
    assert pins and all("your" in pin["why"] for pin in pins)
    assert client.get("/recommendations", params={"user_id": -7}).json()["error"].startswith("nothing is known of user -7")


def test_who_has_no_token_is_refused_and_learns_nothing(lake_with_interests: Lake, toy_brain: MakeBrain) -> None:
    with running(settings(lake_with_interests, token=TOKEN), toy_brain) as client:
        pin = client.get("/search", params={"text": "a flag"}).json()["pins"][0]
        assert all("key=" in pin["picture"] for pin in pins_of(whole_turn(client, about_a_pin(client))))
        nobody = httpx.Client(base_url=client.base_url)
        for path in ("/search?text=a", f"/pins/{pin['pin_id']}", "/people", "/metrics", "/openapi.json", "/nothing"):
            refused = nobody.get(path)
            assert refused.status_code == 401 and refused.json()["what_to_do"], path
            assert nobody.get(path, headers={"Authorization": "Bearer another token, as long"}).status_code == 401
        assert nobody.post("/chat", json=asking("a flag")).status_code == 401
        assert nobody.get("/").status_code == nobody.get("/page/app.js").status_code == nobody.get("/health").status_code == 200
        # A picture's own address opens that picture, and no other.
        assert nobody.get(pin["picture"]).status_code == 200
        path, _, key = pin["picture"].partition("?")
        assert nobody.get(path).status_code == nobody.get(f"{path}?key={'0' * 32}").status_code == 401
        assert (
            nobody.get(f"/pins/1/picture?{key}").status_code
            == nobody.get(f"/pins/{pin['pin_id']}/related?{key}").status_code
            == 401
        )


def test_without_a_token_this_machine_alone_is_served(client: httpx.Client, lake_with_interests: Lake) -> None:
    with pytest.raises(ServiceError, match="PINLAKE_ASSISTANT_TOKEN"):
        settings(lake_with_interests, host="0.0.0.0")
    assert client.get("/search?text=a", headers={"Host": "evil.example"}).status_code == 421
    refused = client.post("/search", json={"text": "a"}, headers={"Origin": "https://evil.example"})
    assert refused.status_code == 403
    policy = refused.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy


def test_what_is_too_large_or_cannot_be_read_is_refused(client: httpx.Client) -> None:
    def refusal(status: int, **sent: Any) -> str:
        response = client.post("/chat", **sent)
        assert response.status_code == status, response.text
        assert response.json()["what_to_do"]
        return str(response.json()["error"])

    def endless() -> Iterator[bytes]:
        while True:  # of no length that is said: refused while it arrives, or this never ends
            yield bytes(2**20)

    as_json = {"Content-Type": "application/json"}
    assert "more than" in refusal(413, content=bytes(10 * 2**20), headers=as_json)
    with suppress(httpx.WriteError, httpx.ReadError):  # where the connection is closed under us before the answer is read
        assert "more than" in refusal(413, content=endless(), headers=as_json)
    form: dict[str, Any] = {"data": {"request": json.dumps(asking("like this"))}}
    assert "cannot be used" in refusal(422, files={"picture": ("p.png", b"no picture")}, **form)
    huge = io.BytesIO()
    Image.new("1", (6_000, 5_000)).save(huge, "PNG")
    assert "6000 x 5000 pixels" in refusal(422, files={"picture": ("p.png", huge.getvalue())}, **form)
    assert "messages" in refusal(422, json={"messages": [{"role": "user", "text": "a"}] * 41})
    assert "characters" in refusal(422, json=asking("a" * 4_001))
    assert refusal(422, json=asking("a", pin_id=2**63)).startswith("pin_id")
    refusal(415, content=b"a", headers={"Content-Type": "text/plain"})
    assert client.get("/search", params={"text": "a", "k": 101}).status_code == 422
    assert client.get("/pins/7").status_code == client.get("/pins/7/picture").status_code == 404


def test_an_uploaded_picture_leaves_no_file(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))  # whatever is spooled to a file fails
    picture = png(1_000, 1_000)
    assert len(picture) > 2 * 2**20
    form: dict[str, Any] = {"data": {"request": "{}"}, "files": {"picture": ("p.png", picture)}}
    assert client.post("/search", **form).json()["pins"]
    assert whole_turn(client, asking("like this"), picture)[-1][0] == "done"
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass


def test_who_asks_too_often_is_told_when_to_come_back(lake_with_interests: Lake, toy_brain: MakeBrain) -> None:
    few = settings(lake_with_interests, requests=Rate(0.01, 40), chats=Rate(0.01, 2))
    with running(few, toy_brain) as client:
        for _ in range(2):
            whole_turn(client, asking("a flag"))
        refused = client.post("/chat", json=asking("a flag"))
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 10
        answers = [client.get("/search", params={"text": "a"}).status_code for _ in range(60)]
        assert answers[0] == 200 and answers[-1] == 429


def test_turns_beyond_the_places_are_sent_away_and_one_that_is_left_is_ended(
    lake_with_interests: Lake, toy_brain: MakeBrain
) -> None:
    one = settings(lake_with_interests, turns=1, waiting=0, limits=LONG)
    with running(one, toy_brain) as client:
        with turn(client, about_a_pin(client)) as events:
            for _ in range(4):
                next(events)
            busy = client.post("/chat", json=asking("a flag"))
            assert busy.status_code == 503 and int(busy.headers["retry-after"]) >= 1
            assert client.get("/search", params={"text": "a flag"}).status_code == 200, "searches go on"
        # The client has gone: its turn ends, and its place is free.
        until(lambda: metric(client, "pinlake_turns_running") == 0)
        assert 'end="left"' in client.get("/metrics").text
        assert whole_turn(client, asking("a flag"))[-1][0] == "done"


def test_a_turn_past_its_time_is_ended_and_told(lake_with_interests: Lake, toy_brain: MakeBrain) -> None:
    with running(settings(lake_with_interests, limits=LONG, turn_s=0.2), toy_brain) as client:
        name, data = whole_turn(client, about_a_pin(client, mode="thinking"))[-1]
        assert name == "error" and data["retryable"]


def test_another_release_takes_over_in_the_middle_of_an_answer(
    lake_with_interests: Lake, toy_brain: MakeBrain, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake_with_interests.home, lake.home)
    pointer = read_pointer(lake)
    assert pointer is not None
    copy_release(lake, pointer.release_id, "second")
    with running(settings(lake, limits=LONG), toy_brain) as client:
        request = about_a_pin(client, mode="thinking")
        with turn(client, request) as events:
            begun = [next(events) for _ in range(5)]
            assert begun[2][1]["release_id"] == pointer.release_id
            point_at(lake, LivePointer("second", embedding_version=pointer.embedding_version))
            until(lambda: client.get("/health").json()["release_id"] == "second")
            rest = list(events)
        assert rest[-1][0] == "done" and set(rest[-1][1]["cited"]) <= {pin["pin_id"] for pin in begun[2][1]["pins"]}
        after = whole_turn(client, request)
        assert next(data for name, data in after if name == "candidates")["release_id"] == "second"
        assert metric(client, "pinlake_release_swaps_total") == 1


def test_the_other_brain_answers_a_share_of_the_turns_unseen(
    lake_with_interests: Lake, toy_brain: MakeBrain, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake_with_interests.home, lake.home)
    shadowed = settings(lake, shadow=ShadowConfig(share=1.0, every_s=0.1))
    with running(shadowed, toy_brain, toy_brain) as client:
        done = whole_turn(client, about_a_pin(client))[-1][1]
    rows = read_rows(lake.open(SHADOW_TURNS)).to_pylist()  # leaving the service finishes what waits
    assert [row["served_brain"] for row in rows] == [done["brain"]]
    assert rows[0]["shadow_total_ms"] > 0 and rows[0]["cited_jaccard"] == 1.0, "two of a kind say the same"
