"""The app: its routes, what stands before them, and what it opens and closes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from assistant.service import chat, health, retrieval
from assistant.service.body import first_fault
from assistant.service.brains import BRAINS, make_brain
from assistant.service.errors import Refused
from assistant.service.guard import Guard
from assistant.service.serving import MakeBrain
from assistant.service.settings import Settings
from assistant.service.state import State

PAGE = Path(__file__).resolve().parents[1] / "page"


def create_app(settings: Settings, brain: MakeBrain | None = None, shadow: MakeBrain | None = None) -> FastAPI:
    """An app over one lake. `brain`, `shadow`: how these are made; without, the one that `settings.brain` names, and the other.

    It opens the release and loads the brain once it starts, in the background: /health says when it is ready.
    """
    other = next(name for name in BRAINS if name != settings.brain)
    state = State(settings, brain or make_brain(settings.brain), shadow or make_brain(other))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.open.start()
        try:
            yield
        finally:
            state.close()

    # No pages of documentation: they take their scripts from elsewhere, which the content policy forbids.
    app = FastAPI(title="pinlake assistant", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.pinlake = state
    for routes in (chat, retrieval, health):
        app.include_router(routes.router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_api_route("/", _page, include_in_schema=False)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_middleware(Guard, settings=settings, keys=state.keys, metrics=state.metrics)
    return app


async def _page() -> Response:
    return FileResponse(PAGE / "index.html")


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = Refused(error.status_code, str(error.detail).lower(), "look at /openapi.json for what can be asked")
    return refused.response()


async def _not_understood(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return Refused(422, first_fault(error.errors()), "correct it and ask again").response()
