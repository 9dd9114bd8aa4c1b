"""What the service may use, and how much of it anybody gets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import ip_address

from assistant.shadow import ShadowConfig
from assistant.turns import Limits
from embedding.encoder.limits import ImageLimits

TOKEN_VARIABLE = "PINLAKE_ASSISTANT_TOKEN"  # noqa: S105 - the name of a variable
LEAST_TOKEN_CHARS = 16


class ServiceError(Exception):
    """The service cannot start as it was asked to; the message says why and what to do."""


@dataclass(frozen=True)
class Rate:
    """A token bucket a client: `burst` requests at once, `per_s` a second in the long run."""

    per_s: float
    burst: int

    def __str__(self) -> str:
        return f"{self.per_s:g}"


@dataclass(frozen=True)
class Settings:
    """
    home: The lake's folder or URI.
    token: What each request must carry as `Authorization: Bearer`; None: none, and then only this machine is answered.
    shadow: How much of the traffic the other brain answers besides, unseen; None: nothing.
    people: Whether `/people` lists some users, for a demo. Off by default: who is known is nobody's business.
    body_bytes: Of a request, the picture and the messages together. body_s: until it has arrived.
    turns, waiting: Conversations answered at once, and those that wait for a place; more are sent away with 503.
    turn_s: From a turn's place to its end. wait_s: for a place.
    threads, queued, work_s: Of searches: at once, waiting besides, and the time each may take.
    requests, chats: Rates a client. Pictures of pins count as a tenth of a request.
    picture_side: The longer side of a pin's thumbnail, pixels. picture_cache_bytes: kept of them in memory.
    """

    home: str
    token: str | None = None
    host: str = "127.0.0.1"
    port: int = 8100
    brain: str = "core"
    shadow: ShadowConfig | None = None
    people: bool = False
    limits: Limits = field(default_factory=Limits)
    images: ImageLimits = field(default_factory=ImageLimits.from_environment)
    upload_pixels: int = 24_000_000
    body_bytes: int = 9 * 2**20
    body_s: float = 20.0
    turns: int = 4
    waiting: int = 16
    turn_s: float = 120.0
    wait_s: float = 30.0
    keep_alive_s: float = 5.0
    threads: int = max(2, os.cpu_count() or 2)
    queued: int = 64
    work_s: float = 15.0
    requests: Rate = Rate(20.0, 120)
    chats: Rate = Rate(0.5, 10)
    picture_side: int = 400
    picture_cache_bytes: int = 48 * 2**20

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < LEAST_TOKEN_CHARS:
            raise ServiceError(f"{TOKEN_VARIABLE} has less than {LEAST_TOKEN_CHARS} characters: take a longer one")
        if self.token is None and not is_loopback(self.host):
            raise ServiceError(
                f"without a token the service answers this machine alone, and {self.host} is open to others: "
                f"set {TOKEN_VARIABLE}, or leave --host at 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
