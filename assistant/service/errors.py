"""How the service says no: `{"error": what was wrong, "what_to_do": for who asked}`, never a traceback."""

from __future__ import annotations

import math

from fastapi.responses import JSONResponse


class Refused(Exception):  # noqa: N818 - an answer to a request, no error of ours
    """A request that is not served. `retry_after_s`: when it may be, where waiting helps.

    unread: Its body was not read to the end: the connection is closed, since what comes of it would be read for nothing.
    """

    unread = False

    def __init__(self, status: int, error: str, what_to_do: str, retry_after_s: float | None = None):
        super().__init__(error)
        self.status, self.error, self.what_to_do, self.retry_after_s = status, error, what_to_do, retry_after_s

    def response(self) -> JSONResponse:
        headers = dict[str, str]()
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.unread:
            headers["Connection"] = "close"
        return JSONResponse({"error": self.error, "what_to_do": self.what_to_do}, self.status, headers)


def busy(what: str, retry_after_s: float) -> Refused:
    return Refused(503, f"too many {what} at once", "try again in a moment", retry_after_s)


def too_large(what: str, most: int) -> Refused:
    return Refused(413, f"{what} has more than {most} bytes", "send less: a smaller picture, or fewer messages")


def fault() -> Refused:
    """A fault of ours: its traceback is in the log, and nowhere else."""
    return Refused(500, "something went wrong here", "try again; if it stays, the service's log has the reason")
