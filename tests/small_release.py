"""A release as the job builds it, from a few vectors and without Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from embedding.index.tuning import TOP, best_point, candidates, choose, sweep, try_recipes
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
    truth = Truth.of(*near, ids_N[queries], TOP)
    tried = [factory] if factory else candidates(rows, dim)
    settings: dict[str, Any] = {"goal": goal, "threads": 1, "bytes_budget": None}
    trials = try_recipes(tried, vectors_ND, ids_N, vectors_ND[queries], truth, **settings)
    choice = choose(trials, rows=rows, chosen_by=release_id, **settings)
    trained = train_index(choice.factory, dim, vectors_ND)
    root = Path(release_uri(lake, release_id))
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for number, part in enumerate(np.array_split(np.arange(rows), shards)):
        shard = Shard(number, int(part[0]), len(part))
        pieces = []
        for piece, half in enumerate(np.array_split(part, 2 if is_mergeable(choice.factory) else 1)):
            pieces.append((root / f"piece-{piece}.faiss", root / f"piece-{piece}.npy"))
            fill_piece(trained, [(vectors_ND[half], ids_N[half])], *pieces[-1])
        merge_pieces(trained, pieces, root / shard.index_file, root / shard.ids_file)
        made.append(shard)
    described: dict[str, Any] = {
        "board_id": ids_N,
        "title": [f"pin {i}" for i in range(rows)],
        "image_uri": [None] * rows,
        "tags": [[]] * rows,
    }
    described |= {"pin_id": ids_N} | dict(pins or {})
    pq.write_table(pa.table(described), root / "pins-00000.parquet")
    pairs = [("board", str(board), pin) for pin, board in zip(ids_N.tolist(), described["board_id"], strict=True)]
    pairs += [("tag", tag, pin) for pin, tags in zip(ids_N.tolist(), described["tags"], strict=True) for tag in tags]
    kinds, values, of_pins = zip(*sorted(pairs), strict=True)
    pq.write_table(pa.table({"kind": kinds, "value": values, "pin_id": of_pins}), root / "attributes-00000.parquet")
    with opened_shards(str(root), made) as opened:
        points = sweep(opened, choice.factory, vectors_ND[queries], truth, goal=goal, threads=1)
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
