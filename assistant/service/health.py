"""Whether the process lives, whether it can serve, and how fresh what it serves is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from assistant.service.state import State

router = APIRouter()


@router.get("/health/live")
async def live() -> Response:
    """The process answers."""
    return JSONResponse({"live": True})


@router.get("/health")
async def health(request: Request) -> Response:
    """What is served, and how fresh. `changes`: what the tables have had since the release was built."""
    return JSONResponse(_told(State.of(request)))


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """The same: 200 once a release is open and the brain is loaded, 503 before."""
    told = _told(State.of(request))
    return JSONResponse(told, 200 if told["ready"] else 503)


def _told(state: State) -> dict[str, Any]:
    said: dict[str, Any] = {
        "live": True,
        "ready": state.open.missing is None,
        "waiting_for": state.open.missing,
        "brain": state.open.brain,
        "token": state.settings.token is not None,
        "people": state.settings.people,
    }
    if state.open.live is not None:
        release = state.open.live.release
        manifest, changes = release.manifest, release.changes
        said |= {
            "release_id": manifest.release_id,
            "embedding_version": manifest.embedding_version,
            "pins": manifest.rows,
            "ds": manifest.ds,
            "built_at": manifest.built_at,
            "changes": changes and {"searchable": changes.searchable, "hidden": len(changes.superseded)},
        }
    return said


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    state = State.of(request)
    return Response(state.metrics.text(), headers={"Content-Type": state.metrics.content_type})
