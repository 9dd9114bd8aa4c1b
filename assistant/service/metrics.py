"""What Prometheus reads. A registry an app, so that two apps in one process share no count."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)


class Metrics:
    """Counters and histograms. `route` is a template, never a path: no client can make a new series."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        here = self.registry = CollectorRegistry()
        self.requests = Counter("pinlake_requests", "Requests by route and status", ["route", "status"], registry=here)
        self.seconds = Histogram(
            "pinlake_request_seconds", "From a request to its answer's end", ["route"], buckets=SECONDS, registry=here
        )
        self.first_token = Histogram(
            "pinlake_first_token_seconds",
            "From a turn's request to its answer's first text",
            ["mode"],
            buckets=FIRST_TOKEN_SECONDS,
            registry=here,
        )
        self.turns = Counter("pinlake_turns", "Turns by mode and how they ended", ["mode", "end"], registry=here)
        self.tokens = Counter("pinlake_tokens", "The brain's tokens by kind", ["kind"], registry=here)
        self.removed = Counter("pinlake_removed_citations", "Citations that named nothing retrieved", registry=here)
        self.swaps = Counter("pinlake_release_swaps", "Times that another release took over", registry=here)
        self._waiting = Gauge("pinlake_turns_waiting", "Turns that wait for a place", registry=here)
        self._taken = Gauge("pinlake_turns_running", "Turns under way", registry=here)
        self._pending = Gauge("pinlake_searches_pending", "Searches under way or waiting for a thread", registry=here)
        self._pins = Gauge("pinlake_release_pins", "Pins of the release, as it was built", registry=here)

    def watch(self, waiting: Callable[[], int], taken: Callable[[], int], pending: Callable[[], int]) -> None:
        """Gauges that are looked up whenever they are read."""
        for gauge, value in ((self._waiting, waiting), (self._taken, taken), (self._pending, pending)):
            gauge.set_function(value)

    def watch_release(self, rows: Callable[[], int]) -> None:
        self._pins.set_function(rows)

    def text(self) -> bytes:
        return generate_latest(self.registry)
