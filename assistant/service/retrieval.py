"""The routes that find pins: search, a pin and what is like it, recommendations, interests, and pins' pictures.

Each request asks one release. What blocks runs in a bounded number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from assistant.service.body import check_picture, parsed, read_body
from assistant.service.errors import Refused
from assistant.service.people import user_interests
from assistant.service.pictures import TYPE, is_on_the_web
from assistant.service.shapes import Count, Id, SearchRequest, Tag, pins_json, with_texts_for_ids
from assistant.service.state import State
from assistant.tools import Asked, BadPictureError, Narrowed, ToolError, UnknownPersonError, UnknownPinError
from assistant.turns import Candidate

router = APIRouter()


@router.get("/search")
async def search(
    request: Request,
    text: str | None = None,
    pin: Id | None = None,
    tag: Tag | None = None,
    board: Id | None = None,
    k: Count = 20,
) -> Response:
    """Pins by words, or like a pin."""
    return await _search(State.of(request), SearchRequest(text=text, pin=pin, tag=tag, board=board, k=k), None)


@router.post("/search")
async def search_by_picture(request: Request) -> Response:
    """The same, or by a picture: JSON, or a form with `request` and `picture`. The picture is encoded and forgotten."""
    state = State.of(request)
    body = await read_body(request, state.settings)
    return await _search(state, parsed(SearchRequest, body.json), body.picture)


async def _search(state: State, wanted: SearchRequest, picture: bytes | None) -> Response:
    if sum(query is not None for query in (wanted.text, wanted.pin, picture)) != 1:
        raise Refused(422, "a search is by `text`, by `pin` or by a picture", "give one of them")
    if wanted.text is not None and len(wanted.text) > state.settings.limits.message_chars:
        raise Refused(422, f"text: at most {state.settings.limits.message_chars} characters", "shorten it")
    among = Narrowed(wanted.board, wanted.tag)

    def find(asked: Asked) -> tuple[Candidate, ...]:
        if picture is not None:
            check_picture(picture, state.settings.upload_pixels)
            return asked.picture(picture, wanted.k, among)
        if wanted.pin is not None:
            return asked.like_pin(wanted.pin, wanted.k, among)
        return asked.text(wanted.text or "", wanted.k, among)

    return await _found(state, find)


@router.get("/pins/{pin_id}")
async def pin(request: Request, pin_id: Id) -> Response:
    """What is known of a pin."""
    state = State.of(request)

    def look() -> Any:
        found = state.open.tools.now().shown([pin_id])
        if not found:
            raise _unknown(pin_id)
        return pins_json(found, state.keys)[0]

    return JSONResponse(await state.searching.run(look))


@router.get("/pins/{pin_id}/related")
async def related(request: Request, pin_id: Id, k: Count = 20, tag: Tag | None = None, board: Id | None = None) -> Response:
    """Pins that look and read like one, and pins that others keep beside it."""
    return await _found(State.of(request), lambda asked: asked.pin(pin_id, k, Narrowed(board, tag)))


@router.get("/recommendations")
async def recommendations(
    request: Request, user_id: Id, k: Count = 20, tag: Tag | None = None, board: Id | None = None
) -> Response:
    """Pins for a user, each with its reason."""
    return await _found(State.of(request), lambda asked: asked.recommended(user_id, k, Narrowed(board, tag)))


@router.get("/interests")
async def interests(request: Request, user_id: Id) -> Response:
    """What a user is interested in, most important first, each with a pin that stands for it."""
    state = State.of(request)
    found = await state.searching.run(lambda: user_interests(state.open.lake, state.open.release, user_id, state.keys))
    return JSONResponse(with_texts_for_ids(found))


@router.get("/people")
async def people(request: Request) -> Response:
    """A few users to try, where the service was started with --people."""
    state = State.of(request)
    if not state.settings.people:
        raise Refused(404, "this service lists nobody", "ask for a user by id")
    return JSONResponse(with_texts_for_ids(await state.searching.run(state.some_people)))


@router.get("/pins/{pin_id}/picture")
async def picture(request: Request, pin_id: Id) -> Response:
    """A pin's picture, small; a pin whose picture is on the web leads there. `?key=` stands for the token (see `Keys`)."""
    state = State.of(request)
    release, thumbnails = state.open.release, state.thumbnails

    def make() -> Response:
        uri = thumbnails.address(release, pin_id)
        if is_on_the_web(uri):
            return RedirectResponse(uri, 307, {"Cache-Control": "private, max-age=300"})
        made = thumbnails.of(release, uri)
        headers = {"ETag": made.tag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == made.tag:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type=TYPE, headers=headers)

    return await state.drawing.run(make)


async def _found(state: State, find: Callable[[Asked], tuple[Candidate, ...]]) -> Response:
    begun = time.perf_counter()

    def work() -> Any:
        asked = state.open.tools.now()
        try:
            pins = find(asked)
        except ToolError as error:
            raise refused(error) from None
        return {
            "release_id": asked.release_id,
            "embedding_version": asked.embedding_version,
            "pins": pins_json(pins, state.keys),
        }

    found = await state.searching.run(work)
    return JSONResponse(found | {"took_ms": round((time.perf_counter() - begun) * 1000, 1)})


def refused(error: ToolError) -> Refused:
    """A tool's error as an answer: its message says what to do as well."""
    if error.retryable:
        return Refused(503, str(error), "try again in a moment", 2)
    status = 404 if isinstance(error, UnknownPinError | UnknownPersonError) else 422
    advice = "send another picture" if isinstance(error, BadPictureError) else "ask for something else"
    return Refused(status, str(error), advice)


def _unknown(pin_id: int) -> Refused:
    return Refused(404, f"pin {pin_id} is not in the live release", "it may have been deleted: search again")
