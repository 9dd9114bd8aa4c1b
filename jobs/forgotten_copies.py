"""What was made of the tables and holds pins: releases, training sets with examples, graphs, the report, what was killed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import pyarrow.fs as pafs

from assistant.training import conversations
from embedding.contracts import TABLES
from embedding.encoder import training_set as ts
from embedding.index.release import list_releases, pointer_lock, read_pointer
from embedding.index.retention import ABANDONED_AFTER, delete_release
from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.taste import graph, store, user_models

_MADE = re.compile(r"\d{4}-\d{2}-\d{2}-[0-9a-f]{12}")
"""The name of a training set or a graph; beside training sets there are trained encoders."""


@dataclass(frozen=True)
class Copy:
    """Something that was made of the tables. versions: By table. live: Whether readers have it, so that it may not go."""

    name: str
    built_at: datetime
    versions: Mapping[str, int]
    live: bool
    delete: Callable[[], None]


def find_copies(lake: Lake) -> list[Copy]:
    """All of them. Raises where a manifest cannot be read."""
    found, pointer, live_graph = [], read_pointer(lake), store.live_graph_id(lake)
    for release in list_releases(lake):
        versions = {"pins": release.pins_version, "pin_embeddings": release.pin_embeddings_version}
        live = pointer is not None and release.release_id == pointer.release_id
        delete = partial(_delete_release, lake, release.release_id)
        found.append(Copy(f"release {release.release_id}", _time(release.built_at), versions, live, delete))
    for set_id in storage.folders(f"{lake.home}/training"):
        if ts.is_finished(lake, set_id):
            made = ts.read_manifest(lake, set_id)
            versions = {name: version for name, version in made.table_versions.items() if name in TABLES}
            delete = partial(_delete_set, lake, set_id)
            found.append(Copy(f"training set {set_id}", _time(made.built_at), versions, False, delete))
    for manifest in store.finished_graphs(lake):
        delete = partial(_delete_graph, lake, manifest.graph_id)
        live = manifest.graph_id == live_graph
        found.append(Copy(f"graph {manifest.graph_id}", _time(manifest.built_at), manifest.versions, live, delete))
    return [*found, *_report(lake)]


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _report(lake: Lake) -> list[Copy]:
    """The report that `pinlake report` writes by default shows pins with their pictures; which tables it saw, nobody knows."""
    uri = f"{lake.home}/report.html"
    filesystem, path = storage.filesystem_of(uri)
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File or info.mtime is None:
        return []
    return [Copy("report.html", info.mtime, dict.fromkeys(TABLES, 0), False, partial(storage.delete_quietly, uri))]


def _delete_release(lake: Lake, release_id: str) -> None:
    with pointer_lock(lake):  # no rollback in between
        pointer = read_pointer(lake)
        if pointer is None or pointer.release_id != release_id:
            delete_release(lake, release_id)


def _delete_set(lake: Lake, set_id: str) -> None:
    conversations.delete_examples(lake, set_id)
    storage.delete_quietly(f"{ts.set_uri(lake, set_id)}/{ts.MANIFEST}")  # first: a half-deleted folder is no set
    ts.clear_set(lake, set_id)


def _delete_graph(lake: Lake, graph_id: str) -> None:
    store.delete_graphs(lake, {other.graph_id for other in store.finished_graphs(lake)} - {graph_id})


def delete_unfinished(lake: Lake) -> list[str]:
    """Deletes folders of training sets, examples and graphs whose builds were killed days ago, and what trainings of users'
    models had staged; publish_index.py does releases'."""
    since, deleted = datetime.now(UTC) - ABANDONED_AFTER, []
    bases = {manifest.as_base.graph_id for manifest in store.finished_graphs(lake)}  # files that others stand on, no graphs
    examples = (conversations.all_uri(lake), conversations.MANIFEST)
    for root, marker in ((f"{lake.home}/training", ts.MANIFEST), examples, (f"{lake.home}/graphs", graph.MANIFEST)):
        for folder in storage.unfinished_folders(root, marker, since):
            name = folder.rpartition("/")[2]
            if _MADE.fullmatch(name) and name not in bases:
                storage.delete_folder(folder)
                deleted.append(folder.removeprefix(f"{lake.home}/"))
    for version in storage.folders(f"{lake.home}/user_models"):
        for folder in storage.unfinished_folders(user_models.models_uri(lake, version), user_models.MANIFEST, since):
            storage.delete_folder(folder)
            deleted.append(folder.removeprefix(f"{lake.home}/"))
    return deleted
