"""All that an app's routes share, made once an app: two apps in one process share nothing."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import Request

from assistant.service.guard import Keys
from assistant.service.metrics import Metrics
from assistant.service.people import sample_people
from assistant.service.pictures import Thumbnails
from assistant.service.rates import Places, Workers
from assistant.service.serving import MakeBrain, Open
from assistant.service.settings import Settings


class State:
    """`searching` are the threads of searches, `drawing` those of thumbnails: a page full of pictures delays no search."""

    def __init__(self, settings: Settings, make_brain: MakeBrain, make_shadow: MakeBrain | None = None):
        self.settings = settings
        self.keys, self.metrics = Keys(settings.token), Metrics()
        self.places = Places(settings.turns, settings.waiting)
        self.searching = Workers("searches", settings.threads, settings.queued, settings.work_s)
        self.drawing = Workers("pictures", settings.threads, 4 * settings.queued, settings.work_s)
        self.thumbnails = Thumbnails(settings.images, settings.picture_side, settings.picture_cache_bytes)
        self.open = Open(settings, make_brain, self.metrics.swaps.inc, make_shadow)
        self.metrics.watch(lambda: self.places.waiting, lambda: self.places.taken, lambda: self.searching.pending)
        self._people: tuple[str, list[dict[str, Any]]] | None = None
        self._people_lock = threading.Lock()

    @classmethod
    def of(cls, request: Request) -> State:
        state = request.app.state.pinlake
        assert isinstance(state, cls)
        return state

    def some_people(self) -> list[dict[str, Any]]:
        """Looked up once a release."""
        manifest = self.open.release.manifest
        with self._people_lock:
            if self._people is None or self._people[0] != manifest.release_id:
                self._people = manifest.release_id, sample_people(self.open.lake, manifest.embedding_version)
            return self._people[1]

    def close(self) -> None:
        self.open.close()
        self.searching.close()
        self.drawing.close()
