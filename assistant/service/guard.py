"""What stands before every route: the host's name, the origin, the token, the rate; and what goes with every answer.

Plain ASGI, so that an answer streams through it and a client that goes away is noticed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.service.errors import Refused, fault
from assistant.service.metrics import Metrics
from assistant.service.rates import Buckets
from assistant.service.settings import Settings, is_loopback

log = logging.getLogger("pinlake.assistant")

OPEN = ("/health", "/page/")
"""What needs no token, beside the page itself: probes, and the page's files, which hold no data."""
PICTURES = "/pins/"
HEADERS = {
    # No inline script or style, nothing from elsewhere but pictures: of pins whose pictures are on the web.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: https: http:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Keys:
    """The token, and what it opens. Compared in constant time."""

    def __init__(self, token: str | None):
        self._token = None if token is None else token.encode()

    def opens(self, said: str) -> bool:
        """Whether an `Authorization` header carries the token; any does where there is none."""
        if self._token is None:
            return True
        scheme, _, token = said.partition(" ")
        # Digests, since the time of comparing texts of different lengths tells the length.
        same = hmac.compare_digest(hashlib.sha256(token.strip().encode()).digest(), hashlib.sha256(self._token).digest())
        return scheme.lower() == "bearer" and same

    def picture_key(self, pin_id: int) -> str | None:
        """What opens a pin's picture, in its address, since an <img> sends no header. None where there is no token."""
        if self._token is None:
            return None
        return hmac.new(self._token, f"picture {pin_id}".encode(), hashlib.sha256).hexdigest()[:32]

    def opens_picture(self, pin_id: str, key: str) -> bool:
        wanted = self.picture_key(int(pin_id)) if pin_id.lstrip("-").isdecimal() else None
        return wanted is not None and hmac.compare_digest(wanted.encode(), key.encode())


class Guard:
    """Middleware. Refuses, counts, and sets the headers of every answer, a refusal among them."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics):
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._requests, self._chats = Buckets(settings.requests), Buckets(settings.chats)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                # The page's files are asked for again each time, and sent where they have changed; data is kept nowhere.
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/page/") else "no-store")
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, sending)
        except Refused as refused:
            refused.unread = scope["method"] not in ("GET", "HEAD")
            await refused.response()(scope, receive, sending)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if status:
                raise
            await fault().response()(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", None) or ("/page" if scope["path"].startswith("/page/") else "none")
            self._metrics.requests.labels(route, str(status or 499)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - begun)
        return None

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        client = (scope.get("client") or ("unknown", 0))[0]
        self._check_names(headers)
        self._requests.take(client, 0.1 if path.endswith("/picture") or path.startswith("/page/") else 1.0)
        if path != "/" and not path.startswith(OPEN) and not self._keys.opens(headers.get("authorization", "")):
            self._check_picture(scope)
        if path == "/chat":
            self._chats.take(client)

    def _check_names(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = urlsplit(f"//{host}").hostname or ""
        if self._settings.token is None and not is_loopback(name):
            # Without a token whoever reaches the socket is served, and a page elsewhere can make its own name lead here.
            raise Refused(421, "not a name of this service", "ask it as 127.0.0.1 or localhost")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, "a page of another origin may not ask this service", "ask it from its own page, or no page")

    def _check_picture(self, scope: Scope) -> None:
        _, _, rest = scope["path"].partition(PICTURES)
        pin_id, _, what = rest.partition("/")
        keys = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key", [""])
        if not scope["path"].startswith(PICTURES) or what != "picture" or not self._keys.opens_picture(pin_id, keys[0]):
            raise Refused(401, "this service wants a token", "send it as `Authorization: Bearer TOKEN`")
