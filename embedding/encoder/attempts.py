"""The patience with which one picture is fetched over a network: a deadline, retries with back-off, a size.

Knows no protocol. What a server's answer means is decided here once, for http and for S3 alike.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count

from embedding.contracts import Reason
from embedding.encoder.limits import ImageLimits, ImageRejected

MAX_WAIT_S = 20.0
"""Longest wait before an attempt, whatever a server asks for."""

HOST_FAILURES = 8
"""So many pictures of one server failing in a row, each after all its attempts, and the server is left alone for a while."""

HOST_PAUSE_S = 60.0

_MISSING = frozenset({404, 410})
_MAY_PASS = frozenset({408, 425, 429})


class MayPassError(Exception):
    """A failure that another attempt may not meet. `wait_s`: how long the server asked to be left alone."""

    def __init__(self, sentence: str, wait_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.wait_s = wait_s


class Servers:
    """Which servers fail at present. One that is down would else take a minute of a thread for each of its pictures.

    A circuit breaker (Nygard, Release It!, 2nd ed., chapter 5): after HOST_FAILURES pictures in a row that failed for the
    server's sake, its pictures fail at once for HOST_PAUSE_S; then the next one tries it, and a success forgets all.
    For the event loop's thread alone.
    """

    def __init__(self) -> None:
        self._failed: dict[str, int] = {}
        self._left_alone_until: dict[str, float] = {}

    def check(self, server: str, now: float, uri: str) -> None:
        """Raises ImageRejected with FETCH_FAILED where the server is being left alone."""
        if now < self._left_alone_until.get(server, now):
            said = f"{server} failed for {self._failed[server]} pictures in a row, and is left alone for a while"
            raise ImageRejected(Reason.FETCH_FAILED, f"{said}: {uri}")

    def failed(self, server: str, now: float) -> None:
        self._failed[server] = self._failed.get(server, 0) + 1
        if self._failed[server] >= HOST_FAILURES:
            self._left_alone_until[server] = now + HOST_PAUSE_S

    def answered(self, server: str) -> None:
        self._failed.pop(server, None)
        self._left_alone_until.pop(server, None)


_SERVERS = Servers()
_clock = time.monotonic


async def fetch_patiently(
    attempt: Callable[[], Awaitable[bytes]], server: str, uri: str, limits: ImageLimits, servers: Servers = _SERVERS
) -> bytes:
    """What `attempt` returns, tried up to `limits.attempts` times within `limits.total_timeout_s`, waits included.

    `server`: a name under which `servers` remembers how it answers.

    Raises ImageRejected with FETCH_FAILED where attempts or time are used up, or the server has failed for many pictures in
    a row; and whatever `attempt` raises but MayPassError.
    """
    servers.check(server, _clock(), uri)
    try:
        data = await _attempts(attempt, uri, limits)
    except _UsedUpError as error:
        servers.failed(server, _clock())
        raise ImageRejected(Reason.FETCH_FAILED, str(error)) from error.__cause__
    except ImageRejected:
        servers.answered(server)
        raise
    servers.answered(server)
    return data


class _UsedUpError(Exception):
    """Attempts or time are used up."""


async def _attempts(attempt: Callable[[], Awaitable[bytes]], uri: str, limits: ImageLimits) -> bytes:
    clock = asyncio.get_running_loop().time
    deadline = clock() + limits.total_timeout_s
    last: MayPassError | None = None
    try:
        async with asyncio.timeout_at(deadline):
            for number in count(1):
                try:
                    return await attempt()
                except MayPassError as error:
                    last = error
                wait_s = _wait_s(number, last.wait_s, limits)
                if number == limits.attempts or clock() + wait_s >= deadline:
                    raise _UsedUpError(f"{last} (attempt {number}, the last): {uri}") from last
                await asyncio.sleep(wait_s)
    except TimeoutError:
        before = f"; before that, {last}" if last else ""
        raise _UsedUpError(f"not read within {limits.total_timeout_s:g} s{before}: {uri}") from last
    raise AssertionError("the loop above has no end of its own")


def _wait_s(number: int, asked_s: float, limits: ImageLimits) -> float:
    """Twice as long after each attempt, less a random part of a half, so that many workers do not come back at once."""
    backoff_s = limits.backoff_s * 2.0 ** (number - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return float(min(max(backoff_s, asked_s), MAX_WAIT_S))


def check_status(status: int, headers: Mapping[str, str], detail: str, uri: str) -> None:
    """Returns if the status promises the whole picture. `detail`: the server's own word on it. `headers`: names in any case.

    Raises MayPassError for 408, 425, 429 and 5xx; ImageRejected with MISSING_IMAGE for 404 and 410, else with FETCH_FAILED.
    """
    if status == 200:
        return
    sentence = f"the server answered {status} {detail}".rstrip()
    if status in _MISSING:
        raise ImageRejected(Reason.MISSING_IMAGE, f"{sentence}: {uri}")
    if status in _MAY_PASS or 500 <= status <= 599:
        raise MayPassError(sentence, _retry_after_s(headers))
    raise ImageRejected(Reason.FETCH_FAILED, f"{sentence}: {uri}")


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for, which gives them or a date; 0 for none, and for one that is neither."""
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_WAIT_S)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # a TypeError for a date without a time zone
        return 0.0


async def collect(chunks: AsyncIterable[bytes], announced_bytes: int | None, uri: str, limits: ImageLimits) -> bytes:
    """All chunks as one, and no more of them than `limits.max_bytes`: what was announced may be absent, or a lie.

    Raises ImageRejected with TOO_MANY_BYTES, before a byte is read if the announced size says so.
    """
    parts: list[bytes] = []
    size_bytes = announced_bytes or 0
    if size_bytes <= limits.max_bytes:
        size_bytes = 0
        async for chunk in chunks:
            size_bytes += len(chunk)
            if size_bytes > limits.max_bytes:
                break
            parts.append(chunk)
    if size_bytes > limits.max_bytes:
        raise ImageRejected(Reason.TOO_MANY_BYTES, f"over {limits.max_bytes} bytes: {uri}")
    return b"".join(parts)
