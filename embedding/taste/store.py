"""Where the graphs of a lake lie, which one is live, and how one is opened.

graphs/<graph_id>/manifest.json                written last; names every file with its SHA-256, those of its base among them
graphs/<graph_id>/<attempt>/pins-00000-*.npy   embedding/taste/graph.py has the format
graphs/<graph_id>/base.json                    in place of a manifest: of a graph that is read by those alone who stand on it
graphs/LIVE                                    names the graph that is read, replaced at once
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from embedding.contracts import RELATED_PINS, TABLES
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import DataFile, Lake, data_files, partition_is
from embedding.tables.maintenance import readable_versions
from embedding.taste.graph import FORMAT, MANIFEST, Graph, GraphError, GraphManifest

_BASE = "base.json"


def graph_uri(lake: Lake, graph_id: str) -> str:
    return f"{lake.home}/graphs/{graph_id}"


def make_graph_id(days: Sequence[str], versions: Mapping[str, int], max_degree: int) -> str:
    """The last day and a fingerprint of everything that decides the graph: the same state gives the same id."""
    said = json.dumps([list(days), dict(versions), max_degree, FORMAT], sort_keys=True)
    return f"{days[-1]}-{sha256(said.encode()).hexdigest()[:12]}"


def is_finished(lake: Lake, graph_id: str) -> bool:
    return storage.exists(f"{graph_uri(lake, graph_id)}/{MANIFEST}")


def finished_graphs(lake: Lake) -> list[GraphManifest]:
    """The manifests of all graphs, oldest first by when they were built."""
    ids = [graph_id for graph_id in storage.folders(f"{lake.home}/graphs") if is_finished(lake, graph_id)]
    return sorted((read_manifest(lake, graph_id) for graph_id in ids), key=lambda manifest: manifest.built_at)


def delete_graphs(lake: Lake, keep: Collection[str]) -> list[str]:
    """Deletes all finished graphs but those to keep, the manifest first. Returns their ids.

    The files of a graph that a kept one stands on stay, but not its manifest: no version of a table is kept for its sake.
    """
    finished = finished_graphs(lake)
    gone = [manifest for manifest in finished if manifest.graph_id not in keep]
    bases = {manifest.as_base.graph_id for manifest in finished if manifest.graph_id in keep}
    for manifest in gone:
        uri = graph_uri(lake, manifest.graph_id)
        if manifest.graph_id in bases:
            storage.write_atomic(f"{uri}/{_BASE}", manifest.to_json())
        storage.delete_quietly(f"{uri}/{MANIFEST}")
        if manifest.graph_id not in bases:
            storage.delete_folder(uri)
    for graph_id in storage.folders(f"{lake.home}/graphs"):
        uri = graph_uri(lake, graph_id)
        if storage.exists(f"{uri}/{_BASE}") and graph_id not in bases and not is_finished(lake, graph_id):
            storage.delete_folder(uri)
    return [manifest.graph_id for manifest in gone]


def write_manifest(lake: Lake, manifest: GraphManifest) -> None:
    """Makes the graph whole: its files must be there."""
    storage.write_atomic(f"{graph_uri(lake, manifest.graph_id)}/{MANIFEST}", manifest.to_json())


def read_manifest(lake: Lake, graph_id: str) -> GraphManifest:
    """Raises GraphError where there is no such graph, or it is not finished."""
    if not is_finished(lake, graph_id):
        raise GraphError(f"there is no finished graph {graph_id} under {lake.home}")
    return GraphManifest.from_json(storage.read_bytes(f"{graph_uri(lake, graph_id)}/{MANIFEST}"))


def write_graph_of_run(lake: Lake, run_id: str, graph_id: str) -> None:
    """Tells the later steps of a run which graph it made or found."""
    storage.write_atomic(_of_run_uri(lake, run_id), json.dumps({"graph_id": graph_id}).encode())


def graph_of_run(lake: Lake, run_id: str) -> str:
    """Raises GraphError where the run has made none."""
    uri = _of_run_uri(lake, run_id)
    if not storage.exists(uri):
        raise GraphError(f"run {run_id} has made no graph: run build_graph.py with the same --run-id first")
    return str(json.loads(storage.read_bytes(uri))["graph_id"])


def _of_run_uri(lake: Lake, run_id: str) -> str:
    return f"{lake.run_uri('taste', run_id)}/graph.json"


def publish_graph(lake: Lake, graph_id: str) -> None:
    """Makes a finished graph the live one, at once."""
    read_manifest(lake, graph_id)
    storage.write_atomic(f"{lake.home}/graphs/LIVE", json.dumps({"graph_id": graph_id}).encode())


def live_graph_id(lake: Lake) -> str | None:
    """None before the first."""
    uri = f"{lake.home}/graphs/LIVE"
    return str(json.loads(storage.read_bytes(uri))["graph_id"]) if storage.exists(uri) else None


def newer_live_graph(lake: Lake, manifest: GraphManifest) -> str | None:
    """The id of the live graph, where it is newer than this one."""
    live = live_graph_id(lake)
    return live if live and read_manifest(lake, live).is_newer(manifest) else None


def graph_before(lake: Lake, ds: str) -> GraphManifest | None:
    """The graph that the rows of `related_pins` of the last day before `ds` come from, if it is there, and what it was made of.

    Reads the files' footers alone: the rows of a day are of one graph.
    """
    if not lake.exists(RELATED_PINS):
        return None
    table = lake.open(RELATED_PINS)
    earlier = {str(file.partition["ds"]) for file in data_files(table)}
    day = max((day for day in earlier if day < ds), default=None)
    found = {graph_id for file in data_files(table, partition_is(ds=day)) for graph_id in _graph_ids(file)}
    if len(found) != 1 or not is_finished(lake, str(*found)):
        return None
    manifest = read_manifest(lake, str(*found))
    return manifest if is_readable(lake, manifest) else None


def is_readable(lake: Lake, manifest: GraphManifest) -> bool:
    """Whether all that a graph was made of can still be read."""
    return all(readable_versions(lake, TABLES[name], [version]) for name, version in manifest.versions.items())


def _graph_ids(file: DataFile) -> set[str]:
    """The least and the greatest `graph_id` of a file of `related_pins`."""
    filesystem, path = storage.filesystem_of(file.uri)
    found: set[str] = set()
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        footer = parquet.metadata
        leaf = [footer.schema.column(number).path for number in range(footer.num_columns)].index("graph_id")
        for group in range(footer.num_row_groups):
            said = footer.row_group(group).column(leaf).statistics
            found |= {said.min, said.max} if said is not None else {"unknown", "any"}
    return found


def open_graph(lake: Lake, graph_id: str, cache: Path | None = None) -> Graph:
    """A graph whose files are what its manifest says. Those of a remote lake are copied below `cache` first, once.

    Raises GraphError where a file is missing or damaged. Cost: one reading of the files.
    """
    manifest = read_manifest(lake, graph_id)
    folder = _whole_folder(lake, graph_id, manifest.folder, manifest.files, cache)
    base = manifest.base
    base_folder = _whole_folder(lake, base.graph_id, base.folder, base.files, cache) if base else None
    return Graph.open(folder, manifest, base_folder)


def _whole_folder(lake: Lake, graph_id: str, attempt: str, files: Mapping[str, Mapping[str, Any]], cache: Path | None) -> Path:
    """Where the files of one graph are on this machine, all of them and undamaged."""
    uri = f"{graph_uri(lake, graph_id)}/{attempt}"
    local = storage.is_local(uri)
    folder = Path(uri) if local else (cache or Path(tempfile.gettempdir()) / "pinlake-graphs") / graph_id / attempt
    for name, file in files.items():
        if not local and not _is_whole(folder / name, file):
            _copy(f"{uri}/{name}", folder / name)
        if not (folder / name).is_file():
            raise GraphError(f"{name} of graph {graph_id} is missing")
        if not _is_whole(folder / name, file):
            raise GraphError(f"{name} of graph {graph_id} is damaged")
    return folder


@lru_cache(maxsize=2)
def worker_graph(home: str, graph_id: str) -> Graph:
    """As `open_graph`, once a process: for executors, where a task follows the other. Tonight's graph, and the one before."""
    return open_graph(Lake(home), graph_id)


def _is_whole(path: Path, file: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == file["size_bytes"] and file_sha256(str(path)) == file["sha256"]


def _copy(uri: str, path: Path) -> None:
    """Copies a file to where it appears at once; whoever else copies it does no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem, source = storage.filesystem_of(uri)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        local = pafs.LocalFileSystem()
        pafs.copy_files(source, str(part), source_filesystem=filesystem, destination_filesystem=local)
        part.replace(path)
