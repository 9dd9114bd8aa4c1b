"""A release on disk: its manifest, its check, and the pointer that makes it live.

    releases/pins/<release_id>/manifest.json         what it is and the SHA-256 of each of its files; written last
    releases/pins/<release_id>/index-00000.faiss     a shard of the index; beside it the ids of its rows, ids-00000.npy
    releases/pins/<release_id>/pins-00000.parquet    the pins' titles, pictures, boards and tags
    releases/pins/<release_id>/check.json            the verdict of the independent check
    releases/pins/LIVE                               names the release that readers open; replaced atomically

LIVE names the live release's embedding version too: index, encoder and all that carries a version move with it, and with
nothing else (docs/decisions/0005-one-pointer-moves-everything.md). Who moves it holds a lock where the lake is on a file
system; an object store replaces it only if it still is what was looked at (a conditional put).

A folder without a manifest is no release. Nothing in a release is changed after its manifest is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedding.contracts import LIVE_POINTER
from embedding.index.build import Shard
from embedding.index.factory import SearchSetting
from embedding.index.lists import SelectionPoint, SelectionSetting
from embedding.index.tuning import Choice, SearchPoint, Trial, Wanted
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake

_MOVES = 5

MANIFEST, CHECK = "manifest.json", "check.json"
LIVE = LIVE_POINTER.rpartition("/")[2]
FORMAT = 2
"""Of releases that this pinlake builds and opens. Format 1 is still listed, followed and retired, but not opened."""


class ReleaseError(Exception):
    """A release that is missing, damaged, unchecked or of another version; the message says what to do."""


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release: its size and SHA-256."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a release is. Equal inputs give an equal `release_id`, so an unchanged night builds nothing.

    choice: The recipe and what was tried before it was taken; null in format 1.
    setting, recall_at_10: What reached the recall goal on the finished index.
    sweep: The settings worth having, as the build measured them.
    selections: What searches among many of the pins need; none where there are too few pins to need it.
    """

    release_id: str
    ds: str
    embedding_version: str
    encoder: str
    rows: int
    dim: int
    factory: str
    setting: SearchSetting
    recall_at_10: float
    days: list[str]
    pins_version: int
    pin_embeddings_version: int
    built_by: str
    built_at: str
    files: dict[str, ReleaseFile]
    shards: list[Shard] = field(default_factory=list)
    sweep: list[SearchPoint] = field(default_factory=list)
    selections: list[SelectionPoint] = field(default_factory=list)
    choice: Choice | None = None
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Of all files but the manifest and the check."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def index_bytes_a_vector(self) -> float:
        """Of index and ids, what does not grow with the rows included."""
        names = {name for shard in self.shards for name in (shard.index_file, shard.ids_file)}
        return sum(self.files[name].size_bytes for name in names) / max(self.rows, 1)

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        try:
            values: dict[str, Any] = json.loads(data)
            if values["format"] not in (1, FORMAT):
                raise ReleaseError(f"{where}: format {values['format']}, this reader knows {FORMAT}; update pinlake")
            values["files"] = {name: ReleaseFile(**file) for name, file in values["files"].items()}
            if values["format"] == 1:
                values["setting"] = {"nprobe": values.pop("nprobe")}
                values["sweep"] = []
            values["setting"] = SearchSetting(**values["setting"])
            values["sweep"] = [_point(point) for point in values["sweep"]]
            values["selections"] = [_selection_point(point) for point in values.get("selections", [])]
            values["shards"] = [Shard(**shard) for shard in values.get("shards", [])]
            if choice := values.get("choice"):
                trials = [Trial(**trial | {"point": _point(trial["point"])}) for trial in choice["trials"]]
                values["choice"] = Choice(**choice | {"trials": trials, "wanted": Wanted(**choice["wanted"])})
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseError(f"{where}: not a release manifest ({error})") from error


def _point(values: dict[str, Any]) -> SearchPoint:
    return SearchPoint(**values | {"setting": SearchSetting(**values["setting"])})


