"""The context brain and the shadow against a real server of another project's making, and against servers that are none."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from assistant.brains.endpoint import EndpointBrain, as_json
from assistant.brains.endpoint_config import EndpointConfig, EndpointSettingError, is_sent
from assistant.navigator import Navigator, TurnRecord
from assistant.shadow import Prices, Shadow, ShadowConfig, ShadowSettingError, is_chosen, jaccard
from assistant.tools import Tools
from assistant.turns import BrainError, Candidate, Limits, Message, Request, ToolCall, Turn, Usage
from embedding.contracts import SHADOW_TURNS
from embedding.encoder.public_address import PrivateHosts
from embedding.index.live import LiveRelease
from embedding.tables.lake import Lake
from tests.assistant.model_server import model_server, patient, smollm2_folder, toy_qwen3_vl_folder, web
from tests.assistant.small_lake import PINS, add_release

KEY = "sk-never-to-be-seen-0123456789"


def asking(text: str = "a red bicycle") -> Request:
    return Request((Message("user", text),))


def turn_over(*pictures: str | None, mode: Any = "quick") -> Turn:
    vector = np.zeros(4, np.float32)
    pins = [Candidate(n, 100 + n, f"pin {n}", ("tag",), None, uri, 0.5, vector, "") for n, uri in enumerate(pictures, 1)]
    return Turn(asking(), mode, "version", tuple(pins), thinking_tokens=8 if mode == "thinking" else 0, answer_tokens=12)


def words(brain: EndpointBrain, turn: Turn) -> str:
    return "".join(piece.text for piece in brain.answer(turn) if piece.kind == "answer")


# -- a real one -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """A server's address, and the folders of a small language model and of one that reads pictures."""
    folder = tmp_path_factory.mktemp("models")
    small, seeing = smollm2_folder(folder / "smollm2"), toy_qwen3_vl_folder(folder / "toy-qwen3-vl")
    with model_server(folder / "log") as url:
        yield url, small, seeing


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    add_release(lake, "r1", PINS)
    return lake


@pytest.fixture(scope="module")
def tools(lake: Lake) -> Tools:
    return Tools(lake, LiveRelease(lake), Limits(candidates=4, answer_tokens=24))


def test_a_whole_turn_over_a_real_endpoint(models: tuple[str, Path, Path], tools: Tools) -> None:
    url, small, _ = models
    events = list(Navigator(tools, EndpointBrain(patient(url, small))).chat(asking()))
    names = [event.name for event in events]
    assert names[:3] == ["mode", "tool", "candidates"]
    assert names[3:-1] == ["answer"] * (len(names) - 4)
    assert len(names) > 6, "it streams"
    done = events[-1].data()
    shown = {pin["pin_id"] for pin in events[2].data()["pins"]}
    assert set(done["cited"]) <= shown
    assert done["brain"] == "endpoint:smollm2"
    assert done["usage"]["prompt"] > 100
    assert 0 < done["usage"]["answer"] <= 24
    assert 0 < done["first_token_ms"] < done["total_ms"]


def test_pictures_go_by_url_and_those_of_no_web_stay(models: tuple[str, Path, Path]) -> None:
    url, _, seeing = models
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (220, 20, 20)).save(picture, "PNG")
    with web(picture.getvalue(), "image/png") as (pictures, fetched):
        brain = EndpointBrain(patient(url, seeing, pictures=2, private_hosts=("127.0.0.1",)))
        turn = turn_over(
            f"{pictures}/1.png", "file:///etc/2.png", "http://10.0.0.1/3.png", None, f"{pictures}/5.png", f"{pictures}/6.png"
        )
        stream = brain.answer(turn)
        assert sum(1 for _ in stream) > 0
        with_pictures = stream.usage.prompt
        blind = EndpointBrain(patient(url, seeing, pictures=0)).answer(turn)
        assert sum(1 for _ in blind) > 0
    assert fetched == ["/1.png", "/5.png"]
    assert with_pictures > blind.usage.prompt


def test_hanging_up_ends_the_answer(models: tuple[str, Path, Path]) -> None:
    url, small, _ = models
    brain = EndpointBrain(patient(url, small))
    answering = brain.answer(replace(turn_over(None), answer_tokens=1_000))
    started, pieces = time.monotonic(), iter(answering)
    next(pieces)
    answering.close()
    assert next(iter(brain.answer(turn_over(None)))).text, "the next one is not kept waiting by it"
    assert time.monotonic() - started < 40


# -- ones that fail ---------------------------------------------------------------------------------------------------------


def said_of(url: str, caplog: pytest.LogCaptureFixture, **more: Any) -> str:
    """What a failing endpoint's error says; it never holds the key, and neither does the log."""
    options: dict[str, Any] = {"connect_timeout_s": 0.5, "silence_timeout_s": 0.3, "total_timeout_s": 5.0, "attempts": 2}
    waits: list[float] = []
    brain = EndpointBrain(EndpointConfig(url, "some-model", **(options | more)), KEY, sleep=waits.append)
    said = []
    with caplog.at_level(logging.DEBUG):
        for ask in (lambda: brain.decide(asking(), ("search_text", "talk")), lambda: words(brain, turn_over(None))):
            with pytest.raises(BrainError) as raised:
                ask()
            assert raised.value.__cause__ is None
            said.append(str(raised.value))
    assert KEY not in "".join(said) + caplog.text + repr(brain) + repr(vars(brain)["_config"])
    assert len(waits) <= 2
    return " / ".join(dict.fromkeys(said))


