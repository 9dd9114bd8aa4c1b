"""Embeds a landed day: every usable pin ends in `pin_embeddings`, or in `quarantine` with its reason.

    spark-submit jobs/embed_pins.py --home .pinlake --ds 2026-11-18 --run-id by-hand --encoder pinclip-base

1. Rows of this day that an earlier run settled are kept as they are. A rerun ends here, and writes nothing.
2. The other pins' bytes are fetched and hashed, not decoded: the content hash says what is known already.
3. Known contents give their vector. Each unknown one is decoded and encoded once, however many pins show it.
   (docs/decisions/0004-hash-before-decode.md)
4. Executors stage both tables' files; the driver commits `quarantine`, then `pin_embeddings`, whose commit is the night.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from embedding.contracts import PIN_EMBEDDINGS, PINS, QUARANTINE, Stage, pin_text
from embedding.encoder.batches import HASHED, SETTLED, encode_batches, hash_batches
from embedding.encoder.config import ConfigError, EncoderConfig, embedding_version, load_config
from embedding.encoder.limits import ImageLimits
from embedding.tables.lake import DayChangedError, Lake, Replacement, partition_is, partition_version, replace_in_order
from embedding.tables.staging import StagedFile, Stager
from jobs.session import (
    ArrowRows,
    StepStatistics,
    arguments,
    contract_partition,
    log,
    map_arrow,
    read_table,
    run_program,
    spark_session,
    stage,
    task_threads,
    until_settled,
    with_columns,
)

CONTENTS_A_TASK = 20_000
"""A task's share of a large night: some minutes of a GPU, so that a lost executor costs little."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, encoder=True)
    parser.add_argument("--retry-quarantined", action="store_true", help="try this day's quarantined pins again")
    parser.add_argument("--batch-size", type=int, default=32, help="images a forward pass")
    return parser.parse_args(argv)


def read_settled(spark: SparkSession, lake: Lake, version: str, ds: str, *, with_quarantine: bool) -> DataFrame:
    """What earlier runs of this day have settled under this version."""
    columns = [n for n in SETTLED.names if n in PIN_EMBEDDINGS.schema.names]
    vectors = read_table(spark, lake.open(PIN_EMBEDDINGS), columns, partition_is(ds=ds, embedding_version=version))
    settled = vectors.withColumns({n: F.lit(None).cast("string") for n in ("reason", "detail", "image_uri")})
    if with_quarantine:
        columns = [n for n in SETTLED.names if n in QUARANTINE.schema.names]
        where = partition_is(ds=ds, embedding_version=version, stage=Stage.EMBED)
        bad = read_table(spark, lake.open(QUARANTINE), columns, where)
        settled = settled.unionByName(bad, allowMissingColumns=True)
    return settled.select(SETTLED.names)


def read_day(spark: SparkSession, lake: Lake, ds: str) -> DataFrame:
    """The day's pins that are to be embedded, with the text that the encoder reads."""
    columns = ["pin_id", "source_sha256", "image_uri", "title", "description", "tags", "deleted"]
    schema = pa.schema([HASHED.field(n) for n in ("pin_id", "source_sha256", "image_uri", "text")])

    def add_text(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            fields = (batch.column(n).to_pylist() for n in ("title", "description", "tags"))
            text = pa.array([pin_text(*row) for row in zip(*fields, strict=True)], pa.string())
            kept = [batch.column(n) for n in ("pin_id", "source_sha256", "image_uri")]
            yield pa.RecordBatch.from_arrays([*kept, text], schema=schema)

    return map_arrow(
        read_table(spark, lake.open(PINS), columns, partition_is(ds=ds)).where(~F.col("deleted")), add_text, schema
    )


def hash_contents(pins: DataFrame, limits: ImageLimits) -> DataFrame:
    """Fetches each picture's bytes and names its content; a picture that cannot be fetched gets its reason."""
    return map_arrow(pins, partial(hash_batches, limits=limits), HASHED)


def encode_contents(unknown: DataFrame, config: EncoderConfig, run_id: str, batch_size: int, limits: ImageLimits) -> DataFrame:
    """Encodes each content once; returns an outcome for every pin that shows it."""

    def run(batches: ArrowRows) -> ArrowRows:
        return encode_batches(batches, config, run_id, batch_size=batch_size, threads=task_threads(), limits=limits)

    return map_arrow(unknown, run, SETTLED)


def reuse_vectors(spark: SparkSession, lake: Lake, version: str, hashed: DataFrame, run_id: str) -> DataFrame:
    """Outcomes of the pins whose content has a vector under this version already, whichever pin and day it came from."""
    columns = ["content_sha256", "embedding", "has_image", "has_text", "encoded_by"]
    known = read_table(spark, lake.open(PIN_EMBEDDINGS), columns, partition_is(embedding_version=version))
    wanted = F.broadcast(hashed.select("content_sha256").distinct())
    one_each = (
        known.join(wanted, "content_sha256", "left_semi")
        .groupBy("content_sha256")
        .agg(*[F.first(name).alias(name) for name in columns[1:]])
    )
    outcomes = hashed.where(F.col("reason").isNull()).join(one_each, "content_sha256", "inner")
    return outcomes.withColumn("run_id", F.lit(run_id)).select(SETTLED.names)


def group_unknown(hashed: DataFrame, reused: DataFrame) -> DataFrame:
    """One row a content without a vector, with all the pins that show it."""
    unknown = hashed.where(F.col("reason").isNull()).join(reused.select("pin_id"), "pin_id", "left_anti")
    pin = F.struct("pin_id", "source_sha256", "image_uri")
    firsts = [F.first(name).alias(name) for name in ("image_uri", "text")]
    return unknown.groupBy("content_sha256").agg(F.collect_list(pin).alias("pins"), *firsts)


def stage_outcomes(lake: Lake, ds: str, version: str, batches: ArrowRows) -> Iterable[StagedFile]:
    """Writes vectors as files of `pin_embeddings`, the others as files of `quarantine`."""
    partition = contract_partition(PIN_EMBEDDINGS, ds=ds, embedding_version=version)
    quarantine = contract_partition(QUARANTINE, ds=ds, stage=Stage.EMBED, embedding_version=version)
    with (
        Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, partition) as embedded,
        Stager(lake.table_uri(QUARANTINE), QUARANTINE, quarantine) as rejected,
    ):
        for batch in batches:
            good = pc.is_null(batch.column("reason"))
            embedded.add(batch.filter(good))
            rejected.add(with_columns(batch.filter(pc.invert(good)), {"entity": "pin"}))
        embedded.flush()
        rejected.flush()
    return [*embedded.files, *rejected.files]


