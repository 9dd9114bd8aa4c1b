"""The live release, followed: who asks always gets the one that `LIVE` names, and a change of it fails or mixes no query.

A query takes the release once and asks it alone; a new one is verified and opened beside it before anyone gets it. The old one
is closed by the garbage collector when its last query is done. A new release that cannot be opened is told and not taken.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from embedding.index.reader import Release, open_live
from embedding.index.release import ReleaseError, live_release_id
from embedding.tables.lake import Lake

log = logging.getLogger("pinlake")


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
        self._release = open_live(lake)
        self._refused: str | None = None
        self._refreshing = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pinlake-live-release", daemon=True)

    @property
    def release(self) -> Release:
        """What is live. Take it once a query: two looks may give two releases."""
        return self._release

    def refresh(self) -> bool:
        """Takes the release that is live now, if it is another one. Returns whether it was.

        Raises ReleaseError where that one cannot be opened; the one before goes on serving.
        """
        with self._refreshing:
            if live_release_id(self._lake) == self._release.manifest.release_id:
                return False
            opened = open_live(self._lake)
            self._release = opened
        log.info("release %s serves now", opened.manifest.release_id)
        return True

    def _follow(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.refresh()
                self._refused = None
            except (ReleaseError, OSError) as error:
                if str(error) != self._refused:  # said once, not every few seconds
                    log.error("%s goes on serving: %s", self._release.manifest.release_id, error)
                self._refused = str(error)

    def __enter__(self) -> LiveRelease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