def test_failures_are_sentences_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    with web(refusal, "application/json", status=401) as (url, seen):
        said = said_of(url, caplog)
        assert "refused with status 401: is PINLAKE_CONTEXT_API_KEY right?" in said
        assert len(seen) == 2, "a wrong key is not tried twice"
    with web(b"{}", "application/json", status=503) as (url, seen):
        assert "refused with status 503" in said_of(url, caplog)
        assert len(seen) == 4, "two calls, each tried twice"
    with web(b"<html>Welcome</html>", "text/html") as (url, _):
        assert "not as a chat endpoint does" in said_of(url, caplog)
    with web(b"data: rubbish\n\n", "text/event-stream") as (url, _):
        assert "cannot be read" in said_of(url, caplog)
    with web(b"{}", "application/json", held_s=1.0) as (url, _):
        assert "said nothing for 0.3 s" in said_of(url, caplog)
    assert "cannot be reached" in said_of("http://127.0.0.1:9/v1", caplog)


def test_an_endpoint_that_knows_no_extras_is_asked_plainly() -> None:
    with web(b'{"error": "unknown field"}', "application/json", status=400) as (url, seen):
        brain = EndpointBrain(EndpointConfig(url, "some-model"))
        with pytest.raises(BrainError, match="400"):
            brain.answer(turn_over(None))
        assert len(seen) == 2, "with extras, and without"
        with pytest.raises(BrainError, match="400"):
            brain.answer(turn_over(None))
        assert len(seen) == 3, "it is remembered"


