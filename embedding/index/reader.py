"""Opening a release and searching it. Refuses what is damaged, unchecked or of another encoder, before the first query.

Thread-safe after construction: nothing here changes. A release without some pins (`without`), or with what changed since it was
built (`with_changes`), is another object over the same open files.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from embedding.index.build import Shard
from embedding.index.changes import Changes
from embedding.index.lists import SelectionPoint
from embedding.index.part import Criteria, Part
from embedding.index.recall import Floats, Ids, merged_top_k
from embedding.index.release import FORMAT, Manifest, ReleaseError, live_release_id, read_manifest, release_uri, verify_files
from embedding.index.shards import RowSelection, Shards
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


@dataclass(frozen=True)
class Selection:
    """Pins that searches of one release are confined to, as `Release.select` gives them."""

    parts: tuple[RowSelection, ...]
    of: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class Release:
    """A release opened for search, and the pins that changed since it was built, if it was told of them."""

    def __init__(self, lake: Lake, manifest: Manifest):
        """Verifies every file of the release, then opens it; what is large is memory-mapped.

        A release in an object store is copied to a temporary folder first, which is gone again when this returns: the system
        keeps the mapped files until the release is closed.

        Raises:
            ReleaseError: A file is missing, or differs from the manifest by as little as a bit, or the release is of an
                earlier format.
        """
        if manifest.format != FORMAT:
            raise ReleaseError(
                f"release {manifest.release_id} is of format {manifest.format}, this reader opens {FORMAT}: run the DAG "
                "index_release, which builds one of the same state"
            )
        faults = verify_files(lake, manifest)
        if faults:
            raise ReleaseError(f"release {manifest.release_id} is not whole: {'; '.join(faults)}. Build it again.")
        root = release_uri(lake, manifest.release_id)
        filesystem, path = storage.filesystem_of(root)
        pins, attributes = (
            pads.dataset(
                [f"{path}/{name}" for name in sorted(manifest.files) if name.startswith(prefix)],
                filesystem=filesystem,
                format="parquet",
            )
            for prefix in ("pins-", "attributes-")
        )
        try:
            with opened_shards(root, manifest.shards, manifest.selections) as shards:
                own = Part(shards, manifest.setting, pins, attributes, np.empty(0, np.int64))
        except (RuntimeError, ValueError) as error:
            raise ReleaseError(f"release {manifest.release_id} cannot be opened: {error}. Build it again.") from error
        self.manifest = manifest
        self.changes: Changes | None = None
        self._parts: tuple[Part, ...] = (own,)

    def without(self, pin_ids: Ids) -> Release:
        """This release without some pins: no search, look-up or selection finds them."""
        other = copy.copy(self)
        other._parts = tuple(part.hiding(np.asarray(pin_ids, np.int64)) for part in self._parts)
        return other

    def with_changes(self, changes: Changes) -> Release:
        """This release as the lake is now: what changed since it was built takes the place of its rows."""
        other = copy.copy(self)
        other.changes = changes
        own = replace(self._parts[0], hidden=changes.superseded)
        other._parts = (own,) if changes.part is None else (own, changes.part)
        return other

    def require_version(self, embedding_version: str) -> None:
        """Raises ReleaseError if vectors of `embedding_version` may not be compared with this release's."""
        if embedding_version != self.manifest.embedding_version:
            raise ReleaseError(
                f"release {self.manifest.release_id} holds {self.manifest.embedding_version} vectors, "
                f"the query was encoded by {embedding_version}: their distances mean nothing"
            )

    def search(self, queries_QD: Floats, k: int = 10, among: Selection | None = None) -> tuple[Floats, Ids]:
        """Scores (Q, k) and pin ids (Q, k), nearest first; id -1 where there are fewer than k.

        Scores are cosines to within the precision of the index's codes (`manifest.factory`).

        Args:
            queries_QD: L2-normalised float32 queries of the release's encoder.
            among: Only these pins, as `select` of this very object gives them.
        """
        queries = np.ascontiguousarray(queries_QD, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"queries of shape {queries.shape}; this release has {self.manifest.dim} dimensions")
        if not np.isfinite(queries).all():
            raise ValueError("a query has values that are no numbers")
        if among is not None and among.of is not self._parts:
            raise ValueError("the selection is of another release, or of this one before it changed: select again")
        found = [
            part.search(queries, k, None if among is None else among.parts[number]) for number, part in enumerate(self._parts)
        ]
        return found[0] if len(found) == 1 else merged_top_k(found, k)

    def select(
        self, *, board: int | None = None, tag: str | None = None, pin_ids: Ids | Sequence[int] | None = None
    ) -> Selection:
        """The pins that are on a board, have a tag and are among `pin_ids` (a price or category set, say): all that is given.

        May be kept and used for many searches of this release.
        """
        criteria = Criteria(board, tag, None if pin_ids is None else np.asarray(pin_ids, np.int64))
        return Selection(tuple(part.select(criteria) for part in self._parts), self._parts)

    def vector_of(self, pin_id: int) -> Floats:
        """The pin's vector (D,). Raises KeyError if the release does not hold the pin."""
        vector: Floats = self.vectors_of(np.array([pin_id], np.int64))[0]
        return vector

    def vectors_of(self, pin_ids: Ids) -> Floats:
        """The pins' vectors (N, D), in the order of the ids, as near to the encoder's as the index keeps them.

        Raises KeyError for one that the release does not hold.
        """
        wanted = np.asarray(pin_ids, np.int64)
        vectors, missing = np.empty((len(wanted), self.manifest.dim), np.float32), np.ones(len(wanted), bool)
        for part in self._parts:
            here = part.holds(wanted)
            vectors[here] = part.shards.vectors(wanted[here])
            missing &= ~here
        if missing.any():
            raise KeyError(int(wanted[missing][0]))
        return vectors

    def describe(self, pin_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Title, picture and board of pins, by id; an unknown id is left out."""
        wanted = [int(pin) for pin in pin_ids]
        return {pin: row for part in self._parts for pin, row in part.describe(wanted).items()}

    def sample(self, count: int, seed: int = 0) -> list[dict[str, Any]]:
        """Some pins of the release, the same ones for a seed."""
        ids = self.pin_ids()
        chosen = np.random.default_rng(seed).choice(ids, min(count, len(ids)), replace=False)
        found = self.describe(chosen.tolist())
        return [found[int(pin)] for pin in chosen]

    def neighbours(
        self, query_D: Floats, k: int = 10, without: int | None = None, among: Selection | None = None
    ) -> list[Neighbour]:
        """The k nearest pins of one query, described; `without` leaves out one pin, the query itself."""
        scores, ids = self.search(query_D[None, :], k + (without is not None), among)
        pairs = [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0 and i != without][:k]
        found = self.describe([pin for pin, _ in pairs])
        return [
            Neighbour(pin, score, *(found.get(pin, {}).get(name) for name in ("title", "image_uri", "board_id")))
            for pin, score in pairs
        ]

    def pin_ids(self) -> Ids:
        """The ids of all pins, ascending: 8 bytes a pin."""
        return np.sort(np.concatenate([part.pin_ids() for part in self._parts]))

    def boards(self) -> tuple[Ids, Ids]:
        """(pin ids, board ids) of the pins that are on a board, in no order: 16 bytes a pin."""
        pins, boards = zip(*(part.boards() for part in self._parts), strict=True)
        return np.concatenate(pins), np.concatenate(boards)

    def count_rows(self) -> tuple[int, int]:
        """(vectors in the index, distinct pins described), as the release was built: equal in a sound one."""
        own = self._parts[0]
        return len(own.shards), own.count_described()


@contextmanager
def opened_shards(uri: str, shards: Sequence[Shard], measured: Sequence[SelectionPoint] = ()) -> Iterator[Shards]:
    """The shards of a release's folder, which may be in an object store: then of copies, which are deleted at the end."""
    names = [name for shard in shards for name in (shard.index_file, shard.ids_file)]
    with tempfile.TemporaryDirectory() as cache:
        yield Shards.open(_local_folder(uri, names, Path(cache)), shards, measured)


def _local_folder(uri: str, names: Sequence[str], folder: Path) -> Path:
    """The folder itself where it is local, else `folder`, after the files `names` were copied there."""
    if storage.is_local(storage.normalise_uri(uri)):
        return Path(storage.normalise_uri(uri))
    filesystem, path = storage.filesystem_of(uri)
    for name in names:
        target = str(folder / name)
        pafs.copy_files(f"{path}/{name}", target, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
    return folder


def open_live(lake: Lake) -> Release:
    """The release that is live now. Raises ReleaseError where none was ever published."""
    release_id = live_release_id(lake)
    if release_id is None:
        raise ReleaseError(f"no release is live under {lake.releases_uri}: run a night, or `make demo`, first")
    return Release(lake, read_manifest(lake, release_id))