def _selection_point(values: dict[str, Any]) -> SelectionPoint:
    return SelectionPoint(**values | {"setting": SelectionSetting(**values["setting"])})


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
    ids = storage.folders(lake.releases_uri)
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
    """The verdict of the independent check, bound to one manifest by its hash.

    recall_at_10: Over all queries: by pins and, where pins have titles, by words.
    recall_low, recall_high: Its 95% interval over the queries.
    text_recall_at_10: Of the queries by words alone.
    p50_ms, p99_ms: Of single queries on one thread, as a reader asks them.
    overlap_at_10: The share of neighbours in common with the release that was live; null without one of this version.
    """

    manifest_sha256: str
    failures: list[str]
    recall_at_10: float
    queries: int
    checked_at: str
    recall_low: float | None = None
    recall_high: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    overlap_at_10: float | None = None
    text_recall_at_10: float | None = None

    @property
    def passed(self) -> bool:
        return not self.failures


def write_check(lake: Lake, release_id: str, check: Check) -> None:
    storage.write_atomic(f"{release_uri(lake, release_id)}/{CHECK}", json.dumps(asdict(check), indent=1).encode())


def read_check(lake: Lake, release_id: str) -> Check | None:
    uri = f"{release_uri(lake, release_id)}/{CHECK}"
    return Check(**json.loads(storage.read_bytes(uri))) if storage.exists(uri) else None


def checked_release(lake: Lake, release_id: str) -> tuple[Manifest, Check]:
    """A release that may be live, every byte verified. Raises ReleaseError if it was not checked, failed or has changed."""
    manifest, check = read_manifest(lake, release_id), read_check(lake, release_id)
    if check is None or check.manifest_sha256 != manifest_sha256(lake, release_id):
        raise ReleaseError(f"release {release_id} has not been checked as it lies there: run check_index.py first")
    if not check.passed:
        raise ReleaseError(f"release {release_id} failed its check: {'; '.join(check.failures)}")
    if manifest.format != FORMAT:
        raise ReleaseError(f"release {release_id} is of format {manifest.format}, which no reader opens any more")
    if faults := verify_files(lake, manifest):
        raise ReleaseError(f"release {release_id} has changed since its check: {'; '.join(faults)}")
    return manifest, check


# -- the pointer ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LivePointer:
    """What `LIVE` says.

    embedding_version: The live release's; empty in a pointer older than this field.
    previous: The release that was live before.
    cut_over_from, cut_over_release: The version, and its last live release, before the last cut-over; null after a rollback.
    cut_over_at: When the live version last changed.
    rolled_back_at: Set while the live release is one that a person went back to.
    withdrawn: Releases that were rolled back from: no night makes them live again.
    """

    release_id: str
    manifest_sha256: str = ""
    embedding_version: str = ""
    previous: str | None = None
    published_by: str = ""
    published_at: str = ""
    cut_over_from: str | None = None
    cut_over_release: str | None = None
    cut_over_at: str | None = None
    rolled_back_at: str | None = None
    withdrawn: list[str] = field(default_factory=list)


def read_pointer(lake: Lake) -> LivePointer | None:
    """The pointer, or None before the first release. Reads one small file."""
    return look_at_pointer(lake)[0]


def look_at_pointer(lake: Lake) -> tuple[LivePointer | None, str | None]:
    """The pointer, and a tag of it for `move_pointer`."""
    uri = f"{lake.home}/{LIVE_POINTER}"
    data, tag = storage.read_tagged(uri)
    if data is None:
        return None, None
    known = {f.name for f in fields(LivePointer)}
    try:
        return LivePointer(**{name: value for name, value in json.loads(data).items() if name in known}), tag
    except (ValueError, AttributeError, TypeError) as error:
        raise ReleaseError(f"{uri} is not a pointer to a release ({error})") from error


def move_pointer(lake: Lake, pointer: LivePointer, tag: str | None) -> None:
    """Replaces the pointer, if it still is the one that `look_at_pointer` gave with this tag. Call it under `pointer_lock`.

    Raises ChangedMeanwhileError: another one moved it, and nothing was changed.
    """
    storage.replace_unchanged(f"{lake.home}/{LIVE_POINTER}", (json.dumps(asdict(pointer), indent=1) + "\n").encode(), tag)


