"""The current state of all pins as Spark sees it, shared by the programs that build, check and migrate.

A pin's state is its row of the latest day; it is current if that row is no deletion and has a vector of that same day and
content. Only days whose latest night passed are looked at, so that a day in the middle of landing changes nothing
(docs/decisions/0003-tables-are-logs-of-days.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import PIN_EMBEDDINGS, PINS, QUARANTINE
from embedding.index.recall import Floats, Ids, Truth, exact_top_k, merged_top_k
from embedding.index.release import ReleaseError
from embedding.index.tuning import TOP
from embedding.log_lines import tell_day_if_unknown
from embedding.tables.lake import DataFile, Lake, PartitionFilter, data_files
from embedding.tables.nights import passed_days
from embedding.tables.scan import Wanted, projected_schema, scan_file
from jobs.session import ArrowRows, map_arrow, map_items, read_table

PIN_COLUMNS = ("pin_id", "board_id", "title", "image_uri")
ROW_KEY = ["pin_id", "ds", "source_sha256"]
"""Names one row of `pins` and what is in it; `pin_embeddings` and `quarantine` carry it too."""
NEAR = pa.schema([("scores", pa.binary()), ("ids", pa.binary())])
"""A part of an exact search's result: scores and ids (Q, TIES_KNOWN)."""
_MERGERS, TIES_KNOWN = 4, 300
"""Neighbours that an exact search keeps a query: ties for the tenth place are known then, and ten are among a tenth of all."""


@dataclass(frozen=True)
class CurrentState:
    """Which rows of which table versions are looked at: decides a release's content together with the recipe."""

    embedding_version: str
    days: list[str]
    pins_version: int
    pin_embeddings_version: int


def current_state(lake: Lake, embedding_version: str) -> CurrentState:
    """The days that may be read, and the tables' versions now. Raises ReleaseError where no night has passed."""
    if not (days := passed_days(lake, embedding_version)):
        raise ReleaseError(f"no night has passed its gate under {embedding_version}: there is nothing to release")
    tell_day_if_unknown(days)
    return CurrentState(embedding_version, days, lake.open(PINS).version(), lake.open(PIN_EMBEDDINGS).version())


def latest_pins(spark: SparkSession, lake: Lake, state: CurrentState, columns: Sequence[str] = PIN_COLUMNS) -> DataFrame:
    """`columns`, `ds` and `source_sha256` of each pin's latest row within the state's days, but for deleted pins."""
    days = set(state.days)
    read = [*columns, "ds", "deleted", "source_sha256"]
    pins = read_table(spark, lake.open(PINS, state.pins_version), read, lambda partition: partition["ds"] in days)
    row = F.struct(*[name for name in read if name != "pin_id"])
    latest = pins.groupBy("pin_id").agg(F.max_by(row, "ds").alias("row")).select("pin_id", "row.*")
    return latest.where(~F.col("deleted")).drop("deleted")


def _of_version(state: CurrentState) -> PartitionFilter:
    days = set(state.days)
    return lambda partition: partition["ds"] in days and partition["embedding_version"] == state.embedding_version


def current_vectors(
    spark: SparkSession,
    lake: Lake,
    state: CurrentState,
    columns: Sequence[str] = ("embedding",),
    bounds: Ids | None = None,
    wanted: Wanted | None = None,
) -> DataFrame:
    """ROW_KEY and `columns` of the vectors of the state's days: a pin's vectors of earlier days among them.

    `embedding` is the bytes of its float32 (`batch_vectors`): Spark moves a list value by value, and bytes at once. With
    `bounds`, the first pin id of each piece of an index but the first, there is the number of a row's `piece` too. With
    `wanted` those rows alone are read.
    """
    table = lake.open(PIN_EMBEDDINGS, state.pin_embeddings_version)
    schema = projected_schema(table, [*ROW_KEY, *columns])
    numbered = [] if bounds is None else [("piece", pa.int64())]
    given = pa.schema([*((f.name, pa.binary()) if f.name == "embedding" else f for f in schema), *numbered])

    def read(file: DataFile) -> ArrowRows:
        for batch in scan_file(file, schema, wanted):
            found = [_as_bytes(batch.column(f.name)) if f.name == "embedding" else batch.column(f.name) for f in schema]
            if bounds is not None:
                found.append(piece_numbers(batch, bounds))
            yield pa.RecordBatch.from_arrays(found, schema=given)

    return map_items(spark, data_files(table, _of_version(state)), read, given)


def piece_numbers(batch: pa.RecordBatch, bounds: Ids) -> pa.Array:
    """The number of the piece that each row's pin belongs to."""
    return pa.array(np.searchsorted(bounds, batch.column("pin_id").to_numpy(), side="right"), pa.int64())


