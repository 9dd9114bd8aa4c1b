"""A release on disk: its manifest, its check, and the pointer that makes it live.

    releases/pins/<release_id>/manifest.json      what it is and the SHA-256 of each of its files; written last
    releases/pins/<release_id>/pins.faiss, ...    the index and the pins' titles and pictures
    releases/pins/<release_id>/check.json         the verdict of the independent check
    releases/pins/LIVE                            names the release that readers open; replaced atomically

A folder without a manifest is no release. Nothing in a release is changed after its manifest is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake

MANIFEST, CHECK, LIVE, INDEX_FILE = "manifest.json", "check.json", "LIVE", "pins.faiss"
FORMAT = 1


class ReleaseError(Exception):
    """A release that is missing, damaged, unchecked or of another version; the message says what to do."""


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release: its size and SHA-256."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SearchPoint:
    """What one setting of the search parameter gave: recall@10 against exact search, milliseconds a query, queries a second."""

    nprobe: int
    recall_at_10: float
    p50_ms: float
    p99_ms: float
    qps: float


@dataclass(frozen=True)
class Manifest:
    """What a release is. Equal inputs give an equal `release_id`, so an unchanged night builds nothing."""

    release_id: str
    ds: str
    embedding_version: str
    encoder: str
    rows: int
    dim: int
    factory: str
    nprobe: int
    recall_at_10: float
    days: list[str]
    pins_version: int
    pin_embeddings_version: int
    built_by: str
    built_at: str
    files: dict[str, ReleaseFile]
    sweep: list[SearchPoint] = field(default_factory=list)
    format: int = FORMAT

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        try:
            values: dict[str, Any] = json.loads(data)
            if values["format"] != FORMAT:
                raise ReleaseError(f"{where}: format {values['format']}, this reader knows {FORMAT}; update pinlake")
            values["files"] = {name: ReleaseFile(**file) for name, file in values["files"].items()}
            values["sweep"] = [SearchPoint(**point) for point in values["sweep"]]
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseError(f"{where}: not a release manifest ({error})") from error


def release_uri(lake: Lake, release_id: str) -> str:
    """Where a release lies. Refuses an id that is no plain folder name."""
    if not release_id or any(c in release_id for c in "/\\") or release_id.startswith("."):
        raise ReleaseError(f"not a release id: {release_id!r}")
    return f"{lake.releases_uri}/{release_id}"


def make_release_id(ds: str, identity: Mapping[str, object]) -> str:
    """`<last day>-<12 hex digits>` over everything that decides the release's content."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return f"{ds}-{digest[:12]}"


def read_manifest(lake: Lake, release_id: str) -> Manifest:
    uri = f"{release_uri(lake, release_id)}/{MANIFEST}"
    try:
        return Manifest.from_json(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        raise ReleaseError(f"no release {release_id}: {uri} does not exist") from None


def manifest_sha256(lake: Lake, release_id: str) -> str:
    return hashlib.sha256(storage.read_bytes(f"{release_uri(lake, release_id)}/{MANIFEST}")).hexdigest()


def list_releases(lake: Lake, faults: list[str] | None = None) -> list[Manifest]:
    """All whole releases, oldest first by the time they were built.

    With `faults`, an unreadable manifest becomes a sentence there; without it raises ReleaseError.
    """
    filesystem, path = storage.filesystem_of(lake.releases_uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    ids = [i.base_name for i in infos if i.type == pafs.FileType.Directory and not i.base_name.startswith(".")]
    whole = [i for i in ids if storage.exists(f"{release_uri(lake, i)}/{MANIFEST}")]
    manifests = []
    for release_id in whole:
        try:
            manifests.append(read_manifest(lake, release_id))
        except ReleaseError as error:
            if faults is None:
                raise
            faults.append(str(error))
    return sorted(manifests, key=lambda manifest: manifest.built_at)


def verify_files(lake: Lake, manifest: Manifest) -> list[str]:
    """Sentences for each file that is missing or differs from the manifest; empty where all is well."""
    root, faults = release_uri(lake, manifest.release_id), []
    for name, expected in manifest.files.items():
        if not storage.exists(f"{root}/{name}"):
            faults.append(f"{name} is missing")
        elif (found := file_sha256(f"{root}/{name}")) != expected.sha256:
            faults.append(f"{name} is damaged: SHA-256 {found[:12]}…, the manifest says {expected.sha256[:12]}…")
    return faults


@dataclass(frozen=True)
class Check:
    """The verdict of the independent check, bound to one manifest by its hash."""

    manifest_sha256: str
    failures: list[str]
    recall_at_10: float
    queries: int
    checked_at: str

    @property
    def passed(self) -> bool:
        return not self.failures


def write_check(lake: Lake, release_id: str, check: Check) -> None:
    storage.write_atomic(f"{release_uri(lake, release_id)}/{CHECK}", json.dumps(asdict(check), indent=1).encode())


def read_check(lake: Lake, release_id: str) -> Check | None:
    uri = f"{release_uri(lake, release_id)}/{CHECK}"
    return Check(**json.loads(storage.read_bytes(uri))) if storage.exists(uri) else None


def live_release_id(lake: Lake) -> str | None:
    """The release that readers open, or None before the first."""
    uri = f"{lake.releases_uri}/{LIVE}"
    if not storage.exists(uri):
        return None
    try:
        return str(json.loads(storage.read_bytes(uri))["release_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{uri} is not a pointer to a release ({error})") from error


def publish(lake: Lake, release_id: str, run_id: str) -> str:
    """Makes a checked release the live one, by one atomic replacement. Returns what happened, for the log.

    Publishing the live release again does nothing.

    Raises:
        ReleaseError: It was not checked, failed its check, or the live one was built from later table versions.
    """
    manifest, check = read_manifest(lake, release_id), read_check(lake, release_id)
    if check is None or check.manifest_sha256 != manifest_sha256(lake, release_id):
        raise ReleaseError(f"release {release_id} has not been checked as it lies there: run check_index.py first")
    if not check.passed:
        raise ReleaseError(f"release {release_id} failed its check: {'; '.join(check.failures)}")
    if faults := verify_files(lake, manifest):
        raise ReleaseError(f"release {release_id} has changed since its check: {'; '.join(faults)}")
    previous = live_release_id(lake)
    if previous == release_id:
        return f"{release_id} is live already"
    if previous is not None:
        live = read_manifest(lake, previous)
        if (live.pins_version, live.pin_embeddings_version) > (manifest.pins_version, manifest.pin_embeddings_version):
            raise ReleaseError(f"the live release {previous} was built from later table versions than {release_id}")
    pointer = {
        "release_id": release_id,
        "manifest_sha256": check.manifest_sha256,
        "previous": previous,
        "published_by": run_id,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write_atomic(f"{lake.releases_uri}/{LIVE}", (json.dumps(pointer, indent=1) + "\n").encode())
    return f"{release_id} is live" + (f", before it {previous}" if previous else "")


def candidate_uri(lake: Lake, run_id: str) -> str:
    """Where the build step of a run tells its check and publish steps which release they are to look at."""
    return f"{lake.run_uri('releases', run_id)}/candidate.json"


def write_candidate(lake: Lake, run_id: str, release_id: str) -> None:
    storage.write_atomic(candidate_uri(lake, run_id), json.dumps({"release_id": release_id}).encode())


def read_candidate(lake: Lake, run_id: str) -> str:
    uri = candidate_uri(lake, run_id)
    if not storage.exists(uri):
        raise ReleaseError(f"run {run_id} has built no release: run build_index.py with the same --run-id first")
    return str(json.loads(storage.read_bytes(uri))["release_id"])
