"""Reads a request's body: bounded while it arrives, in memory, and nowhere else.

An uploaded picture is never written to disk: the parser that Starlette uses would keep what is over a megabyte in a temporary
file; here it is told a bound that no body reaches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from assistant.service.errors import Refused, too_large
from assistant.service.settings import Settings
from embedding.encoder.images import FORMATS, decode_image
from embedding.encoder.limits import ImageRejected

SMALL = 64
"""Pixels a side to which a JPEG is decoded where only whether it can be is asked."""
Model = TypeVar("Model", bound=BaseModel)

REQUEST_PART, PICTURE_PART = "request", "picture"
FORM = "send JSON, or multipart/form-data with a part `request` (JSON) and a part `picture` (a file)"


@dataclass(frozen=True)
class Body:
    """A request's JSON as it came, and the picture file that came with it."""

    json: bytes
    picture: bytes | None


async def read_body(request: Request, settings: Settings) -> Body:
    """Raises Refused: 408 past the time, 413 over a limit, 415 for another type, 422 for a picture that cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(settings.body_s):
            if kind == "application/json":
                return Body(b"".join([part async for part in _bounded(request, settings.body_bytes)]), None)
            if kind == "multipart/form-data":
                return await _read_form(request, settings)
    except TimeoutError:
        raise Refused(408, f"the request took over {settings.body_s:g} s to arrive", "send it again") from None
    except ClientDisconnect:
        raise Refused(400, "the client went away", "send it again") from None
    raise Refused(415, f"not a type that is read: {kind or 'none given'}", FORM)


def parsed(model: type[Model], data: bytes) -> Model:
    """Raises Refused (422) with the first fault's place."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise Refused(422, first_fault(error.errors()), "correct it and send it again") from None


def first_fault(faults: object) -> str:
    """Where and what the first of pydantic's faults is, without the value that was sent."""
    first = faults[0] if isinstance(faults, list | tuple) and faults else {}
    place = ".".join(str(step) for step in first.get("loc", ()) if step not in ("body", "query"))
    return f"{place or 'the request'}: {first.get('msg', 'not understood')}"


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise too_large("the request", most)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:  # what it said may not be what it sends
            raise too_large("the request", most)
        yield part


async def _read_form(request: Request, settings: Settings) -> Body:
    most = settings.body_bytes
    parser = MultiPartParser(request.headers, _bounded(request, most), max_files=1, max_fields=1, max_part_size=most)
    parser.spool_max_size = most + 1  # never reached: nothing is spooled to a file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"not a form that can be read: {error.message}", FORM) from None
    said, picture = form.get(REQUEST_PART), form.get(PICTURE_PART)
    if said is not None and not isinstance(said, str):
        raise Refused(400, f"the part `{REQUEST_PART}` is a file, not JSON", FORM)
    if picture is not None and not isinstance(picture, UploadFile):
        raise Refused(400, f"the part `{PICTURE_PART}` is no file", FORM)
    data = await picture.read() if picture is not None else b""
    await form.close()
    if len(data) > settings.limits.picture_bytes:
        raise too_large("the picture", settings.limits.picture_bytes)
    return Body((said or "{}").encode(), data or None)


def check_picture(data: bytes, most_pixels: int) -> None:
    """Raises Refused (422) for a picture that cannot be decoded, or is of more pixels. Blocks."""
    try:
        decode_image(data, most_pixels, lambda width, height: SMALL / max(width, height, 1))
    except ImageRejected as error:
        raise Refused(422, f"the picture cannot be used: {error.detail}", f"send one of {', '.join(FORMATS)}") from None
