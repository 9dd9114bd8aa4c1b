"""The pieces of an index, filled by executors: where a pin's words meet its vector."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from embedding.index.build import Layout, fill_piece
from embedding.index.recall import Floats, Ids, exact_top_k
from embedding.index.tuning import omp_threads
from embedding.tables import storage
from jobs.current import ROW_KEY, TIES_KNOWN
from jobs.release_files import DESCRIBED, ROWS_A_GROUP, WRITTEN, Written, collected, upload, uploaded
from jobs.session import ArrowRows, map_arrow, spark_schema


@dataclass(frozen=True)
class Places:
    """Where the pieces of a build go, where its release, and the first pin id of each piece but the first."""

    work_uri: str
    release: str
    bounds: Ids


def fill_pieces(
    described: DataFrame, vectors: DataFrame, layout: Layout, trained: bytes, queries_QD: Floats, threads: int, to: Places
) -> Written:
    """Each task adds a range of pin ids to a copy of the trained index, describes its pins, and searches them exactly.

    A pin's words and its vector meet in the task that needs both: a vector crosses the network once, and is read once.

    Args:
        described: ROW_KEY and DESCRIBED, one row a current pin.
        vectors: ROW_KEY and `embedding`, those of earlier days among them.
        to: Pieces, and the queries' nearest in each (`read_near`), go to its `work_uri`, descriptions to its `release`.
    """

    def fill(pins: pa.Table, found: pa.Table) -> pa.Table:
        number = (pins if len(pins) else found)["piece"][0].as_py()
        if not len(pins):
            return WRITTEN.empty_table()
        words, vectors_ND, ids = _matched(pins, found)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"pins-{number:05d}.parquet"
            pq.write_table(words, file, ROWS_A_GROUP, compression="zstd", write_page_index=True)
            paths = [Path(folder) / f"piece-{number:05d}.{kind}" for kind in ("faiss", "npy")]
            with omp_threads(threads):
                rows = fill_piece(trained, [(vectors_ND, ids)], *paths)
                near = exact_top_k(queries_QD, [(vectors_ND, ids)], TIES_KNOWN)
            np.savez(Path(folder) / near_file(number), *near)
            upload([*paths, Path(folder) / near_file(number)], to.work_uri)
            return pa.Table.from_batches([uploaded(number, rows, [file], to.release)])

    both = [_in_pieces(frame, to.bounds, layout).groupBy("piece") for frame in (described, vectors)]
    return collected(both[0].cogroup(both[1]).applyInArrow(fill, spark_schema(WRITTEN)))


def near_file(piece: int) -> str:
    """Where a piece's nearest to the queries are, below `work_uri`."""
    return f"near-{piece:05d}.npz"


def read_near(to: Places, pieces: Iterable[int]) -> Iterator[tuple[bytes, bytes]]:
    """What `fill_pieces` found to be the queries' nearest, piece by piece: (scores, ids)."""
    for piece in pieces:
        with np.load(io.BytesIO(storage.read_bytes(f"{to.work_uri}/{near_file(piece)}")), allow_pickle=False) as near:
            yield near["arr_0"].tobytes(), near["arr_1"].tobytes()


def piece_bounds(sample_ids: Ids, layout: Layout) -> Ids:
    """The first pin id of each piece but the first, so that a sample of the ids falls evenly."""
    places = [len(sample_ids) * piece // layout.pieces for piece in range(1, layout.pieces)]
    return np.sort(sample_ids)[places]


def _in_pieces(frame: DataFrame, bounds: Ids, layout: Layout) -> DataFrame:
    """The rows with the number of their `piece`, those of a piece in one task."""
    schema = pa.schema([*to_arrow_schema(frame.schema), ("piece", pa.int64())])

    def number(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            pieces = np.searchsorted(bounds, batch.column("pin_id").to_numpy(), side="right")
            yield pa.RecordBatch.from_arrays([*batch.columns, pa.array(pieces, pa.int64())], schema=schema)

    return map_arrow(frame, number, schema).repartition(layout.pieces, "piece")


def _matched(pins: pa.Table, found: pa.Table) -> tuple[pa.Table, Floats, Ids]:
    """A piece's descriptions, vectors (N, D) and ids, all ascending by id. Raises ValueError for a pin without a vector."""
    keys = [
        table.select(ROW_KEY).append_column(n, pa.array(np.arange(len(table))))
        for n, table in (("pin", pins), ("vector", found))
    ]
    pairs = keys[0].join(keys[1], ROW_KEY, join_type="inner").sort_by("pin_id")
    if len(pairs) != len(pins):
        raise ValueError(f"{len(pins)} pins meet {len(pairs)} vectors")
    words = pins.select(DESCRIBED.names).take(pairs["pin"]).cast(DESCRIBED)
    column = found["embedding"]
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    vectors_ND = np.concatenate(flat).reshape(len(found), -1)
    return words, np.ascontiguousarray(vectors_ND[pairs["vector"].to_numpy()], np.float32), words["pin_id"].to_numpy()
