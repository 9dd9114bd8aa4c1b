"""Users' histories with the vectors of their pins, as the model of users reads them; and staged as files to learn from.

No history passes through the driver: executors write, the driver gets names and counts.
"""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.taste.user_models import STAGED, STAGED_PINS, USERS_A_GROUP, StagedHistories
from jobs.current import ROW_KEY, CurrentState, current_vectors, described_pins, task_number
from jobs.histories import histories, saves_in
from jobs.session import ArrowRows, map_arrow

USERS_A_FILE, POOL = 4_096, 20_000
_HASHED = 1 << 30
_WRITTEN = pa.schema([("uri", pa.string()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Staged:
    """What was staged: users' histories and how many, and a file of pins drawn at random out of `pins`."""

    histories: StagedHistories
    users: int
    pins_uri: str
    pins: int


def newest_saves(spark: SparkSession, lake: Lake, state: CurrentState, pins: DataFrame, most: int) -> DataFrame:
    """As `histories`, of each user the newest `most` saves."""
    return histories(spark, lake, state, pins).withColumn("history", F.slice("history", 1, most))


def with_vectors(spark: SparkSession, lake: Lake, state: CurrentState, saves: DataFrame) -> DataFrame:
    """Columns of STAGED and `history_hash`, one row a user, newest first. `saves` is as of `saves_in`, and may have `saves`."""
    counted = saves if "saves" in saves.columns else saves.withColumn("saves", F.lit(0).cast("long"))
    full = counted.join(current_vectors(spark, lake, state), ROW_KEY, "inner")
    save = F.struct("saved", "pin_id", "saves", "embedding")
    users = full.groupBy("user_id", "history_hash").agg(F.sort_array(F.collect_list(save), asc=False).alias("h"))
    columns = {"pins": "h.pin_id", "saved": "h.saved", "saves": "h.saves", "vectors": "h.embedding"}
    return users.withColumns({name: F.col(column) for name, column in columns.items()}).select(*STAGED.names, "history_hash")


def drawn(key: str, wanted: int, count: int, seed: int) -> Column:
    """Whether a row is among about `wanted` of `count`, by a hash of its key: the same rows each time."""
    return F.pmod(F.xxhash64(key, F.lit(seed)), F.lit(_HASHED)) < int(_HASHED * min(1.0, wanted / max(1, count)))


def stage_histories(
    spark: SparkSession, lake: Lake, state: CurrentState, root: str, *, most_users: int, max_pins: int, seed: int
) -> Staged:
    """Writes the histories of at most about `most_users` users below `root`, and POOL pins. The same state, the same rows."""
    pins = described_pins(spark, lake, state, ("pin_id",)).persist()
    users = newest_saves(spark, lake, state, pins, max_pins).persist()
    chosen = users.where(drawn("user_id", most_users, users.count(), seed)).persist()
    count = chosen.count()
    saves = saves_in(chosen)
    counts = saves.groupBy("pin_id").agg(F.count("*").alias("saves")).persist()
    rows = with_vectors(spark, lake, state, saves.join(counts, "pin_id", "inner")).drop("history_hash")
    files = max(1, -(-count // USERS_A_FILE))
    in_order = rows.repartition(files, "user_id").sortWithinPartitions("user_id")
    uris = write_parquet(in_order, f"{root}/histories", STAGED)
    all_pins = pins.count()
    pool = pins.where(drawn("pin_id", POOL, all_pins, seed)).join(current_vectors(spark, lake, state), ROW_KEY, "inner")
    pool = pool.join(counts, "pin_id", "left").fillna(0, ["saves"]).select(*STAGED_PINS.names)
    (pins_uri,) = write_parquet(pool.coalesce(1), f"{root}/pins", STAGED_PINS) or [""]
    all_saves = counts.agg(F.sum("saves")).collect()[0][0] or 0
    return Staged(StagedHistories(uris, max(1, int(all_saves))), count, pins_uri, all_pins)


def write_parquet(rows: DataFrame, name: str, schema: pa.Schema) -> list[str]:
    """Writes a file a partition that has rows; returns their URIs in the partitions' order."""
    written = map_arrow(rows, partial(_write_one, name=name, schema=schema), _WRITTEN).collect()
    return sorted(row.uri for row in written)


def _write_one(batches: ArrowRows, name: str, schema: pa.Schema) -> ArrowRows:
    uri, rows, sink, writer = f"{name}-{task_number():05d}-{uuid.uuid4().hex}.parquet", 0, io.BytesIO(), None
    filesystem, path = storage.filesystem_of(uri)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    for batch in batches:
        if writer is None:
            sink = filesystem.open_output_stream(path, compression=None)
            writer = pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False)
        writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=USERS_A_GROUP)
        rows += batch.num_rows
    if writer is not None:
        writer.close()
        sink.close()
        yield pa.RecordBatch.from_pylist([{"uri": uri, "rows": rows}], schema=_WRITTEN)
