"""A library of approximate search, in its own environment: builds an index of a file's vectors and asks it, thoroughly or less.

    python ann_program.py --library hnswlib --data FOLDER --out FOLDER --threads 2

`vectors.npy` (N, D) and `queries.npy` (Q, D) are L2-normalised float32. Writes `points.json`, and each point's ids (Q, 11) as
`found-<number>.npy`: who asked computes the recall. Imports nothing of pinlake.

A point is named by its index and, after a semicolon, its search parameters.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Search = Callable[[Any], Any]
"""Queries (Q, D) to ids (Q, 11)."""

EFFORTS = (11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
"""Steps of half an octave: no peer loses much to the next setting being far."""

TOP = 11
"""Ten, and the query itself."""


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def hnswlib(vectors: Any, folder: Path, threads: int, _budget: float | None) -> tuple[int, Iterator[tuple[str, int, Search]]]:
    import hnswlib as library

    index = library.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=16, ef_construction=200)
    index.set_num_threads(threads)
    index.add_items(vectors)
    index.save_index(str(folder / "index"))

    def points() -> Iterator[tuple[str, int, Search]]:
        for ef in EFFORTS:
            for used in (1, threads):
                index.set_ef(ef)
                index.set_num_threads(used)
                yield f"M 16; ef {ef}", used, lambda queries: index.knn_query(queries, k=TOP)[0]

    return size_of(folder / "index"), points()


def usearch(vectors: Any, folder: Path, threads: int, _budget: float | None) -> tuple[int, Iterator[tuple[str, int, Search]]]:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="bf16")
    index.add(np.arange(len(vectors)), vectors, threads=threads)
    index.save(str(folder / "index"))

    def ask(used: int, queries: Any) -> Any:
        return index.search(queries, TOP, threads=used).keys

    def points() -> Iterator[tuple[str, int, Search]]:
        for ef in EFFORTS:
            for used in (1, threads):
                index.expansion_search = ef
                yield f"bf16; expansion {ef}", used, partial(ask, used)

    return size_of(folder / "index"), points()


def scann(vectors: Any, folder: Path, threads: int, _budget: float | None) -> tuple[int, Iterator[tuple[str, int, Search]]]:
    import scann as library

    leaves = int(len(vectors) ** 0.5)
    builder = library.scann_ops_pybind.builder(vectors, TOP, "dot_product")
    builder = builder.tree(num_leaves=leaves, num_leaves_to_search=leaves // 20, training_sample_size=250_000)
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
    stored = folder / "index"
    stored.mkdir()
    searcher.serialize(str(stored))
    searcher.set_num_threads(threads)

    def ask(search: Any, many: dict[str, int], queries: Any) -> Any:
        return search(queries, **many)[0]

    def points() -> Iterator[tuple[str, int, Search]]:
        for visited, reordered in itertools.product((10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320, 640), (50, 100, 200, 400)):
            many = {"leaves_to_search": visited, "pre_reorder_num_neighbors": reordered}
            said = f"{leaves} leaves; {visited} visited, {reordered} reordered"
            yield said, 1, partial(ask, searcher.search_batched, many)
            yield said, threads, partial(ask, searcher.search_batched_parallel, many)

    return size_of(stored), points()


def autofaiss(vectors: Any, folder: Path, threads: int, budget: float | None) -> tuple[int, Iterator[tuple[str, int, Search]]]:
    import faiss
    from autofaiss import build_index

    limit = f"{int(budget * len(vectors) / 2**20)}MB" if budget else "8GB"
    index, infos = build_index(
        embeddings=vectors,
        save_on_disk=True,
        index_path=str(folder / "index"),
        index_infos_path=str(folder / "infos.json"),
        max_index_memory_usage=limit,
        current_memory_available="12GB",
        metric_type="ip",
        nb_cores=threads,
        verbose=30,
    )
    space: Any = faiss.ParameterSpace()
    key = infos["index_key"]
    if "IVF" not in key:
        settings = [f"efSearch={ef}" for ef in EFFORTS]
    else:
        # As autofaiss itself combines them (indices/index_utils.py): the walk for the lists twice as long as they are many.
        settings = [f"nprobe={n}" + (f",efSearch={2 * n}" if "HNSW" in key else "") for n in (4, 8, *EFFORTS)]
        settings = [f"{setting},ht=2048" if "PQ" in key and "x4" not in key else setting for setting in settings]
        if "RFlat" in key or "Refine" in key:
            settings = [f"{setting},k_factor_rf={k}" for setting in settings for k in (8, 32)]

    def points() -> Iterator[tuple[str, int, Search]]:
        for setting in settings:
            space.set_index_parameters(index, setting)
            for used in (1, threads):
                faiss.omp_set_num_threads(used)
                yield f"{key}; {setting}", used, lambda queries: index.search(queries, TOP)[1]

    return size_of(folder / "index"), points()


LIBRARIES = {"hnswlib": hnswlib, "usearch": usearch, "scann": scann, "autofaiss": autofaiss}


def measure(search: Search, queries: Any, enough_s: float = 1.0) -> tuple[Any, list[float]]:
    """The ids, and seconds of repeated batches."""
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < enough_s and len(seconds) < 20):
        started = time.perf_counter()
        found = search(queries)
        seconds.append(time.perf_counter() - started)
        if seconds[0] > 4 * enough_s:
            break
    return np.asarray(found).astype(np.int64), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=sorted(LIBRARIES), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, help="bytes a vector")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    vectors, queries = (np.load(args.data / name) for name in ("vectors.npy", "queries.npy"))
    started = time.perf_counter()
    size, points = LIBRARIES[args.library](vectors, args.out, args.threads, args.budget)
    build_s = time.perf_counter() - started
    measured = []
    for number, (setting, threads, search) in enumerate(points):
        found, seconds = measure(search, queries)
        np.save(args.out / f"found-{number}.npy", found)
        measured.append({"setting": setting, "threads": threads, "qps": len(queries) / statistics.median(seconds)})
    said = {"build_s": build_s, "bytes_a_vector": size / len(vectors), "points": measured, "pid": os.getpid()}
    (args.out / "points.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
