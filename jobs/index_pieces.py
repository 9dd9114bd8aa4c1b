"""The pieces of an index, filled by executors: where a pin's words meet its vector."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from embedding.index.build import Layout, fill_piece
from embedding.index.part import DESCRIBED
from embedding.index.recall import Floats, Ids, exact_top_k
from embedding.index.tuning import omp_threads
from embedding.tables import storage
from embedding.tables.scan import matching_rows
from jobs.current import ROW_KEY, TIES_KNOWN, batch_vectors, piece_numbers
from jobs.release_files import ROWS_A_GROUP, WRITTEN, Written, collected, upload, uploaded
from jobs.session import ArrowRows, map_arrow, spark_schema


@dataclass(frozen=True)
class Places:
    """Where the pieces of a build go, where its release, and the first pin id of each piece but the first."""

    work_uri: str
    release: str
    bounds: Ids


def fill_pieces(
    described: DataFrame,
    vectors: Callable[[Ids], DataFrame],
    layout: Layout,
    trained: bytes,
    queries_QD: Floats,
    threads: int,
    to: Places,
) -> Written:
    """Each task adds a range of pin ids to a copy of the trained index, describes its pins, and searches them exactly.

    A pin's words and its vector meet in the task that needs both: a vector crosses the network once, and is read once.

    Args:
        described: ROW_KEY and DESCRIBED, one row a current pin.
        vectors: By pieces' bounds ROW_KEY, `embedding` and `piece`, vectors of earlier days among them.
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

    frames = _numbered(described, to.bounds), vectors(to.bounds)
    both = [frame.repartition(layout.pieces, "piece").groupBy("piece") for frame in frames]
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


def _numbered(frame: DataFrame, bounds: Ids) -> DataFrame:
    """The rows with the number of their `piece`."""
    schema = pa.schema([*to_arrow_schema(frame.schema), ("piece", pa.int64())])

    def number(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            yield pa.RecordBatch.from_arrays([*batch.columns, piece_numbers(batch, bounds)], schema=schema)

    return map_arrow(frame, number, schema)


def _matched(pins: pa.Table, found: pa.Table) -> tuple[pa.Table, Floats, Ids]:
    """A piece's descriptions, vectors (N, D) and ids, all ascending by id. Raises ValueError for a pin without a vector."""
    of_pins, of_vectors = matching_rows(pins, found, ROW_KEY)
    if len(of_pins) != len(pins):
        raise ValueError(f"{len(pins)} pins meet {len(of_pins)} vectors")
    words = pins.select(DESCRIBED.names).take(of_pins).cast(DESCRIBED)
    vectors_ND, _ = batch_vectors(found)
    return words, vectors_ND[of_vectors.to_numpy()], words["pin_id"].to_numpy()
