"""The lake's own encoders: each version that makes vectors here is kept with its weights, so that it stays loadable.

    encoders/<embedding_version>/config.json    the encoder, an ordinary config (embedding.encoder.config); written last
    encoders/<embedding_version>/...            its weights and tokenizer, but for files of installed packages (`package:`)
    encoders/<embedding_version>/ADDED          when and from which config
    encoders/<embedding_version>/FRESH          nights embed each day under it too; says since when and why
    encoders/<embedding_version>/RETIRED        its vectors and releases are deleted, or about to be
    encoders/<embedding_version>/ABANDONED      a migration to it was given up: only by its name does another begin

A folder without config.json is no encoder. Config and weights are never changed once they are there, and are checked
against the fingerprint in the folder's name each time they are opened. Which version is *live* stands nowhere here: that is
what the release pointer says (docs/decisions/0005-one-pointer-moves-everything.md).

Does not protect files of packages: an upgrade of one that holds an encoder's weights makes that encoder unusable, with an
error that says so. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from embedding.contracts import FRESH_MARKER, RETIRED_MARKER, EmbeddingVersion
from embedding.encoder.config import DEFAULT_CONFIG, TOKENIZER_FILES, ConfigError, EncoderConfig, embedding_version, load_config
from embedding.index.release import Manifest, live_version, read_manifest, read_pointer
from embedding.tables import storage
from embedding.tables.lake import Lake

LIVE, CANDIDATE, RETIRED, ABANDONED, IDLE = "live", "candidate", "retired", "abandoned", "idle"
"""States of a version, with `previous`. The first two also stand for a version: the live release's, the migration's."""

_CONFIG, _ADDED, _ABANDONED = "config.json", "ADDED", "ABANDONED"
_PACKAGE = "package:"
_VERSION = r"[a-z0-9_]+(-[a-z0-9_]+)*-[0-9a-f]{12}"


class EncoderStoreError(ConfigError):
    """An encoder that is not in the lake, is damaged or retired. The message says which, and what to do."""


class Role(StrEnum):
    """Why a version that is not live is kept fresh."""

    CANDIDATE = "candidate"
    PREVIOUS = "previous"


@dataclass(frozen=True)
class Fresh:
    """Why and since when (ISO 8601) a version is kept fresh, and which run began it."""

    role: Role
    since: str
    run_id: str


@dataclass(frozen=True)
class LakeEncoder:
    """An encoder opened from the lake, and the version that names its vectors."""

    version: str
    config: EncoderConfig


def encoder_uri(lake: Lake, version: str) -> str:
    """The folder of a version. Refuses what is no embedding version, so that no other folder can be named."""
    if not re.fullmatch(_VERSION, version):
        raise EncoderStoreError(f"not an embedding version: {version!r}")
    return f"{lake.encoders_uri}/{version}"


def stored_versions(lake: Lake) -> list[str]:
    """The versions that the lake knows, in the order in which they were added."""
    names = [name for name in storage.folders(lake.encoders_uri) if re.fullmatch(_VERSION, name) and is_stored(lake, name)]
    return sorted(names, key=lambda name: added_at(lake, name))


def is_stored(lake: Lake, version: str) -> bool:
    return storage.exists(f"{encoder_uri(lake, version)}/{_CONFIG}")


def added_at(lake: Lake, version: str) -> str:
    """When the version came to the lake (ISO 8601)."""
    return str(json.loads(storage.read_bytes(f"{encoder_uri(lake, version)}/{_ADDED}"))["added_at"])


def add_encoder(lake: Lake, name_or_path: str | Path) -> EmbeddingVersion:
    """Copies an encoder into the lake, under its version; one that is there is left as it is.

    Raises:
        EncoderStoreError: The copy would make other vectors than the original.
        ConfigError: As `load_config`.
    """
    config = load_config(name_or_path)
    version = embedding_version(config)
    if is_stored(lake, str(version)):
        return version
    with _workspace(lake) as folder:
        _write_copy(config.source, folder)
        copied = embedding_version(load_config(folder / _CONFIG))
        if copied != version:
            raise EncoderStoreError(f"{config.source}: a copy of this encoder makes {copied}, the original {version}")
        _install(lake, folder, str(version))
    return version


def open_encoder(lake: Lake, version: str) -> LakeEncoder:
    """An encoder of the lake, every byte checked. Reads its files once (0.3 s for 100 MB).

    Raises EncoderStoreError if the lake does not have it, or if its files make another version's vectors.
    """
    if not is_stored(lake, version):
        raise _not_stored(lake, version)
    folder = _local_folder(lake, version)
    config = load_config(folder / _CONFIG)
    found = str(embedding_version(config))
    if found != version:
        raise EncoderStoreError(
            f"encoder {version} is damaged: the files in {folder}, or the packages that it names, now make {found}. "
            "Put back the files, or the packages' versions, that it was added with."
        )
    return LakeEncoder(version, config)


@lru_cache(maxsize=4)
def worker_encoder(lake: Lake, version: str) -> EncoderConfig:
    """As `open_encoder`, once a process: for executors, where a task follows the other."""
    return open_encoder(lake, version).config


def resolve_encoder(lake: Lake, spec: str, default: str = DEFAULT_CONFIG) -> LakeEncoder:
    """The encoder that `spec` means; one that the lake does not have yet is added, so that it outlives its package.

    Args:
        spec: `live` (the live release's version), `candidate` (that of the migration under way), an embedding version of
            the lake, or a config's name or path.
        default: What `live` means where no release is live.

    Raises EncoderStoreError or ConfigError where there is no such encoder, or its vectors were deleted.
    """
    if spec == LIVE:
        return _live_encoder(lake, default)
    if spec == CANDIDATE:
        spec = candidate_version(lake) or _no_candidate()
    version = stored_version(lake, spec)
    if is_retired(lake, version):
        raise EncoderStoreError(f"encoder {version} is retired: its vectors are deleted. begin_migration.py brings it back")
    return open_encoder(lake, version)


def stored_version(lake: Lake, spec: str) -> str:
    """The version that a config's name or path, or an embedding version, means; the encoder is in the lake after it.

    Raises EncoderStoreError for a version that the lake does not have, ConfigError as `load_config`.
    """
    if not re.fullmatch(_VERSION, spec):
        return str(add_encoder(lake, spec))
    if not is_stored(lake, spec):
        raise _not_stored(lake, spec)
    return spec


def _not_stored(lake: Lake, version: str) -> EncoderStoreError:
    known = ", ".join(stored_versions(lake)) or "none"
    return EncoderStoreError(f"no encoder {version} in {lake.encoders_uri}; there: {known}")


def encoder_of_release(lake: Lake, manifest: Manifest) -> LakeEncoder:
    """The encoder that made a release's vectors, also for a release older than the store. Adds nothing.

    Raises EncoderStoreError where it can no longer be loaded.
    """
    version = manifest.embedding_version
    if is_stored(lake, version):
        return open_encoder(lake, version)
    config = load_config(manifest.encoder)
    if (made := str(embedding_version(config))) != version:
        raise EncoderStoreError(
            f"release {manifest.release_id} holds {version} vectors; the query was encoded by {made}, which is what "
            f"{manifest.encoder} is here, and {version} is not in {lake.encoders_uri}: their distances mean nothing"
        )
    return LakeEncoder(version, config)


def _live_encoder(lake: Lake, default: str) -> LakeEncoder:
    pointer = read_pointer(lake)
    if pointer is None:
        return resolve_encoder(lake, default)
    found = encoder_of_release(lake, read_manifest(lake, pointer.release_id))
    if not is_stored(lake, found.version):
        add_encoder(lake, found.config.source)
    return found


def _no_candidate() -> str:
    raise EncoderStoreError("no migration is under way: begin_migration.py starts one")


# -- which versions are kept fresh, which are gone --------------------------------------------------------------------------


def fresh_versions(lake: Lake) -> dict[str, Fresh]:
    """The versions that nights embed each day under beside the live one, by name."""
    live, fresh = live_version(lake), {}
    for version in stored_versions(lake):
        marker = read_fresh(lake, version)
        if marker and version != live and not is_retired(lake, version):
            fresh[version] = marker
    return fresh


def candidate_version(lake: Lake) -> str | None:
    """The version that a migration is under way to."""
    return next((version for version, fresh in fresh_versions(lake).items() if fresh.role == Role.CANDIDATE), None)


def newest_idle_version(lake: Lake) -> str | None:
    """The version that came last of those that neither serve, nor are kept fresh, nor are retired or abandoned."""
    return next((v for v in reversed(stored_versions(lake)) if version_state(lake, v)[0] == IDLE), None)


def read_fresh(lake: Lake, version: str) -> Fresh | None:
    """The version's marker, whether or not it is live."""
    uri = f"{encoder_uri(lake, version)}/{FRESH_MARKER}"
    if not storage.exists(uri):
        return None
    try:
        values: dict[str, Any] = json.loads(storage.read_bytes(uri))
        return Fresh(Role(values["role"]), str(values["since"]), str(values["run_id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderStoreError(f"{uri} is damaged ({error}): delete it, or begin the migration again") from error


def mark_fresh(lake: Lake, version: str, role: Role, run_id: str) -> None:
    """From the next night on, each day is embedded under the version too."""
    marker = Fresh(role, _now(), run_id)
    storage.write_atomic(f"{encoder_uri(lake, version)}/{FRESH_MARKER}", json.dumps(asdict(marker), indent=1).encode())


def unmark_fresh(lake: Lake, version: str) -> None:
    storage.delete_quietly(f"{encoder_uri(lake, version)}/{FRESH_MARKER}")


def is_retired(lake: Lake, version: str) -> bool:
    return storage.exists(f"{encoder_uri(lake, version)}/{RETIRED_MARKER}")


def mark_retired(lake: Lake, version: str, run_id: str) -> None:
    _mark(lake, version, RETIRED_MARKER, run_id)


def mark_abandoned(lake: Lake, version: str, run_id: str) -> None:
    """Ends a migration: nights embed under the version no more."""
    _mark(lake, version, _ABANDONED, run_id)
    unmark_fresh(lake, version)


def unmark_gone(lake: Lake, version: str) -> None:
    """Takes back that the version is retired or abandoned."""
    for marker in (RETIRED_MARKER, _ABANDONED):
        storage.delete_quietly(f"{encoder_uri(lake, version)}/{marker}")


def _mark(lake: Lake, version: str, marker: str, run_id: str) -> None:
    content = {"since": _now(), "run_id": run_id}
    storage.write_atomic(f"{encoder_uri(lake, version)}/{marker}", json.dumps(content, indent=1).encode())


def version_state(lake: Lake, version: str) -> tuple[str, str]:
    """(state, since when) of a version: live, candidate, previous, retired, abandoned, or `idle` where it is none of these."""
    pointer = read_pointer(lake)
    if pointer and version == live_version(lake):
        return LIVE, pointer.cut_over_at or added_at(lake, version)
    fresh = read_fresh(lake, version)
    if fresh and not is_retired(lake, version):
        return fresh.role.value, fresh.since
    for marker, state in ((RETIRED_MARKER, RETIRED), (_ABANDONED, ABANDONED)):
        uri = f"{encoder_uri(lake, version)}/{marker}"
        if storage.exists(uri):
            return state, str(json.loads(storage.read_bytes(uri))["since"])
    return IDLE, added_at(lake, version)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# -- files ------------------------------------------------------------------------------------------------------------------


@contextmanager
def _workspace(lake: Lake) -> Iterator[Path]:
    """A folder to write an encoder in: beside its place where the lake is local, so that a rename moves it there."""
    if storage.is_local(lake.home):
        folder = Path(lake.encoders_uri) / f".adding-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory() as folder_name:
            yield Path(folder_name)


def _write_copy(source: Path, folder: Path) -> None:
    """The config with its files beside it and named relative to it; `package:` names stay."""
    raw = json.loads(source.read_text(encoding="utf-8"))
    for number, entry in enumerate(raw["weights"]):
        if not entry["file"].startswith(_PACKAGE):
            original = source.parent / entry["file"]
            entry["file"] = f"weights-{number}-{original.name}"
            shutil.copyfile(original, folder / entry["file"])
    text = raw["model"].get("text_cfg", {}) if isinstance(raw["model"], dict) else {}
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if text.get(key) and not text[key].startswith(_PACKAGE):
            original = source.parent / text[key]
            text[key] = key
            (folder / key).mkdir()
            for name in ("config.json", *TOKENIZER_FILES):
                if (original / name).is_file():
                    shutil.copyfile(original / name, folder / key / name)
    added = {"added_at": datetime.now(UTC).isoformat(timespec="milliseconds"), "from": str(source)}
    (folder / _ADDED).write_text(json.dumps(added, indent=1) + "\n", encoding="utf-8")
    (folder / _CONFIG).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def _install(lake: Lake, folder: Path, version: str) -> None:
    """Moves a finished folder to its place. Another process that was faster has put the same files there."""
    target = encoder_uri(lake, version)
    if storage.is_local(lake.home):
        try:
            folder.rename(target)
        except OSError:
            if is_stored(lake, version):
                return
            # Something without a config lies there, which is no encoder: complete it.
            config = (folder / _CONFIG).read_bytes()
            (folder / _CONFIG).unlink()
            shutil.copytree(folder, target, dirs_exist_ok=True)
            storage.write_atomic(f"{target}/{_CONFIG}", config)
        return
    config = (folder / _CONFIG).read_bytes()
    (folder / _CONFIG).unlink()
    storage.copy_folder(str(folder), target)
    storage.write_atomic(f"{target}/{_CONFIG}", config)


def _local_folder(lake: Lake, version: str) -> Path:
    """The encoder's folder itself where the lake is local, else a copy of it in this machine's cache ($PINLAKE_CACHE)."""
    if storage.is_local(lake.home):
        return Path(encoder_uri(lake, version))
    root = Path(os.environ.get("PINLAKE_CACHE") or Path.home() / ".cache" / "pinlake") / "encoders"
    folder, arriving = root / version, root / f".{version}-{uuid.uuid4().hex}"
    if not (folder / _CONFIG).is_file():
        try:
            storage.copy_folder(encoder_uri(lake, version), str(arriving))
            arriving.rename(folder)
        except OSError:
            if not (folder / _CONFIG).is_file():
                raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
    return folder
