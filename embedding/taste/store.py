"""Where the graphs of a lake lie, which one is live, and how one is opened.

graphs/<graph_id>/manifest.json      written last; names every file with its SHA-256
graphs/<graph_id>/pins-00000-*.npy   embedding/taste/graph.py has the format
graphs/LIVE                          names the graph that is read, replaced at once
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

from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake
from embedding.taste.graph import FORMAT, MANIFEST, Graph, GraphError, GraphManifest


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
    """Deletes all finished graphs but those to keep, the manifest first. Returns their ids."""
    gone = [manifest.graph_id for manifest in finished_graphs(lake) if manifest.graph_id not in keep]
    for graph_id in gone:
        storage.delete_quietly(f"{graph_uri(lake, graph_id)}/{MANIFEST}")
        storage.delete_folder(graph_uri(lake, graph_id))
    return gone


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


def open_graph(lake: Lake, graph_id: str, cache: Path | None = None) -> Graph:
    """A graph whose files are what its manifest says. Those of a remote lake are copied below `cache` first, once.

    Raises GraphError where a file is missing or damaged. Cost: one reading of the files.
    """
    manifest = read_manifest(lake, graph_id)
    uri = f"{graph_uri(lake, graph_id)}/{manifest.folder}"
    local = storage.is_local(uri)
    folder = Path(uri) if local else (cache or Path(tempfile.gettempdir()) / "pinlake-graphs") / graph_id / manifest.folder
    for name, file in manifest.files.items():
        if not local and not _is_whole(folder / name, file):
            _copy(f"{uri}/{name}", folder / name)
        if not (folder / name).is_file():
            raise GraphError(f"{name} of graph {graph_id} is missing")
        if not _is_whole(folder / name, file):
            raise GraphError(f"{name} of graph {graph_id} is damaged")
    return Graph.open(folder, manifest)


@lru_cache(maxsize=1)
def worker_graph(home: str, graph_id: str) -> Graph:
    """As `open_graph`, once a process: for executors, where a task follows the other."""
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