def embed_day(
    spark: SparkSession, lake: Lake, args: argparse.Namespace, config: EncoderConfig, statistics: StepStatistics
) -> None:
    version = str(embedding_version(config))
    contracts = (QUARANTINE, PIN_EMBEDDINGS)
    partitions = {c.name: contract_partition(c, ds=args.ds, embedding_version=version, stage=Stage.EMBED) for c in contracts}
    seen = {c.name: partition_version(lake.open(c), partitions[c.name]) for c in contracts}
    day = read_day(spark, lake, args.ds).persist(StorageLevel.MEMORY_AND_DISK)
    settled = read_settled(spark, lake, version, args.ds, with_quarantine=not args.retry_quarantined)
    kept = settled.join(day.select("pin_id", "source_sha256"), ["pin_id", "source_sha256"], "left_semi").select(SETTLED.names)
    work = day.join(kept.select("pin_id"), "pin_id", "left_anti").persist(StorageLevel.MEMORY_AND_DISK)
    stale = read_settled(spark, lake, version, args.ds, with_quarantine=True).join(
        day.select("pin_id", "source_sha256"), ["pin_id", "source_sha256"], "left_anti"
    )
    if work.select("pin_id").unionByName(stale.select("pin_id")).isEmpty():
        log.info("every pin of %s is settled under %s: nothing to do", args.ds, version)
        return
    limits = ImageLimits.from_environment()
    tasks = spark.sparkContext.defaultParallelism
    hashed = hash_contents(work.repartition(tasks), limits).persist(StorageLevel.MEMORY_AND_DISK)
    reused = reuse_vectors(spark, lake, version, hashed, args.run_id).persist(StorageLevel.MEMORY_AND_DISK)
    unknown = group_unknown(hashed, reused).persist(StorageLevel.MEMORY_AND_DISK)
    contents = unknown.count()
    shared_out = unknown.repartition(max(tasks, contents // CONTENTS_A_TASK))
    encoded = encode_contents(shared_out, config, args.run_id, args.batch_size, limits)
    unreadable = hashed.where(F.col("reason").isNotNull()).withColumn("run_id", F.lit(args.run_id))
    outcomes = encoded.unionByName(reused).unionByName(kept).unionByName(unreadable.drop("text"), allowMissingColumns=True)
    started = time.monotonic()
    staged = stage(outcomes.select(SETTLED.names), partial(stage_outcomes, lake, args.ds, version))
    statistics.values |= {"contents": contents, "encode_s": round(time.monotonic() - started, 3)}
    changes = [Replacement(c, partitions[c.name], staged.get(c.name, []), seen[c.name]) for c in contracts]
    replace_in_order(lake, changes, run_id=args.run_id)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    config = load_config(args.encoder)
    statistics = StepStatistics(lake, args.ds, args.run_id, "embed")
    spark = spark_session(f"embed {args.ds}")
    until_settled(lambda: embed_day(spark, lake, args, config, statistics))
    statistics.write()


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError)
