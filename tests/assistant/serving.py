"""A running service and its client, for the tests: real uvicorn in a thread of this process."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from assistant.service.app import create_app
from assistant.service.serving import MakeBrain
from assistant.service.settings import Settings
from embedding.index.release import Check, manifest_sha256, read_manifest, release_uri, write_check
from embedding.tables import storage
from embedding.tables.lake import Lake

Event = tuple[str, dict[str, Any]]


@contextmanager
def running(settings: Settings, brain: MakeBrain, shadow: MakeBrain | None = None) -> Iterator[httpx.Client]:
    """A client of an app that is ready."""
    config = uvicorn.Config(create_app(settings, brain, shadow), "127.0.0.1", 0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        address = "http://{}:{}".format(*server.servers[0].sockets[0].getsockname()[:2])
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            until(lambda: client.get("/health/ready").status_code == 200)
            yield client
    finally:
        server.should_exit = True
        thread.join()


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def asking(text: str, **more: Any) -> dict[str, Any]:
    """A turn's request."""
    return {"messages": [{"role": "user", "text": text}], **more}


@contextmanager
def turn(client: httpx.Client, request: dict[str, Any], picture: bytes | None = None) -> Iterator[Iterator[Event]]:
    """A turn's events, as they come."""
    sent: dict[str, Any] = {"json": request}
    if picture is not None:
        sent = {"data": {"request": json.dumps(request)}, "files": {"picture": ("picture.png", picture)}}
    with client.stream("POST", "/chat", **sent) as response:
        if response.status_code != 200:
            response.read()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        yield _events(response)


def whole_turn(client: httpx.Client, request: dict[str, Any], picture: bytes | None = None) -> list[Event]:
    with turn(client, request, picture) as events:
        return list(events)


def _events(response: httpx.Response) -> Iterator[Event]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def metric(client: httpx.Client, name: str) -> float:
    """The sum over a metric's labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def copy_release(lake: Lake, release_id: str, name: str) -> None:
    """The same pins as another release, which can go live."""
    source, target = Path(release_uri(lake, release_id)), Path(release_uri(lake, name))
    shutil.copytree(source, target)
    manifest = replace(read_manifest(lake, release_id), release_id=name)
    storage.write_atomic(str(target / "manifest.json"), manifest.to_json())
    write_check(lake, name, Check(manifest_sha256(lake, name), [], 1.0, 10, "2026-11-21T00:00:00"))
