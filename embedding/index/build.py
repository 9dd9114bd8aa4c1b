"""The pieces of an index build, each a plain function over arrays or files: recipe, training, shards, merging, tuning.

A job trains once in the driver on a bounded sample, lets executors fill shards from that trained index, and merges the
shards. The search parameter is the cheapest that reaches the recall goal, found by trying.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from embedding.index.recall import Floats, Ids, drop_self, recall_at_k
from embedding.index.release import SearchPoint

FLAT_BELOW_ROWS = 1_000
POINTS_A_CENTROID = 39
"""FAISS's own minimum for k-means; it warns below."""
TRAINING_POINTS_A_CENTROID = 64
RECALL_GOAL = 0.95
TOP = 10


def choose_factory(rows: int) -> str:
    """The FAISS factory string: exact search for a few rows, else inverted lists of full vectors.

    About 4 sqrt(N) lists, as FAISS's guide and autofaiss have it, but never fewer than 39 rows a list to train from.
    """
    if rows < FLAT_BELOW_ROWS:
        return "IDMap2,Flat"
    lists = min(4 * int(rows**0.5), rows // POINTS_A_CENTROID)
    return f"IVF{1 << max(4, lists.bit_length() - 1)},Flat"


def lists_of(factory: str) -> int:
    """The number of inverted lists in a factory string; 1 for exact search."""
    return int(factory.removeprefix("IVF").split(",")[0]) if factory.startswith("IVF") else 1


def train(factory: str, dim: int, sample_ND: Floats) -> bytes:
    """An empty, trained index for inner products, serialised for the executors. Deterministic for a given sample."""
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        faiss.extract_index_ivf(index).cp.seed = 1234
        index.train(sample_ND)
    return bytes(faiss.serialize_index(index).tobytes())


def fill_shard(trained: bytes, pieces: Iterable[tuple[Floats, Ids]], path: Path) -> int:
    """Adds vectors to a copy of the trained index and writes it to `path`. Returns how many. Memory: one shard."""
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    for vectors_ND, ids_N in pieces:
        if len(ids_N):
            index.add_with_ids(vectors_ND, ids_N)
    faiss.write_index(index, str(path))
    return int(index.ntotal)


def merge_shards(trained: bytes, shards: Sequence[Path], path: Path) -> int:
    """Merges shards of one trained index into a single file. Returns the number of vectors.

    Shards are taken in the order of their names, so that equal shards give an equal file.
    """
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    for shard in sorted(shards):
        piece: Any = faiss.read_index(str(shard))
        if isinstance(index, faiss.IndexIDMap2 | faiss.IndexIDMap):
            if piece.ntotal:
                index.add_with_ids(piece.index.reconstruct_n(0, piece.ntotal), faiss.vector_to_array(piece.id_map))
        else:
            index.check_compatible_for_merge(piece)
            index.merge_from(piece, 0)
    faiss.write_index(index, str(path))
    return int(index.ntotal)


def set_nprobe(index: faiss.Index, nprobe: int) -> None:
    """Sets how many lists a query visits; nothing to set on an exact index."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.nprobe = nprobe


def measure_point(
    index: faiss.Index,
    nprobe: int,
    queries_QD: Floats,
    self_ids_Q: Ids,
    exact_scores_QK: Floats,
    clock: Callable[[], float] = time.perf_counter,
) -> SearchPoint:
    """Recall@10 and the time of single queries, one after the other, on one thread."""
    set_nprobe(index, nprobe)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        results, times = [], []
        for query in queries_QD:
            started = clock()
            results.append(index.search(query[None, :], TOP + 1))
            times.append(clock() - started)
    finally:
        faiss.omp_set_num_threads(threads)
    scores = np.concatenate([result[0] for result in results])
    ids = np.concatenate([result[1] for result in results])
    found, _ = drop_self(scores, ids, self_ids_Q)
    milliseconds = np.array(times) * 1_000
    return SearchPoint(
        nprobe=nprobe,
        recall_at_10=round(recall_at_k(found, exact_scores_QK), 4),
        p50_ms=round(float(np.percentile(milliseconds, 50)), 4),
        p99_ms=round(float(np.percentile(milliseconds, 99)), 4),
        qps=round(1_000 / float(milliseconds.mean()), 1),
    )


def tune(index: faiss.Index, factory: str, queries_QD: Floats, self_ids_Q: Ids, exact_QK: Floats) -> list[SearchPoint]:
    """A point for each power of two of lists visited, up to all of them. The exact scores are without the query pin itself."""
    lists = lists_of(factory)
    return [measure_point(index, 1 << i, queries_QD, self_ids_Q, exact_QK) for i in range(lists.bit_length())]


def cheapest_point(sweep: Sequence[SearchPoint], goal: float = RECALL_GOAL) -> SearchPoint:
    """The fewest lists that reach the goal; all lists where none does (a full visit is exact)."""
    return next((point for point in sweep if point.recall_at_10 >= goal), sweep[-1])
