"""Reads one picture over http or https.

fsspec's file system for the web holds the client, which is aiohttp's, on fsspec's one event loop a process, in a thread of
its own: threads wait for it, and a forked process makes its own. The requests are made here, since fsspec's own reading
knows no size, no redirect's target and no reason.

Where a socket connects is checked as it is made, so after the name was resolved and for each redirect: what a name led to
a moment ago, or leads to in the eyes of another resolver, does not count. A proxy would hide that address, so none is used,
whatever the environment says. No cookie, no credential and no .netrc is read, kept or sent.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import aiohttp
from fsspec.asyn import get_loop, sync
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from embedding.contracts import Reason
from embedding.encoder.attempts import MayPassError, check_status, collect, fetch_patiently
from embedding.encoder.limits import PRIVATE_HOSTS_VARIABLE, ImageLimits, ImageRejected
from embedding.encoder.public_address import ForbiddenAddressError, PrivateHosts

if TYPE_CHECKING:
    from aiohappyeyeballs import AddrInfoType

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Sent as they are, since a signature may be over the very spelling. Anything else is percent-encoded first.
_AS_WRITTEN = re.compile(r"[!#-;=?-\[\]_a-z~]*")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)


def read_web(uri: str, limits: ImageLimits) -> bytes:
    """The body that an http or https address leads to, over at most MAX_REDIRECTS redirects; never from https to http.

    Raises ImageRejected with INVALID_URI, FORBIDDEN_ADDRESS, MISSING_IMAGE, TOO_MANY_BYTES or FETCH_FAILED.
    """
    url = _address(uri, uri)
    data: bytes = sync(get_loop(), fetch_patiently, partial(_follow, url, uri, limits), url.raw_authority, uri, limits)
    return data


def _address(text: str, uri: str, base: URL | None = None) -> URL:
    """The address that `text` is, seen from `base` where it is relative; `uri` is the picture's, for the sentence."""
    try:
        if _CONTROL.search(text):  # yarl would drop some of them in silence
            raise ValueError("it holds a control character")
        url = URL(text, encoded=bool(_AS_WRITTEN.fullmatch(text)))
        url = url if base is None else base.join(url)
        host, port = url.raw_host or "", url.port  # what is wrong with these is said only here
    except ValueError as error:
        raise ImageRejected(Reason.INVALID_URI, f"not an address: {error}: {uri!r}") from error
    if "@" in url.raw_authority:
        raise ImageRejected(Reason.INVALID_URI, f"an address may not carry credentials: {url.scheme}://{host}{url.raw_path}")
    if not _HOST.fullmatch(host) or port == 0:
        raise ImageRejected(Reason.INVALID_URI, f"not written {url.scheme}://host/path: {uri}")
    return url


async def _follow(url: URL, uri: str, limits: ImageLimits) -> bytes:
    """One attempt, from the first address to the picture."""
    try:
        for _ in range(MAX_REDIRECTS + 1):
            session = await _file_system(os.getpid(), url.raw_host or "", limits).set_session()
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    check_status(response.status, response.headers, response.reason or "", uri)
                    return await collect(response.content.iter_any(), response.content_length, uri, limits)
                url = _next(url, response.headers["Location"], uri)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _failure(error, url, uri) from error
    raise ImageRejected(Reason.FETCH_FAILED, f"over {MAX_REDIRECTS} redirects: {uri}")


def _next(url: URL, location: str, uri: str) -> URL:
    target = _address(location, uri, url)
    if target.scheme not in ("http", "https"):
        raise ImageRejected(Reason.FETCH_FAILED, f"redirected to {target.scheme}, which is not followed: {uri}")
    if (url.scheme, target.scheme) == ("https", "http"):
        raise ImageRejected(Reason.FETCH_FAILED, f"redirected from https to http, which is not followed: {uri}")
    return target


def _failure(error: Exception, url: URL, uri: str) -> Exception:
    """What a failed request means for the picture: a rejection, or another attempt."""
    cause = getattr(error, "os_error", None)  # of the connection that failed
    if isinstance(cause, ForbiddenAddressError):
        sentence = f"{url.raw_host} leads to {cause.address}, not a public address ({PRIVATE_HOSTS_VARIABLE})"
        return ImageRejected(Reason.FORBIDDEN_ADDRESS, f"{sentence}: {uri}")
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientConnectionError):
        return ImageRejected(Reason.INVALID_URI, f"{error}: {uri}")  # a host's label too long, 127.1
    sentence = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError) or getattr(cause, "errno", None) in _NO_SUCH_HOST:
        return ImageRejected(Reason.FETCH_FAILED, f"{sentence}: {uri}")
    return MayPassError(sentence)


def _file_system(process: int, host: str, limits: ImageLimits) -> HTTPFileSystem:
    private = _private(limits.private_hosts)
    guard = None if private.has_name(host) else private
    return _made(process, guard, limits.connect_timeout_s, limits.read_timeout_s)


@cache
def _private(entries: tuple[str, ...]) -> PrivateHosts:
    return PrivateHosts.parse(entries)


@cache
def _made(
    process: int,  # noqa: ARG001 - part of the key
    guard: PrivateHosts | None,
    connect_timeout_s: float,
    read_timeout_s: float,
) -> HTTPFileSystem:
    """The client of a process; one without a guard for the hosts that an operator has named, which so share no connection.

    Kept for good: a forked process must not close what it has of its parent's, or it would reach into the parent's event loop.
    """

    async def open_session(**_: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # As many connections as there are threads that wait.
            connector=_Connector(limit=0, socket_factory=None if guard is None else _guarded(guard)),
            timeout=aiohttp.ClientTimeout(connect=connect_timeout_s, sock_read=read_timeout_s),
            # A picture is compressed already; a server that sends it compressed all the same is undone as it is counted.
            headers={"Accept-Encoding": "identity", "User-Agent": "pinlake"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    return HTTPFileSystem(get_client=open_session, skip_instance_cache=True)


class _Connector(aiohttp.TCPConnector):
    """Uses no connection again on which bytes came that nobody had asked for.

    aiohttp 3.14 would take them for the answer to the next request, one picture for another (its issue 13656).
    """

    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None and _was_told_more(connection):
            connection.close()
        return connection


def _was_told_more(connection: Any) -> bool:
    """Whether bytes, or the end, have come since the last answer: read by the event loop, or still in the socket."""
    if connection.protocol.should_close:
        return True
    poll = select.poll()
    poll.register(connection.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _guarded(guard: PrivateHosts) -> Callable[[AddrInfoType], socket.socket]:
    def make(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if not guard.may_connect(str(address[0])):
            raise ForbiddenAddressError(str(address[0]))
        return socket.socket(family, kind, protocol)

    return make
