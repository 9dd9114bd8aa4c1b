"""How much of the service one client gets, and how much all of them together: token buckets, places for turns, threads."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from assistant.service.errors import Refused, busy
from assistant.service.settings import Rate

T = TypeVar("T")

CLIENTS = 10_000
"""Remembered at most. Of more, who has not asked for longest starts with a full bucket again."""


class Buckets:
    """A token bucket a client. For one thread: the event loop's."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic):
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: float = 1.0) -> None:
        """Raises Refused (429) with the time after which it would not."""
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._rate.burst), now))
        left = min(self._rate.burst, left + (now - then) * self._rate.per_s)
        enough = left >= cost
        self._buckets[client] = (left - cost if enough else left, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            wait_s = (cost - left) / self._rate.per_s
            raise Refused(429, "too many requests from this client", "wait as long as Retry-After says", wait_s)


class Places:
    """Places for turns: `most` at once, `waiting` more in line; who comes then is sent away. For the event loop's thread."""

    def __init__(self, most: int, waiting: int):
        self._places = asyncio.Semaphore(most)
        self._most_waiting = waiting
        self.waiting = self.taken = 0

    def line_up(self) -> None:
        """Raises Refused (503) where all places are taken and the line is full. To be followed by `enter` or `leave_line`."""
        if self._places.locked() and self.waiting >= self._most_waiting:
            raise busy("conversations", 5)
        self.waiting += 1

    def leave_line(self) -> None:
        self.waiting -= 1

    async def enter(self, timeout_s: float) -> None:
        """Waits for a place. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._places.acquire()
        self.taken += 1

    def leave(self) -> None:
        self.taken -= 1
        self._places.release()


class Workers:
    """Threads for work that blocks: a bounded number, with a bounded line before them."""

    def __init__(self, name: str, threads: int, queued: int, timeout_s: float):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"pinlake-{name}")
        self._name, self._most, self._timeout_s = name, threads + queued, timeout_s
        self.pending = 0

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises Refused: 503 where the line is full, 504 where it takes too long.

        Work that is past its time is told to nobody, and keeps its thread until it is done.
        """
        if self.pending >= self._most:
            raise busy(self._name, 1)
        loop = asyncio.get_running_loop()
        self.pending += 1
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Refused(504, f"{self._name} took over {self._timeout_s:g} s", "try again in a moment", 2) from None

    def _done(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
