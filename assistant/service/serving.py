"""What the service holds open: the lake, its live release, the retrieval tools, the brain and the Navigator.

Opened in a thread of its own, since an encoder and a brain take many seconds to load: meanwhile the process lives and says what
it is waiting for. Searches are served as soon as there is a release, turns once there is a brain.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack

from assistant.navigator import Navigator
from assistant.service.errors import Refused
from assistant.service.settings import Settings
from assistant.shadow import Shadow
from assistant.tools import ToolError, Tools
from assistant.turns import Brain, BrainError
from embedding.index.live import FEED_ERRORS, LiveRelease
from embedding.index.reader import Release
from embedding.index.release import ReleaseError
from embedding.tables.lake import Lake

log = logging.getLogger("pinlake.assistant")

MakeBrain = Callable[[Lake, Release], Brain]
AGAIN_S = 5.0
"""Between two attempts to open what was not there."""
LOOK_S = 2.0
"""Between two looks for another release."""


class Open:
    """Opens, follows, closes. Thread-safe."""

    def __init__(
        self, settings: Settings, make_brain: MakeBrain, on_swap: Callable[[], None], make_shadow: MakeBrain | None = None
    ):
        """make_shadow: The other brain, where `settings.shadow` asks for one."""
        self.lake = Lake(settings.home)
        self._settings, self._make_brain, self._make_shadow, self._on_swap = settings, make_brain, make_shadow, on_swap
        self._live: FollowedRelease | None = None
        self._tools: Tools | None = None
        self._navigator: Navigator | None = None
        self._brain: Brain | None = None
        self._opened = ExitStack()
        self._read: str | None = None
        self.missing: str | None = "the release is being opened"
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="pinlake-open", daemon=True).start()

    def close(self) -> None:
        """Ends the looks for another release. Does not wait for what is still loading."""
        self._stopped.set()
        if self._live is not None:
            self._live.__exit__(None, None, None)
        self._leave_brain()

    @property
    def brain(self) -> str | None:
        """The brain's name, once there is one."""
        brain = self._brain
        return None if brain is None else brain.name

    @property
    def live(self) -> LiveRelease | None:
        """None before there is a release."""
        return self._live

    @property
    def release(self) -> Release:
        """The live release. Take it once a request. Raises Refused (503) before there is one."""
        if self._live is None:
            raise self._not_yet()
        return self._live.release

    @property
    def tools(self) -> Tools:
        """Raises Refused (503) before there is a release."""
        if self._tools is None:
            raise self._not_yet()
        return self._tools

    @property
    def navigator(self) -> Navigator:
        """Raises Refused (503) before there is a brain."""
        if self._navigator is None:
            raise self._not_yet()
        return self._navigator

    def _not_yet(self) -> Refused:
        return Refused(503, f"not ready yet: {self.missing}", "try again in a few seconds", AGAIN_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._live is None or self._live.release.manifest.embedding_version != self._read:
                    self._open()
            except (ReleaseError, ToolError, BrainError, *FEED_ERRORS) as error:
                self._tell(str(error))
            except Exception as error:
                log.exception("the service is not ready")
                self._tell(f"{type(error).__name__}; the service's log says more")
            self._stopped.wait(AGAIN_S)

    def _open(self) -> None:
        if self._live is None:
            live = FollowedRelease(self.lake, self._on_swap)
            live.__enter__()
            self._live = live
        self._tools = Tools(self.lake, self._live, self._settings.limits, self._settings.images)
        self._tell("the encoder is being loaded")
        self._tools.now().text("a first search loads it", k=1)
        self._tell("the language model is being loaded")
        release = self._live.release  # a cut-over to another encoder needs another brain: see _run
        self._leave_brain()
        with ExitStack() as opened:
            brain = self._make_brain(self.lake, release)
            opened.callback(_end, brain)
            shadow = None
            if self._make_shadow is not None and self._settings.shadow is not None:
                other = self._make_shadow(self.lake, release)
                opened.callback(_end, other)
                shadow = opened.enter_context(Shadow(self.lake, self._tools, other, self._settings.shadow))
            self._opened = opened.pop_all()
        self._brain, self._navigator = brain, Navigator(self._tools, brain, watcher=shadow)
        self._read, self.missing = release.manifest.embedding_version, None
        log.info("ready: release %s, brain %s", release.manifest.release_id, brain.name)

    def _leave_brain(self) -> None:
        """Ends the brains' engines and the shadow: turns under way are told that they ended."""
        self._navigator = self._brain = None
        self._opened.close()

    def _tell(self, what: str) -> None:
        if what != self.missing:
            log.info("not ready: %s", what)
        self.missing = what


def _end(brain: Brain) -> None:
    """A brain may have an engine, or connections."""
    close = getattr(brain, "close", None)
    if close is not None:
        close()


class FollowedRelease(LiveRelease):
    """A live release that tells when another one has taken over."""

    def __init__(self, lake: Lake, on_swap: Callable[[], None]):
        super().__init__(lake, every_s=LOOK_S)
        self._on_swap = on_swap

    def refresh(self) -> bool:
        before = self.release.manifest.release_id
        changed = super().refresh()
        if self.release.manifest.release_id != before:
            self._on_swap()
        return changed
