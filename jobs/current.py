"""The current state of all pins as Spark sees it, shared by the programs that build and check releases.

A pin's state is its row of the latest day; it is current if that row is no deletion and has a vector of that same day and
content. Only days whose latest night passed are looked at, so that a day in the middle of landing changes nothing
(docs/decisions/0003-tables-are-logs-of-days.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, PINS
from embedding.index.build import TOP
from embedding.index.recall import Floats, Ids, drop_self, exact_top_k, merge_top_k
from embedding.index.release import ReleaseError
from embedding.tables.lake import Lake, Partition
from embedding.tables.scan import read_rows
from jobs.session import ArrowRows, map_arrow, read_table

PIN_COLUMNS = ("pin_id", "board_id", "title", "image_uri")


@dataclass(frozen=True)
class CurrentState:
    """Which rows of which table versions are looked at: decides a release's content together with the recipe."""

    embedding_version: str
    days: list[str]
    pins_version: int
    pin_embeddings_version: int


def current_state(lake: Lake, embedding_version: str) -> CurrentState:
    """The days that may be read, and the tables' versions now. Raises ReleaseError where no night has passed."""
    nights = read_rows(lake.open(NIGHTS), ["ds", "embedding_version", "status", "checked_at"]).to_pylist()
    latest = {
        row["ds"]: row["status"]
        for row in sorted(nights, key=lambda row: row["checked_at"])
        if row["embedding_version"] == embedding_version
    }
    days = sorted(ds for ds, status in latest.items() if status == "passed")
    if not days:
        raise ReleaseError(f"no night has passed its gate under {embedding_version}: there is nothing to release")
    return CurrentState(embedding_version, days, lake.open(PINS).version(), lake.open(PIN_EMBEDDINGS).version())


def current_pins(spark: SparkSession, lake: Lake, state: CurrentState) -> DataFrame:
    """Columns PIN_COLUMNS and `embedding`, one row a current pin."""
    days = set(state.days)

    def readable(partition: Partition) -> bool:
        return (
            partition["ds"] in days and partition.get("embedding_version", state.embedding_version) == state.embedding_version
        )

    columns = [*PIN_COLUMNS, "ds", "deleted", "source_sha256"]
    pins = read_table(spark, lake.open(PINS, state.pins_version), columns, readable)
    row = F.struct(*[name for name in columns if name != "pin_id"])
    latest = pins.groupBy("pin_id").agg(F.max_by(row, "ds").alias("row")).select("pin_id", "row.*").where(~F.col("deleted"))
    vector_columns = ["pin_id", "ds", "source_sha256", "embedding"]
    vectors = read_table(spark, lake.open(PIN_EMBEDDINGS, state.pin_embeddings_version), vector_columns, readable)
    joined = latest.join(vectors, ["pin_id", "ds", "source_sha256"], "inner")
    return joined.select(*PIN_COLUMNS, "embedding")


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


def exact_neighbours(current: DataFrame, queries_QD: Floats, query_ids: Ids) -> Floats:
    """Scores (Q, 10) of each query's true nearest pins other than itself, by exhaustive search on the executors."""
    schema = pa.schema([("scores", pa.binary()), ("ids", pa.binary())])

    def search(batches: ArrowRows) -> ArrowRows:
        scores, ids = exact_top_k(queries_QD, _pieces(batches), TOP + 1)
        yield pa.RecordBatch.from_pylist([{"scores": scores.tobytes(), "ids": ids.tobytes()}], schema=schema)

    rows = map_arrow(current.select("pin_id", "embedding"), search, schema).collect()
    shape = (len(queries_QD), TOP + 1)
    scores = np.concatenate([np.frombuffer(row.scores, np.float32).reshape(shape) for row in rows], axis=1)
    ids = np.concatenate([np.frombuffer(row.ids, np.int64).reshape(shape) for row in rows], axis=1)
    best_scores, best_ids = merge_top_k(scores, ids, TOP + 1)
    return drop_self(best_scores, best_ids, query_ids)[0]


def _pieces(batches: ArrowRows) -> Iterator[tuple[Floats, Ids]]:
    for batch in batches:
        yield batch_vectors(batch)
