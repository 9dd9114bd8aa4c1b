"""A release as the job builds it, from a few vectors and without Spark, and queries that never stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding.index.build import Shard, fill_piece, merge_pieces
from embedding.index.factory import is_mergeable, train_index
from embedding.index.reader import opened_shards
from embedding.index.recall import Floats, Ids, Truth, exact_top_k
from embedding.index.release import MANIFEST, LivePointer, Manifest, ReleaseFile, look_at_pointer, move_pointer, release_uri
from embedding.index.tuning import TOP, Wanted, best_point, candidates, choose, sweep, try_recipe
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake


def unit_vectors(rows: int, dim: int, seed: int = 0) -> Floats:
    """Clustered unit vectors, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    vectors = centres[rng.integers(0, 20, rows)] + 0.7 * rng.normal(size=(rows, dim))
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def write_shards(root: Path, factory: str, vectors_ND: Floats, ids_N: Ids, count: int) -> list[Shard]:
    """Shards of two pieces each, or of one where pieces cannot be merged."""
    trained, shards = train_index(factory, vectors_ND.shape[1], vectors_ND), []
    for number, part in enumerate(np.array_split(np.arange(len(ids_N)), count)):
        shard, pieces = Shard(number, len(part)), []
        for piece, half in enumerate(np.array_split(part, 2 if is_mergeable(factory) else 1)):
            pieces.append((root / f"piece-{piece}.faiss", root / f"piece-{piece}.npy"))
            fill_piece(trained, [(vectors_ND[half], ids_N[half])], *pieces[-1])
        merge_pieces(trained, pieces, root / shard.index_file, root / shard.ids_file)
        shards.append(shard)
    return shards


def describe_pins(root: Path, ids_N: Ids, pins: Mapping[str, Sequence[Any]]) -> None:
    """The pins' descriptions and attributes; titles and a board a pin where `pins` has none."""
    rows = len(ids_N)
    columns: dict[str, Any] = {"board_id": ids_N, "title": [f"pin {i}" for i in range(rows)], "image_uri": [None] * rows}
    columns |= {"tags": [[]] * rows, "pin_id": ids_N} | dict(pins)
    pq.write_table(pa.table(columns), root / "pins-00000.parquet")
    pairs = [("board", str(board), pin) for pin, board in zip(ids_N.tolist(), columns["board_id"], strict=True)]
    pairs += [("tag", tag, pin) for pin, tags in zip(ids_N.tolist(), columns["tags"], strict=True) for tag in tags]
    kinds, values, of_pins = zip(*sorted(pairs), strict=True)
    pq.write_table(pa.table({"kind": kinds, "value": values, "pin_id": of_pins}), root / "attributes-00000.parquet")


def build_release(
    lake: Lake,
    release_id: str,
    vectors_ND: Floats,
    ids_N: Ids,
    *,
    embedding_version: str,
    pins: Mapping[str, Sequence[Any]] | None = None,
    shards: int = 1,
    factory: str | None = None,
    goal: float = 0.95,
    **changes: Any,
) -> Manifest:
    """Two pieces a shard; `pins` has columns besides `pin_id`. Fields of the manifest are taken from `changes`."""
    rows, dim = vectors_ND.shape
    queries = np.arange(0, rows, max(1, rows // 300))
    near = exact_top_k(vectors_ND[queries], [(vectors_ND, ids_N)], min(100, rows))
    truth, wanted = Truth.of(*near, ids_N[queries], TOP), Wanted(goal)
    tried = [factory] if factory else candidates(rows, dim)
    trials = [try_recipe(name, vectors_ND, ids_N, vectors_ND[queries], truth, wanted) for name in tried]
    choice = choose(trials, rows, wanted, release_id)
    root = Path(release_uri(lake, release_id))
    root.mkdir(parents=True, exist_ok=True)
    made = write_shards(root, choice.factory, vectors_ND, ids_N, shards)
    describe_pins(root, ids_N, pins or {})
    with opened_shards(str(root), made) as opened:
        points = sweep(opened, choice.factory, vectors_ND[queries], truth, wanted)
    point = best_point(points, goal)
    manifest = Manifest(
        **{
            "release_id": release_id,
            "ds": "2026-11-18",
            "embedding_version": embedding_version,
            "encoder": "test",
            "rows": rows,
            "dim": dim,
            "factory": choice.factory,
            "setting": point.setting,
            "recall_at_10": point.recall_at_10,
            "days": ["2026-11-18"],
            "pins_version": 1,
            "pin_embeddings_version": 1,
            "built_by": "run",
            "built_at": "2026-11-18T00:00:00",
            "files": {p.name: ReleaseFile(p.stat().st_size, file_sha256(str(p))) for p in sorted(root.iterdir())},
            "shards": made,
            "sweep": points,
            "choice": choice,
            **changes,
        }
    )
    storage.write_atomic(f"{root}/{MANIFEST}", manifest.to_json())
    return manifest


def point_at(lake: Lake, pointer: LivePointer) -> None:
    """Moves the pointer without asking whether it may be moved."""
    move_pointer(lake, pointer, look_at_pointer(lake)[1])


@contextmanager
def under_load(ask: Callable[[], None], threads: int = 2) -> Iterator[list[int]]:
    """Asks again and again in some threads as long as it is open, and fails with what one of them failed with.

    Yields how often each thread was answered.
    """
    answered, errors, stop = [0] * threads, list[Exception](), threading.Event()

    def go_on(worker: int) -> None:
        while not stop.is_set():
            try:
                ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is to tell it
                errors.append(error)
                return
            answered[worker] += 1

    asking = [threading.Thread(target=go_on, args=(worker,)) for worker in range(threads)]
    for thread in asking:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    if errors:
        raise errors[0]
