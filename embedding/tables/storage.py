"""Files of the lake at any address: local paths, file://, s3://, gs:// or what fsspec knows.

Small files only (pointers, manifests, statistics) and the opening of large ones; tables are read and written through
deltalake and pyarrow.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_CONDITIONAL_SCHEMES = {"s3", "s3a", "gs", "az", "abfs", "abfss"}


def normalise_uri(address: str) -> str:
    """An absolute local path for local addresses, the URI without a trailing slash for any other."""
    if "://" not in address:
        return str(Path(address).expanduser().resolve())
    parts = urlsplit(address)
    if parts.scheme == "file":
        return str(Path(unquote(parts.path)).resolve())
    return address.rstrip("/")


def is_local(uri: str) -> bool:
    return "://" not in uri


@lru_cache(maxsize=64)
def _remote_filesystem(scheme: str, netloc: str, settings: int) -> pafs.FileSystem:  # noqa: ARG001 - part of the key
    try:
        filesystem, _ = pafs.FileSystem.from_uri(f"{scheme}://{netloc}/")
        return filesystem
    except (ValueError, OSError):
        import fsspec

        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme)))


def _store_settings() -> int:
    """A number for the settings a filesystem is made with: other keys or another endpoint are another filesystem.

    A hash, because arguments stand in tracebacks, and these are secrets.
    """
    prefixes = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_")
    return hash(frozenset((name, value) for name, value in os.environ.items() if name.startswith(prefixes)))


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """The Arrow filesystem that serves `uri`, and the path within it."""
    uri = normalise_uri(uri)
    if is_local(uri):
        return pafs.LocalFileSystem(), uri
    parts = urlsplit(uri)
    return _remote_filesystem(parts.scheme, parts.netloc, _store_settings()), parts.netloc + parts.path


def exists(uri: str) -> bool:
    filesystem, path = filesystem_of(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    filesystem, path = filesystem_of(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.readall())


def write_atomic(uri: str, data: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part.

    Locally a temporary file is renamed over the old one after its bytes have reached the disk; an object store's put is
    atomic by itself.
    """
    filesystem, path = filesystem_of(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


class ChangedMeanwhileError(Exception):
    """Someone else replaced the file after it was read: nothing was written."""


def read_tagged(uri: str) -> tuple[bytes | None, str | None]:
    """A small file and a tag of what was read, for `replace_unchanged`; (None, None) where there is none."""
    if (store := _object_store(uri)) is not None:
        import obstore

        try:
            got = obstore.get(store[0], store[1])
            return bytes(got.bytes()), got.meta["e_tag"]
        except FileNotFoundError:
            return None, None
    if not exists(uri):
        return None, None
    data = read_bytes(uri)
    return data, hashlib.sha256(data).hexdigest()


def replace_unchanged(uri: str, data: bytes, tag: str | None) -> None:
    """`write_atomic`, if the file still is what `read_tagged` gave with this tag (None: if there still is none).

    In an object store the store itself compares and replaces in one step (a conditional put: S3, GCS, Azure). Elsewhere the
    caller holds a lock, because look and replacement are two steps.

    Raises ChangedMeanwhileError.
    """
    if (store := _object_store(uri)) is not None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            obstore.put(store[0], store[1], data, mode="create" if tag is None else {"e_tag": tag})
        except (AlreadyExistsError, PreconditionError) as error:
            raise ChangedMeanwhileError(f"{uri} was replaced meanwhile") from error
        return
    if read_tagged(uri)[1] != tag:
        raise ChangedMeanwhileError(f"{uri} was replaced meanwhile")
    write_atomic(uri, data)


def _object_store(uri: str) -> tuple[Any, str] | None:
    """The store of a URI that has conditional puts, and the path in it; None for file systems."""
    uri = normalise_uri(uri)
    if is_local(uri) or urlsplit(uri).scheme not in _CONDITIONAL_SCHEMES:
        return None
    from obstore.store import from_url

    parts = urlsplit(uri)
    # A store in the own network, named by AWS_ENDPOINT_URL, may speak plain HTTP; none on the Internet does.
    options: ClientConfig = {"allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")}
    store: Any = from_url(f"{parts.scheme}://{parts.netloc}", client_options=options)
    return store, parts.path.lstrip("/")


def list_files(uri: str, suffix: str = "") -> Iterator[tuple[str, int]]:
    """(URI, size in bytes) of each file below `uri` whose name ends in `suffix`, in order; nothing where there is no folder.

    Names that start with `_` or `.` are markers and unfinished files, and are left out, as Spark does.
    """
    filesystem, path = filesystem_of(uri)
    prefix = "" if is_local(normalise_uri(uri)) else f"{urlsplit(uri).scheme}://"
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    for info in sorted(infos, key=lambda i: i.path):
        if info.type == pafs.FileType.File and info.base_name.endswith(suffix) and info.base_name[0] not in "_.":
            yield prefix + info.path, info.size


def delete_quietly(uri: str) -> None:
    """Deletes a file that may be gone already: for cleaning up after an attempt that failed."""
    filesystem, path = filesystem_of(uri)
    try:
        filesystem.delete_file(path)
    except OSError:
        return


def folders(uri: str) -> list[str]:
    """Names of the folders right below `uri`, in order, without unfinished ones (`.name`); empty where there is no `uri`."""
    filesystem, path = filesystem_of(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory and not i.base_name.startswith("."))


def unfinished_folders(uri: str, marker: str, since: datetime) -> list[str]:
    """The folders right below `uri` without a file `marker`, and with nothing written `since`: whose writer was killed."""
    filesystem, path = filesystem_of(uri)
    newest: dict[str, datetime] = {}
    whole = set()
    for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
        folder, _, rest = info.path.removeprefix(path).strip("/").partition("/")
        if info.mtime is not None and (rest or info.type == pafs.FileType.Directory):
            newest[folder] = max(info.mtime, newest.get(folder, info.mtime))
        if rest == marker:
            whole.add(folder)
    return sorted(f"{uri}/{folder}" for folder, at in newest.items() if folder not in whole and at < since)


def copy_folder(source_uri: str, target_uri: str) -> None:
    """Copies the files of a folder into another, which is made if it is not there; either may be anywhere."""
    source, source_path = filesystem_of(source_uri)
    target, target_path = filesystem_of(target_uri)
    target.create_dir(target_path, recursive=True)
    pafs.copy_files(source_path, target_path, source_filesystem=source, destination_filesystem=target)


def delete_folder(uri: str) -> None:
    """Deletes a folder with all that is in it; nothing where there is none."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)