@contextmanager
def pointer_lock(lake: Lake) -> Iterator[None]:
    """Keeps other processes of this machine from moving the pointer meanwhile. An object store needs no lock for that."""
    if not storage.is_local(lake.home):
        yield
        return
    folder = Path(lake.releases_uri)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".LIVE.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def live_release_id(lake: Lake) -> str | None:
    """The release that readers open, or None before the first."""
    pointer = read_pointer(lake)
    return pointer.release_id if pointer else None


def live_version(lake: Lake) -> str | None:
    """The embedding version of the live release, or None before the first."""
    pointer = read_pointer(lake)
    if pointer is None:
        return None
    return pointer.embedding_version or read_manifest(lake, pointer.release_id).embedding_version


def publish(lake: Lake, release_id: str, run_id: str, *, cut_over: bool = False, expected_live: str | None = None) -> str:
    """Makes a checked release the live one, by one atomic replacement. Returns what happened, for the log.

    Publishing the live release again does nothing.

    Args:
        cut_over: Lets the release be of another embedding version than the live one, or one that was rolled back from.
            `embedding.index.cut_over` is what decides that it may.
        expected_live: Refuse if another release than this is live.

    Raises:
        ReleaseError: It was not checked, failed its check, is of another version without `cut_over`, was rolled back from,
            or the live one was built from later table versions.
    """
    manifest, check = checked_release(lake, release_id)
    for _ in range(_MOVES):
        try:
            return _publish(lake, manifest, check, run_id, cut_over, expected_live)
        except storage.ChangedMeanwhileError:
            continue  # whether this one may still follow is to be decided anew
    raise ReleaseError(f"release {release_id} was not published: the pointer was moved by others {_MOVES} times meanwhile")


def _publish(lake: Lake, manifest: Manifest, check: Check, run_id: str, cut_over: bool, expected_live: str | None) -> str:
    release_id = manifest.release_id
    with pointer_lock(lake):
        (live, tag), now = look_at_pointer(lake), datetime.now(UTC).isoformat(timespec="seconds")
        if live and live.release_id == release_id:
            return f"{release_id} is live already"
        if live and expected_live and live.release_id != expected_live:
            raise ReleaseError(f"{live.release_id} is live now, not {expected_live}: compare {release_id} with it first")
        pointer = LivePointer(release_id, check.manifest_sha256, manifest.embedding_version)
        if live:
            before = read_manifest(lake, live.release_id)
            _refuse_to_follow(live, before, manifest, cut_over)
            kept = (live.cut_over_from, live.cut_over_release, live.cut_over_at)
            if before.embedding_version != manifest.embedding_version:
                kept = (before.embedding_version, live.release_id, now)
            withdrawn = [i for i in live.withdrawn if i != release_id]
            pointer = replace(pointer, previous=live.release_id, withdrawn=withdrawn)
            pointer = replace(pointer, cut_over_from=kept[0], cut_over_release=kept[1], cut_over_at=kept[2])
        move_pointer(lake, replace(pointer, published_by=run_id, published_at=now), tag)
    return f"{release_id} is live" + (f", before it {live.release_id}" if live else "")


def _refuse_to_follow(live: LivePointer, before: Manifest, manifest: Manifest, cut_over: bool) -> None:
    """Raises ReleaseError where `manifest` may not take the live release's place."""
    new = manifest.release_id
    if before.embedding_version != manifest.embedding_version and not cut_over:
        raise ReleaseError(
            f"release {new} holds {manifest.embedding_version} vectors, but {before.embedding_version} is live: only a "
            "cut-over (publish_index.py --cut-over) or `pinlake rollback` changes the live version"
        )
    if new in live.withdrawn and not cut_over:
        raise ReleaseError(f"release {new} was rolled back from; `pinlake rollback --to {new}` makes it live again")
    if (before.pins_version, before.pin_embeddings_version) > (manifest.pins_version, manifest.pin_embeddings_version):
        raise ReleaseError(f"the live release {live.release_id} was built from later table versions than {new}")


# -- what the steps of one run tell each other ------------------------------------------------------------------------------


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
