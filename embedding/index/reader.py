"""Opening a release and searching it. Refuses what is damaged, unchecked or of another encoder, before the first query.

Thread-safe after construction: FAISS's searches are, and nothing here changes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from embedding.index.build import set_nprobe
from embedding.index.recall import Floats, Ids
from embedding.index.release import (
    INDEX_FILE,
    Manifest,
    ReleaseError,
    live_release_id,
    read_manifest,
    release_uri,
    verify_files,
)
from embedding.tables import storage
from embedding.tables.lake import Lake


@dataclass(frozen=True)
class Neighbour:
    """One result: a pin, its cosine with the query, and what a person wants to see of it."""

    pin_id: int
    score: float
    title: str | None
    image_uri: str | None
    board_id: int | None


_HASHTABLE: int = faiss.DirectMap.Hashtable  # type: ignore[attr-defined]  # missing in FAISS's own stubs


class Release:
    """A release opened for search."""

    def __init__(self, lake: Lake, manifest: Manifest):
        """Verifies every file of the release, then opens it.

        Raises:
            ReleaseError: A file is missing, or differs from the manifest by as little as a bit.
        """
        faults = verify_files(lake, manifest)
        if faults:
            raise ReleaseError(f"release {manifest.release_id} is not whole: {'; '.join(faults)}. Build it again.")
        self.manifest = manifest
        root = release_uri(lake, manifest.release_id)
        with tempfile.TemporaryDirectory() as cache:
            self._index = faiss.read_index(str(_local_copy(f"{root}/{INDEX_FILE}", Path(cache))))
        ivf = faiss.try_extract_index_ivf(self._index)
        if ivf is not None:
            ivf.set_direct_map_type(_HASHTABLE)
        set_nprobe(self._index, manifest.nprobe)
        filesystem, path = storage.filesystem_of(root)
        parts = [f"{path}/{name}" for name in sorted(manifest.files) if name.endswith(".parquet")]
        self._pins = pads.dataset(parts, filesystem=filesystem, format="parquet")

    def require_version(self, embedding_version: str) -> None:
        """Raises ReleaseError if vectors of `embedding_version` may not be compared with this release's."""
        if embedding_version != self.manifest.embedding_version:
            raise ReleaseError(
                f"release {self.manifest.release_id} holds {self.manifest.embedding_version} vectors, "
                f"the query was encoded by {embedding_version}: their distances mean nothing"
            )

    def search(self, queries_QD: Floats, k: int = 10) -> tuple[Floats, Ids]:
        """Scores (Q, k) and pin ids (Q, k), nearest first; id -1 where there are fewer than k.

        Args:
            queries_QD: L2-normalised float32 queries of the release's encoder.
        """
        queries = np.ascontiguousarray(queries_QD, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"queries of shape {queries.shape}; this release has {self.manifest.dim} dimensions")
        scores, ids = self._index.search(queries, k)
        return scores, ids

    def vector_of(self, pin_id: int) -> Floats:
        """The pin's vector (D,). Raises KeyError if the release does not hold the pin."""
        try:
            vector: Floats = np.asarray(self._index.reconstruct(int(pin_id)), np.float32)
        except RuntimeError:
            raise KeyError(pin_id) from None
        return vector

    def describe(self, pin_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Title, picture and board of pins, by id; an unknown id is left out."""
        wanted = pads.field("pin_id").isin(pa.array([int(pin) for pin in pin_ids], pa.int64()))
        return {row["pin_id"]: row for row in self._pins.to_table(filter=wanted).to_pylist()}

    def sample(self, count: int, seed: int = 0) -> list[dict[str, Any]]:
        """Some pins of the release, the same ones for a seed."""
        ids = np.sort(self._pins.to_table(columns=["pin_id"])["pin_id"].to_numpy())
        chosen = np.random.default_rng(seed).choice(ids, min(count, len(ids)), replace=False)
        found = self.describe(chosen.tolist())
        return [found[int(pin)] for pin in chosen]

    def neighbours(self, query_D: Floats, k: int = 10, without: int | None = None) -> list[Neighbour]:
        """The k nearest pins of one query, described; `without` leaves out one pin, the query itself."""
        scores, ids = self.search(query_D[None, :], k + (without is not None))
        pairs = [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0 and i != without][:k]
        found = self.describe([pin for pin, _ in pairs])
        return [
            Neighbour(pin, score, *(found.get(pin, {}).get(name) for name in ("title", "image_uri", "board_id")))
            for pin, score in pairs
        ]

    def pin_ids(self) -> Ids:
        """The ids of all pins, ascending: 8 bytes a pin."""
        ids: Ids = np.sort(self._pins.to_table(columns=["pin_id"])["pin_id"].to_numpy())
        return ids

    def boards(self) -> tuple[Ids, Ids]:
        """(pin ids, board ids) of the pins that are on a board, in no order: 16 bytes a pin."""
        pairs = self._pins.to_table(columns=["pin_id", "board_id"], filter=pads.field("board_id").is_valid())
        return pairs["pin_id"].to_numpy().astype(np.int64), pairs["board_id"].to_numpy().astype(np.int64)

    def vectors_of(self, pin_ids: Ids) -> Floats:
        """The pins' vectors (N, D), in the order of the ids. Raises KeyError for one that the release does not hold."""
        if not len(pin_ids):
            return np.empty((0, self.manifest.dim), np.float32)
        return np.stack([self.vector_of(int(pin)) for pin in pin_ids])

    def count_rows(self) -> tuple[int, int]:
        """(vectors in the index, distinct pins described): equal in a sound release."""
        ids = self._pins.to_table(columns=["pin_id"])["pin_id"]
        return int(self._index.ntotal), int(pc.count_distinct(ids).as_py())


def _local_copy(uri: str, folder: Path) -> Path:
    """The file itself where it is local, else a copy in `folder`."""
    if storage.is_local(storage.normalise_uri(uri)):
        return Path(storage.normalise_uri(uri))
    filesystem, path = storage.filesystem_of(uri)
    target = folder / path.rsplit("/", 1)[-1]
    pafs.copy_files(path, str(target), source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
    return target


def open_live(lake: Lake) -> Release:
    """The release that is live now. Raises ReleaseError where none was ever published."""
    release_id = live_release_id(lake)
    if release_id is None:
        raise ReleaseError(f"no release is live under {lake.releases_uri}: run a night, or `make demo`, first")
    return Release(lake, read_manifest(lake, release_id))