def _as_bytes(vectors: pa.ListArray) -> pa.BinaryArray:
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    offsets = vectors.offsets.to_numpy()
    buffers = [None, pa.py_buffer((4 * (offsets - offsets[0])).astype(np.int32)), pa.py_buffer(flat)]
    return pa.Array.from_buffers(pa.binary(), len(vectors), buffers)


def described_pins(spark: SparkSession, lake: Lake, state: CurrentState, columns: Sequence[str] = PIN_COLUMNS) -> DataFrame:
    """ROW_KEY and `columns`, one row a current pin. No vector is read for it."""
    return latest_pins(spark, lake, state, columns).join(current_vectors(spark, lake, state, ()), ROW_KEY, "left_semi")


def current_pins(spark: SparkSession, lake: Lake, state: CurrentState, columns: Sequence[str] = PIN_COLUMNS) -> DataFrame:
    """`columns` of `pins` and `embedding`, one row a current pin."""
    pins, vectors = latest_pins(spark, lake, state, columns), current_vectors(spark, lake, state)
    return pins.join(vectors, ROW_KEY, "inner").select(*columns, "embedding")


def settled_rows(spark: SparkSession, lake: Lake, state: CurrentState, also: Sequence[str] = ()) -> DataFrame:
    """ROW_KEY and `reason` of every row of `pins` that ended, under the state's version, with a vector (null) or a reason.

    `also` names further columns that both tables have.
    """
    table = lake.open(PIN_EMBEDDINGS, state.pin_embeddings_version)
    vectors = read_table(spark, table, [*ROW_KEY, *also], _of_version(state))
    # Stage `land` has no embedding version, and so does not count.
    rejected = read_table(spark, lake.open(QUARANTINE), [*ROW_KEY, "reason", *also], _of_version(state))
    return vectors.withColumn("reason", F.lit(None).cast("string")).unionByName(rejected)


def unsettled_pins(spark: SparkSession, lake: Lake, state: CurrentState) -> DataFrame:
    """ROW_KEY of the living pins whose latest row has neither a vector nor a reason: none, or a release would drop pins."""
    latest = latest_pins(spark, lake, state, ["pin_id"])
    return latest.join(settled_rows(spark, lake, state).select(ROW_KEY), ROW_KEY, "left_anti").select(ROW_KEY)


def batch_vectors(batch: pa.RecordBatch | pa.Table) -> tuple[Floats, Ids]:
    """Vectors (N, D), contiguous float32, and pin ids (N,) of rows as `current_vectors` has them."""
    ids = batch.column("pin_id").to_numpy(zero_copy_only=False).astype(np.int64)
    column = batch.column("embedding")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = np.concatenate([np.empty(0, np.float32), *(_values(chunk) for chunk in chunks if len(chunk))])
    return flat.reshape(len(ids), -1 if len(ids) else 0), ids


def _values(column: pa.BinaryArray) -> Floats:
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    values: Floats = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].view(np.float32)
    return values


def task_number() -> int:
    """The number of the Spark task that asks; 0 on a driver."""
    context = TaskContext.get()
    return context.partitionId() if context else 0


def near_row(scores_QM: Floats, ids_QM: Ids) -> pa.RecordBatch:
    """A part of an exact search's result as a row: `NEAR`."""
    return pa.RecordBatch.from_pylist([{"scores": scores_QM.tobytes(), "ids": ids_QM.tobytes()}], schema=NEAR)


def merged_near(parts: Iterable[tuple[bytes, bytes]], queries: int) -> tuple[Floats, Ids]:
    """Parts of an exact search, each (scores, ids) of TIES_KNOWN a query, as one. Memory: two of them."""
    shape = (queries, TIES_KNOWN)
    best = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
    for scores, ids in parts:
        part = np.frombuffer(scores, np.float32).reshape(shape), np.frombuffer(ids, np.int64).reshape(shape)
        best = merged_top_k([best, part], TIES_KNOWN)
    return best


def exact_neighbours(current: DataFrame, queries_QD: Floats, query_ids: Ids) -> Truth:
    """Each query's true ten nearest pins other than itself, by exhaustive search on the executors.

    `query_ids` are the query pins' own, -1 for a query that is no pin. Executors merge what they found before it is collected.
    """

    def search(batches: ArrowRows) -> ArrowRows:
        yield near_row(*exact_top_k(queries_QD, map(batch_vectors, batches), TIES_KNOWN))

    def merge(batches: ArrowRows) -> ArrowRows:
        yield near_row(*merged_near(_near_parts(batches), len(query_ids)))

    found = map_arrow(current.select("pin_id", "embedding"), search, NEAR)
    rows = map_arrow(found.repartition(_MERGERS), merge, NEAR).collect()
    best = merged_near(((bytes(row.scores), bytes(row.ids)) for row in rows), len(query_ids))
    return Truth.of(*best, query_ids, TOP)


def _near_parts(batches: ArrowRows) -> Iterator[tuple[bytes, bytes]]:
    for batch in batches:
        for row in batch.to_pylist():
            yield row["scores"], row["ids"]
