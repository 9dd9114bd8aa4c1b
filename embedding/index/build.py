"""The steps of an index build over files: pieces that executors fill from one trained index, merged into shards.

A *piece* is what one task fills, a *shard* one file of the release, of at most about `SHARD_BYTES`: so the memory of a build is
bounded by a shard, however large the lake. Rows are in the order of the pin ids, throughout: a pin's row is found by
bisection in the ids, and no index keeps ids of its own.

    index-00000.faiss    a FAISS index; its row i is the i-th of the shard's ids
    ids-00000.npy        the shard's pin ids, int64, ascending
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import faiss
import numpy as np

from embedding.index.factory import deserialize, is_mergeable, merge_into
from embedding.index.recall import Floats, Ids

SHARD_BYTES = 2 << 30
ROWS_A_PIECE = 250_000


@dataclass(frozen=True)
class Shard:
    """One file of a release's index: its number, in the order of the pin ids, and how many rows it has."""

    number: int
    rows: int

    @property
    def index_file(self) -> str:
        return f"index-{self.number:05d}.faiss"

    @property
    def ids_file(self) -> str:
        return f"ids-{self.number:05d}.npy"


@dataclass(frozen=True)
class Layout:
    """Into how many shards an index is cut, and each shard into how many pieces."""

    shards: int
    pieces_a_shard: int

    @property
    def pieces(self) -> int:
        return self.shards * self.pieces_a_shard


def plan_layout(factory: str, rows: int, bytes_a_vector: float, shard_bytes: int = SHARD_BYTES) -> Layout:
    """As few shards as `shard_bytes` allows; pieces that fill the executors. A graph is filled in one piece."""
    shards = max(1, ceil(rows * bytes_a_vector / shard_bytes))
    if not is_mergeable(factory):
        return Layout(shards, 1)
    return Layout(shards, max(1, min(2, rows // 100), ceil(rows / shards / ROWS_A_PIECE)))


def fill_piece(trained: bytes, pieces: Iterable[tuple[Floats, Ids]], index_path: Path, ids_path: Path) -> int:
    """Adds vectors to a copy of the trained index; writes it and the ids. Returns how many. Memory: one piece.

    Raises ValueError where the ids do not ascend.
    """
    index, kept = deserialize(trained), [np.empty(0, np.int64)]
    for vectors_ND, ids_N in pieces:
        if len(ids_N):
            index.add(vectors_ND)
            kept.append(ids_N)
    ids = np.concatenate(kept)
    if not (ids[1:] > ids[:-1]).all():
        raise ValueError("the pins of a piece do not ascend, or one comes twice")
    faiss.write_index(index, str(index_path))
    np.save(ids_path, ids)
    return len(ids)


def merge_pieces(trained: bytes, pieces: Sequence[tuple[Path, Path]], index_path: Path, ids_path: Path) -> int:
    """Merges pieces, (index, ids) in the order of their rows, into a shard. Returns its rows. Memory: the shard and a piece.

    Each piece's files are deleted as soon as they are merged.
    """
    kept: list[Ids] = [np.empty(0, np.int64)]
    whole = None
    for piece_path, piece_ids in pieces:
        piece = faiss.read_index(str(piece_path))
        kept.append(np.load(piece_ids, allow_pickle=False))
        if whole is None:
            whole = piece
        elif piece.ntotal:
            merge_into(whole, piece)
        piece_path.unlink()
        piece_ids.unlink()
    if whole is None:
        whole = deserialize(trained)
    ids = np.concatenate(kept)
    if whole.ntotal != len(ids) or not (ids[1:] > ids[:-1]).all():
        raise ValueError(f"the pieces hold {whole.ntotal} vectors and {len(ids)} ids, which must ascend")
    faiss.write_index(whole, str(index_path))
    np.save(ids_path, ids)
    return len(ids)
