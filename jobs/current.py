"""The current state of all pins as Spark sees it, shared by the programs that build, check and migrate.

A pin's state is its row of the latest day; it is current if that row is no deletion and has a vector of that same day and
content. Only days whose latest night passed are looked at, so that a day in the middle of landing changes nothing
(docs/decisions/0003-tables-are-logs-of-days.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import PIN_EMBEDDINGS, PINS, QUARANTINE
from embedding.index.recall import Floats, Ids, Truth, exact_top_k, merge_top_k
from embedding.index.release import ReleaseError
from embedding.index.tuning import TOP
from embedding.tables.lake import Lake, PartitionFilter
from embedding.tables.nights import passed_days
from jobs.session import ArrowRows, map_arrow, read_table

PIN_COLUMNS = ("pin_id", "board_id", "title", "image_uri")
ROW_KEY = ["pin_id", "ds", "source_sha256"]
"""Names one row of `pins` and what is in it; `pin_embeddings` and `quarantine` carry it too."""
TIES_KNOWN = 100
"""Neighbours that an exact search keeps a query: more than ten, so that ties for the tenth place are known."""


@dataclass(frozen=True)
class CurrentState:
    """Which rows of which table versions are looked at: decides a release's content together with the recipe."""

    embedding_version: str
    days: list[str]
    pins_version: int
    pin_embeddings_version: int


def current_state(lake: Lake, embedding_version: str) -> CurrentState:
    """The days that may be read, and the tables' versions now. Raises ReleaseError where no night has passed."""
    days = passed_days(lake, embedding_version)
    if not days:
        raise ReleaseError(f"no night has passed its gate under {embedding_version}: there is nothing to release")
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


def current_pins(spark: SparkSession, lake: Lake, state: CurrentState, columns: Sequence[str] = PIN_COLUMNS) -> DataFrame:
    """`columns` of `pins` and `embedding`, one row a current pin."""
    vector_columns = [*ROW_KEY, "embedding"]
    table = lake.open(PIN_EMBEDDINGS, state.pin_embeddings_version)
    vectors = read_table(spark, table, vector_columns, _of_version(state))
    return latest_pins(spark, lake, state, columns).join(vectors, ROW_KEY, "inner").select(*columns, "embedding")


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


def batch_vectors(batch: pa.RecordBatch) -> tuple[Floats, Ids]:
    """A batch's vectors (N, D), contiguous float32, and pin ids (N,)."""
    ids = batch.column("pin_id").to_numpy(zero_copy_only=False).astype(np.int64)
    flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return np.ascontiguousarray(flat.reshape(len(ids), -1 if len(ids) else 0)), ids


def sample_pins(current: DataFrame, rows: int, count: int, seed: int) -> tuple[Floats, Ids]:
    """About `count` pins chosen at random, at most 1.2 times as many: the only vectors that reach the driver.

    Chosen by a hash of the id, so that the same state gives the same sample however its rows are laid out.
    """
    share = min(1.0, 1.1 * count / max(rows, 1))
    chosen = F.pmod(F.xxhash64("pin_id", F.lit(seed)), F.lit(1_000_000)) < int(share * 1_000_000)
    table = current.where(chosen).select("pin_id", "embedding").limit(max(count, 1)).toArrow().combine_chunks()
    batches = table.sort_by("pin_id").to_batches()
    pieces = [batch_vectors(batch) for batch in batches if batch.num_rows]
    if not pieces:
        raise ReleaseError("the sample is empty")
    return np.concatenate([vectors for vectors, _ in pieces]), np.concatenate([ids for _, ids in pieces])


def exact_neighbours(current: DataFrame, queries_QD: Floats, query_ids: Ids) -> Truth:
    """Each query's true ten nearest pins other than itself, by exhaustive search on the executors.

    `query_ids` are the query pins' own, -1 for a query that is no pin.
    """
    schema = pa.schema([("scores", pa.binary()), ("ids", pa.binary())])

    def search(batches: ArrowRows) -> ArrowRows:
        scores, ids = exact_top_k(queries_QD, _pieces(batches), TIES_KNOWN)
        yield pa.RecordBatch.from_pylist([{"scores": scores.tobytes(), "ids": ids.tobytes()}], schema=schema)

    rows = map_arrow(current.select("pin_id", "embedding"), search, schema).collect()
    shape = (len(queries_QD), TIES_KNOWN)
    scores = np.concatenate([np.frombuffer(row.scores, np.float32).reshape(shape) for row in rows], axis=1)
    ids = np.concatenate([np.frombuffer(row.ids, np.int64).reshape(shape) for row in rows], axis=1)
    return Truth.of(*merge_top_k(scores, ids, TIES_KNOWN), query_ids, TOP)


def _pieces(batches: ArrowRows) -> Iterator[tuple[Floats, Ids]]:
    for batch in batches:
        yield batch_vectors(batch)
