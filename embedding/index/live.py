"""The live release, followed: who asks gets the one that `LIVE` names, as the lake is now. A change fails or mixes no query.

A query takes the release once and asks it alone; a new one is verified and opened beside it before anyone gets it. The old one
is closed by the garbage collector when its last query is done. A new release that cannot be opened is told and not taken.

Between two releases the tables go on: pins that a night, a backfill or an export within the day added, changed or deleted since
the release was built are found, or not found any more, at the next look (embedding/index/changes.py).
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import pyarrow as pa
from deltalake.exceptions import DeltaError

from embedding.index.changes import ChangeFeed
from embedding.index.reader import Release, open_live
from embedding.index.release import ReleaseError, live_release_id
from embedding.tables.lake import Lake

log = logging.getLogger("pinlake")

FEED_ERRORS = (OSError, DeltaError, pa.ArrowException)
"""What reading the tables may raise."""


class Serving(Protocol):
    """What has a release to ask: a `LiveRelease`, or one that stays."""

    @property
    def release(self) -> Release: ...


@dataclass(frozen=True)
class OneRelease:
    """A release that stays, whatever takes its place meanwhile: for who asks several times and wants the answers of one."""

    release: Release


class LiveRelease:
    """Follows the pointer of a lake. Thread-safe.

    with LiveRelease(lake) as live:
        scores, ids = live.release.search(queries_QD)
    """

    def __init__(self, lake: Lake, every_s: float = 5.0):
        """Opens what is live; `with` looks for changes every `every_s` seconds, in a thread of its own.

        Raises ReleaseError where nothing is live, or it is not whole.
        """
        self._lake, self._every_s = lake, every_s
        self._said: str | None = None
        self._release, self._feed = self._opened()
        self._refreshing = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pinlake-live-release", daemon=True)

    @property
    def release(self) -> Release:
        """What is live. Take it once a query: two looks may give two releases."""
        return self._release

    def refresh(self) -> bool:
        """Takes the release that is live now, and what changed in the tables since it was built. Returns whether anything did.

        Raises ReleaseError where that release cannot be opened, DeltaError or OSError where the tables cannot be read; what
        was there before goes on serving.
        """
        with self._refreshing:
            before = self._release
            if live_release_id(self._lake) != before.manifest.release_id:
                self._release, self._feed = self._opened()
                log.info("release %s serves now", self._release.manifest.release_id)
                return True
            changes = self._feed.look()
            if changes is before.changes:
                return False
            self._release = before.with_changes(changes)
            said = (changes.searchable, len(changes.superseded), before.manifest.release_id)
            log.info("%d pins are searched and %d rows hidden beside release %s", *said)
            return True

    def _opened(self) -> tuple[Release, ChangeFeed]:
        """The live release and its feed, its changes looked up first: nobody sees a pin come, go and come again."""
        release = open_live(self._lake)
        feed = ChangeFeed(self._lake, release.manifest)
        try:
            return release.with_changes(feed.look()), feed
        except FEED_ERRORS as error:
            self._say_once(release, error)  # as it was built, it is better than none
            return release, feed

    def _follow(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.refresh()
                self._said = None
            except (ReleaseError, *FEED_ERRORS) as error:
                self._say_once(self._release, error)

    def _say_once(self, serving: Release, error: Exception) -> None:
        if str(error) != self._said:  # not every few seconds
            log.error("%s goes on serving: %s", serving.manifest.release_id, error)
        self._said = str(error)

    def __enter__(self) -> LiveRelease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
