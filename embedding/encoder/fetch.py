"""Reads one image's bytes from where a pin says that it is.

The address comes out of an export, so it is not trusted: only allowed schemes are read, only regular files, only up to a
size, and no address can name another endpoint or carry credentials. Nothing is decoded or kept here.

http, https and s3 are read through fsspec (web.py and s3.py beside this file), with timeouts and retries. Local files are
opened here, since no file system of fsspec's can refuse links, pipes and devices as it opens. The other stores are read through
pyarrow's clients, which have timeouts and retries of their own.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from embedding.contracts import Reason
from embedding.encoder.limits import S3_SCHEMES, SCHEMES_VARIABLE, WEB_SCHEMES, ImageLimits, ImageRejected

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
# A bucket. Nothing that pyarrow would read as a key, a secret, an option, a server or a port.
_STORE = re.compile(r"[\w.-]+", re.ASCII)
# Azure's own servers alone: any other authority would be given the credentials that the process has.
_AZURE_STORE = re.compile(r"[a-z0-9$-]+@[a-z0-9]+\.(?:dfs|blob)\.core\.windows\.net", re.ASCII)
# The cluster that Hadoop's own configuration names.
_HADOOP_STORE = "default"

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))


def fetch_image(uri: str, limits: ImageLimits) -> bytes:
    """The bytes of the file at `uri`: at least one and at most `limits.max_bytes`.

    Takes `file://` addresses (percent-encoded), absolute paths (taken literally), http and https addresses of hosts that may
    be read, and `<scheme>://<store>/<key>` (key taken literally) for the other schemes that `limits` allows.

    Raises ImageRejected with UNSUPPORTED_SCHEME, INVALID_URI, FORBIDDEN_ADDRESS (a host that is not public), MISSING_IMAGE,
    NOT_AN_IMAGE (a folder, pipe or device), EMPTY_IMAGE, TOO_MANY_BYTES or FETCH_FAILED (anything that the machine or the
    store would not do, after all attempts).
    """
    scheme, rest = _split(uri)
    if scheme not in limits.schemes:
        raise ImageRejected(
            Reason.UNSUPPORTED_SCHEME,
            f"{scheme}: images are read from {', '.join(sorted(limits.schemes))} alone ({SCHEMES_VARIABLE}): {uri}",
        )
    try:
        data = _read(scheme, uri, rest, limits)
    except OSError as error:
        raise ImageRejected(_reason_of(error), f"{error.strerror or error}: {uri}") from error
    if not data:
        raise ImageRejected(Reason.EMPTY_IMAGE, f"the file has no bytes: {uri}")
    return data


def _read(scheme: str, uri: str, rest: str, limits: ImageLimits) -> bytes:
    if scheme == "file":
        return _read_file(_local_path(uri, rest), limits)
    # Imported where they are needed: a client for the web takes a second to load.
    if scheme in WEB_SCHEMES:
        from embedding.encoder.web import read_web

        return read_web(uri, limits)
    store, key = _store_and_key(scheme, uri, rest)
    if scheme in S3_SCHEMES:
        from embedding.encoder.s3 import read_s3

        return read_s3(store, key, uri, limits)
    return _read_store(scheme, store, key, uri, limits)


def _split(uri: str) -> tuple[str, str]:
    if "\x00" in uri:
        raise ImageRejected(Reason.INVALID_URI, f"the address holds a NUL character: {uri!r}")
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise ImageRejected(Reason.INVALID_URI, f"the address is no valid Unicode: {uri!r}") from None
    if uri.startswith("/"):
        return "file", uri
    match = _SCHEME.fullmatch(uri)
    if match is None:
        raise ImageRejected(Reason.INVALID_URI, f"neither an absolute path nor an address with a scheme: {uri!r}")
    return match[1].lower(), match[2]


def _reason_of(error: OSError) -> Reason:
    if error.errno in _MISSING or isinstance(error, FileNotFoundError):
        return Reason.MISSING_IMAGE
    return Reason.INVALID_URI if error.errno == errno.ENAMETOOLONG else Reason.FETCH_FAILED


def _local_path(uri: str, rest: str) -> str:
    if uri.startswith("/"):
        return uri
    authority, slash, path = rest.removeprefix("//").partition("/") if rest.startswith("//") else ("", "/", rest[1:])
    if authority.lower() not in ("", "localhost") or not slash or not rest.startswith("/"):
        raise ImageRejected(Reason.INVALID_URI, f"not a local file, which is written file:///folder/name: {uri}")
    decoded = os.fsdecode(unquote_to_bytes(f"/{path}"))
    if "\x00" in decoded:
        raise ImageRejected(Reason.INVALID_URI, f"the address holds a NUL character: {uri!r}")
    return decoded


def _read_file(path: str, limits: ImageLimits) -> bytes:
    # Resolved first, and opened by its real name without following links: what was checked is what is read.
    real = Path(os.path.realpath(path))
    if limits.roots and not any(real.is_relative_to(os.path.realpath(root)) for root in limits.roots):
        raise ImageRejected(Reason.FETCH_FAILED, f"outside the folders that images may be read from: {path}")
    _check_regular(real.stat().st_mode, path)  # before opening: to open a device can have effects
    # A pipe put there since then would block without O_NONBLOCK.
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        _check_regular(status.st_mode, path)
        _check_size(status.st_size, path, limits)
        return _read_at_most(file, status.st_size, path, limits)


def _check_regular(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")
        raise ImageRejected(Reason.NOT_AN_IMAGE, f"{kind}, not a file: {name}")


def _check_size(size_bytes: int, name: str, limits: ImageLimits) -> None:
    if size_bytes > limits.max_bytes:
        raise ImageRejected(Reason.TOO_MANY_BYTES, f"over {limits.max_bytes} bytes: {name}")


def _read_at_most(file: IO[bytes], size_bytes: int, name: str, limits: ImageLimits) -> bytes:
    """Reads to the end, and stops one byte past the limit: the file may grow, or be longer than it said."""
    if size_bytes == 0:
        return b""
    parts: list[bytes] = []
    room = limits.max_bytes + 1
    want = min(room, size_bytes + 1)
    while want and (part := file.read(want)):
        parts.append(part)
        room -= len(part)
        want = min(room, 2**20)
    data = b"".join(parts)
    _check_size(len(data), name, limits)
    return data


def _store_and_key(scheme: str, uri: str, rest: str) -> tuple[str, str]:
    store, slash, key = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not slash or not key:
        raise ImageRejected(Reason.INVALID_URI, f"not written {scheme}://store/key: {uri}")
    if scheme.startswith("abfs"):
        if not _AZURE_STORE.fullmatch(store):
            raise ImageRejected(Reason.INVALID_URI, f"not written {scheme}://container@account.dfs.core.windows.net/key: {uri}")
    elif "@" in store:
        raise ImageRejected(
            Reason.INVALID_URI, f"an address may not carry credentials: {scheme}://{store.split('@')[-1]}/{key}"
        )
    elif scheme == "hdfs" and store != _HADOOP_STORE:
        raise ImageRejected(Reason.INVALID_URI, f"not written hdfs://{_HADOOP_STORE}/key, the cluster of core-site.xml: {uri}")
    elif not _STORE.fullmatch(store):
        raise ImageRejected(Reason.INVALID_URI, f"not the name of a store: {store!r}: {uri}")
    return store, key


def _read_store(scheme: str, store: str, key: str, uri: str, limits: ImageLimits) -> bytes:
    from pyarrow.fs import FileType

    try:
        files, folder = _file_system(scheme, store, limits.total_timeout_s)
        path = f"{folder.rstrip('/')}/{key}"
        info = files.get_file_info(path)
        if info.type == FileType.NotFound:
            raise ImageRejected(Reason.MISSING_IMAGE, f"no such file: {uri}")
        if info.type != FileType.File:
            raise ImageRejected(Reason.NOT_AN_IMAGE, f"a folder, not a file: {uri}")
        _check_size(info.size or 0, uri, limits)
        with files.open_input_stream(path) as file:
            return _read_at_most(file, info.size or 0, uri, limits)
    except (ImageRejected, OSError):
        raise
    except Exception as error:  # pyarrow raises ArrowException, ValueError and NotImplementedError beside OSError
        raise ImageRejected(Reason.FETCH_FAILED, f"{type(error).__name__}: {error}: {uri}") from error


@lru_cache(maxsize=64)
def _file_system(scheme: str, store: str, timeout_s: float) -> tuple[FileSystem, str]:
    """The client of a store and the path of its root. Kept, since making one can cost a round trip.

    timeout_s: how long the client of gs retries, which else has no end. The others cannot be told.
    """
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if scheme == "memory":
        import fsspec

        return PyFileSystem(FSSpecHandler(fsspec.filesystem("memory"))), f"/{store}"
    options = f"?retry_limit_seconds={timeout_s:g}" if scheme in ("gs", "gcs") else ""
    files, folder = FileSystem.from_uri(f"{scheme}://{store}/{options}")
    return files, folder
