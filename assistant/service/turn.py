"""A turn under way: a thread asks the Navigator, the event loop sends what comes of it.

The Navigator's generator blocks, so it runs in a thread; a turn holds its place until that thread has ended, also where nobody
listens any more. What it says is kept until it is sent: an answer is bounded, and a slow reader holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing
from typing import cast

from assistant.events import Event, Failed
from assistant.service.rates import Places

log = logging.getLogger("pinlake.assistant")

FAULT = Failed("something went wrong here: try again", retryable=True)
SLOW = Failed("this takes too long and was ended: try again, or ask for less", retryable=True)
FULL = Failed("too many conversations at once: try again in a moment", retryable=True)


class RunningTurn:
    """Events of one turn. `stop` ends it early: at the next thing that the brain says."""

    def __init__(
        self, places: Places, make: Callable[[], Iterator[Event]], *, wait_s: float, turn_s: float, keep_alive_s: float
    ):
        """Lines up for a place. Raises Refused (503) where the line is full."""
        self._places, self._make = places, make
        self._wait_s, self._turn_s, self._keep_alive_s = wait_s, turn_s, keep_alive_s
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stopped = threading.Event()
        self._entering: asyncio.Task[None] | None = None
        self._ends_at = math.inf
        places.line_up()

    async def events(self) -> AsyncIterator[Event | None]:
        """As they come; None wherever nothing has come for `keep_alive_s`. Ends after `done` or `error`."""
        loop = asyncio.get_running_loop()
        self._entering = asyncio.create_task(self._enter(loop))
        self._entering.add_done_callback(lambda _: self._places.leave_line())
        yield None  # the answer's head goes out, so that the client knows that it is waited for
        while True:
            left_s = self._ends_at - loop.time()
            if left_s <= 0:
                self.stop()
                yield SLOW
                return
            try:
                async with asyncio.timeout(min(left_s, self._keep_alive_s)):
                    event = await self._queue.get()
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            yield event

    def stop(self) -> None:
        """Nothing more is wanted: the client has gone, or the time is up."""
        self._stopped.set()
        if self._entering is None:
            self._places.leave_line()
        else:
            self._entering.cancel()  # changes nothing once there is a place

    async def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._places.enter(self._wait_s)
        except TimeoutError:
            self._queue.put_nowait(FULL)
            self._queue.put_nowait(None)
            return
        self._ends_at = loop.time() + self._turn_s
        threading.Thread(target=self._run, args=(loop,), name="pinlake-turn", daemon=True).start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        def tell(event: Event | None) -> None:
            loop.call_soon_threadsafe(self._queue.put_nowait, event)

        try:
            # Closed also where it is left early: that is what ends the brain's work.
            with closing(cast(Generator[Event, None, None], self._make())) as events:
                for event in events:
                    if self._stopped.is_set():
                        break
                    tell(event)
        except Exception:
            log.exception("a turn failed")
            tell(FAULT)
        finally:
            try:
                tell(None)
                loop.call_soon_threadsafe(self._places.leave)
            except RuntimeError:
                pass  # the service has ended meanwhile
