"""POST /chat: a turn as server-sent events, `event: NAME` and `data: JSON` (assistant/events.py says which, in what order)."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from assistant.events import Answer, Done, Event, Failed, ModeChosen
from assistant.navigator import RequestRefused, check
from assistant.service.body import check_picture, parsed, read_body
from assistant.service.errors import Refused
from assistant.service.shapes import ChatRequest, event_json
from assistant.service.state import State
from assistant.service.turn import RunningTurn

router = APIRouter()

STILL_HERE = b": still here\n\n"
"""A comment: proxies close what is silent, and a client that has gone is noticed by what is sent."""


@router.post("/chat")
async def chat(request: Request) -> Response:
    """One turn. JSON, or a form with `request` (JSON) and `picture` (a file, encoded in memory and forgotten)."""
    begun = time.perf_counter()
    state = State.of(request)
    settings = state.settings
    navigator = state.open.navigator
    body = await read_body(request, settings)
    wanted = parsed(ChatRequest, body.json)
    turn = wanted.turn(body.picture)
    try:
        check(turn, navigator.limits)
    except RequestRefused as error:
        raise Refused(422, str(error), f"keep to the limit `{error.limit}`") from None
    if (picture := body.picture) is not None:
        await state.searching.run(lambda: check_picture(picture, settings.upload_pixels))
    running = RunningTurn(
        state.places,
        lambda: navigator.chat(turn, wanted.mode),
        wait_s=settings.wait_s,
        turn_s=settings.turn_s,
        keep_alive_s=settings.keep_alive_s,
    )
    return EventStream(running, Counted(state, begun), state)


class Counted:
    """What the metrics learn from a turn's events."""

    def __init__(self, state: State, begun: float):
        self._metrics, self._begun = state.metrics, begun
        self._mode, self._answered, self._end = "none", False, "left"

    def see(self, event: Event) -> None:
        if isinstance(event, ModeChosen):
            self._mode = event.mode
        elif isinstance(event, Answer) and not self._answered:
            self._answered = True
            self._metrics.first_token.labels(self._mode).observe(time.perf_counter() - self._begun)
        elif isinstance(event, Done):
            self._end = "done"
            for kind in ("prompt", "cached", "thinking", "answer"):
                self._metrics.tokens.labels(kind).inc(getattr(event.usage, kind))
            self._metrics.removed.inc(event.removed)
        elif isinstance(event, Failed):
            self._end = "error"

    def close(self) -> None:
        self._metrics.turns.labels(self._mode, self._end).inc()


class EventStream(StreamingResponse):
    """Sends a turn's events. A client that goes away stops the turn."""

    def __init__(self, running: RunningTurn, counted: Counted, state: State):
        self._running, self._counted, self._state = running, counted, state
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.stop()
            self._counted.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        async for event in self._running.events():
            if event is None:
                yield STILL_HERE
                continue
            self._counted.see(event)
            yield server_sent(event.name, event_json(event, self._state.keys))


def server_sent(name: str, data: Any) -> bytes:
    # JSON escapes line breaks, so that data is one line, whatever a title holds.
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