def test_thoughts_function_calls_and_counts_as_servers_stream_them() -> None:
    chunk: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = ({"role": "assistant"}, {"reasoning_content": "Hm."}, {"content": "Take"}, {"content": " [1]."})
    lines = [chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    details = {"prompt_tokens_details": {"cached_tokens": 30}, "completion_tokens_details": {"reasoning_tokens": 5}}
    lines.append(chunk | {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49} | details})
    body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
    with web(body.encode(), "text/event-stream") as (url, _):
        brain = EndpointBrain(EndpointConfig(url, "org/some-model"))
        assert brain.name == "endpoint:some-model"
        for mode, kinds in (("thinking", ["thinking", "answer", "answer"]), ("quick", ["answer", "answer"])):
            answering = brain.answer(turn_over(None, mode=mode))
            assert [piece.kind for piece in answering] == kinds
            assert answering.usage == Usage(prompt=40, cached=30, thinking=5, answer=4)
    raw = ("<th", "ink>Hm", " 1 < 2</", "think>", "\n\nTake", " [1].")
    lines = [chunk | {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in raw]
    with web("".join(f"data: {json.dumps(line)}\n\n" for line in lines).encode(), "text/event-stream") as (url, _):
        pieces = list(EndpointBrain(EndpointConfig(url, "m")).answer(turn_over(None, mode="thinking")))
        assert "".join(piece.text for piece in pieces if piece.kind == "thinking") == "Hm 1 < 2"
        assert "".join(piece.text for piece in pieces if piece.kind == "answer").strip() == "Take [1]."
    call = {"id": "1", "type": "function", "function": {"name": "search_text", "arguments": '{"query": "red  bike"}'}}
    for message, expected in (
        ({"content": None, "tool_calls": [call]}, ToolCall("search_text", "red bike", "by a function call")),
        ({"content": 'Sure! {"tool": "talk", "query": ""}'}, ToolCall("talk", "", "by its words")),
    ):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"} | message}
        whole = chunk | {"object": "chat.completion", "choices": [choice]}
        with web(json.dumps(whole).encode(), "application/json") as (url, _):
            assert EndpointBrain(EndpointConfig(url, "m")).decide(asking(), ("search_text", "talk")) == expected


def test_settings_and_addresses() -> None:
    assert EndpointConfig.from_environment({}) is None
    config = EndpointConfig.from_environment({"PINLAKE_CONTEXT_URL": "https://host/v1", "PINLAKE_CONTEXT_MODEL": "m"})
    assert config == EndpointConfig("https://host/v1", "m")
    for url in ("host/v1", "ftp://host", "https://me:secret@host/v1"):
        with pytest.raises(EndpointSettingError, match="PINLAKE_CONTEXT_URL"):
            EndpointConfig(url, "m")
    nowhere = PrivateHosts()
    assert is_sent("https://pictures.example/a.png", nowhere)
    for uri in (
        "file:///a",
        "http://localhost/a",
        "http://169.254.169.254/a",
        "http://[::1]/a",
        "https://u:p@host.org/a",
        "http://0x7f.1/",
    ):
        assert not is_sent(uri, nowhere), uri
    assert "<" not in as_json({"title": "<|im_end|>"})
    assert json.loads(as_json({"title": "<|im_end|>"})) == {"title": "<|im_end|>"}


# -- the shadow -------------------------------------------------------------------------------------------------------------


def rows_of(lake: Lake) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.table(lake.open(SHADOW_TURNS).to_pyarrow_table()).to_pylist()
    return rows


def test_two_brains_are_compared_in_a_table(models: tuple[str, Path, Path], lake: Lake, tools: Tools) -> None:
    url, small, seeing = models
    served, shadow_brain = EndpointBrain(patient(url, small)), EndpointBrain(patient(url, seeing))
    prices = Prices.parse("1,0.5,2")
    config = ShadowConfig(1.0, served_prices=prices, rows=2)
    texts = ("a red bicycle", "the blue teapot of my aunt", "hello")
    with Shadow(lake, tools, shadow_brain, config, patience_s=120) as shadow:
        navigator = Navigator(tools, served, watcher=shadow)
        turns = [list(navigator.chat(asking(text), turn_id=f"turn-{n}")) for n, text in enumerate(texts)]
    assert shadow.counts.__dict__ == {"chosen": 3, "dropped": 0, "written": 3, "failed": 0}
    rows = {row["turn_id"]: row for row in rows_of(lake)}
    assert sorted(rows) == ["turn-0", "turn-1", "turn-2"]
    for n, events in enumerate(turns):
        row, done = rows[f"turn-{n}"], events[-1].data()
        assert (row["served_brain"], row["shadow_brain"]) == ("endpoint:smollm2", "endpoint:toy-qwen3-vl")
        assert row["served_prompt_tokens"] == done["usage"]["prompt"]
        assert row["served_cost"] == pytest.approx((done["usage"]["prompt"] + 2 * done["usage"]["answer"]) / 1e6)
        assert row["shadow_cost"] is None
        assert row["shadow_error"] is None
        assert row["shadow_answer_tokens"] > 0
        assert row["shadow_total_ms"] >= row["shadow_first_token_ms"] > 0
        assert 0 <= row["cited_jaccard"] <= 1
        assert row["same_tool"] in (True, False)
        assert -1 <= row["answers_cosine"] <= 1
    written = str(rows_of(lake))
    assert not any(word in written for word in ("bicycle", "teapot", "aunt", "hello"))


class Held:
    """A brain that fails as an endpoint does that is down, once it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def decide(self, request: Request, tools: Sequence[Any]) -> ToolCall:
        self.let_go.wait()
        raise BrainError("held cannot be reached")

    def answer(self, turn: Turn) -> Any:
        raise AssertionError


def test_a_shadow_that_is_slow_or_down_costs_the_user_nothing(
    tools: Tools, tmp_path: Path, models: tuple[str, Path, Path]
) -> None:
    url, small, _ = models
    lake, held, told = Lake(str(tmp_path)), Held(), list[TurnRecord]()
    served = Navigator(tools, EndpointBrain(patient(url, small)), watcher=told.append)
    (*_, done) = served.chat(asking())
    assert done.name == "done"
    shadow = Shadow(lake, tools, held, ShadowConfig(1.0, waiting=2), patience_s=60)
    with shadow:
        for n in range(12):
            shadow(replace(told[0], turn_id=f"turn-{n}"))
        assert shadow.counts.chosen == 12
        assert shadow.counts.dropped >= 9, "one is under way, two wait"
        held.let_go.set()
    rows = rows_of(lake)
    assert len(rows) == 12 - shadow.counts.dropped == shadow.counts.written
    assert {row["shadow_error"] for row in rows} == {"held cannot be reached"}
    assert all(row["shadow_total_ms"] is None and row["served_total_ms"] > 0 for row in rows)


def test_the_share_is_a_hash_of_the_turn() -> None:
    ids = [f"turn-{n}" for n in range(4_000)]
    chosen = {one for one in ids if is_chosen(one, 0.1)}
    assert 300 < len(chosen) < 500
    assert chosen <= {one for one in ids if is_chosen(one, 0.2)}
    assert not any(is_chosen(one, 0.0) for one in ids)
    assert all(is_chosen(one, 1.0) for one in ids)
    assert ShadowConfig.from_environment({}) is None
    environ = {"PINLAKE_SHADOW_SHARE": "0.1", "PINLAKE_SHADOW_PRICES": "3,0.3,15"}
    assert ShadowConfig.from_environment(environ) == ShadowConfig(0.1, None, Prices(3, 0.3, 15))
    for wrong in ({"PINLAKE_SHADOW_SHARE": "2"}, {"PINLAKE_SHADOW_SHARE": "x"}, environ | {"PINLAKE_SERVED_PRICES": "1,2"}):
        with pytest.raises(ShadowSettingError):
            ShadowConfig.from_environment(wrong)
    assert jaccard([], []) == 1
    assert jaccard([1, 2], [2, 3]) == pytest.approx(1 / 3)
