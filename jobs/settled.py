"""What earlier runs have settled of a day under one encoder: which of it stays, and which is to be done anew."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import PIN_EMBEDDINGS, QUARANTINE, Stage
from embedding.encoder.batches import SETTLED
from embedding.tables.lake import Lake, partition_is
from jobs.retries import Retry
from jobs.session import read_table

KEY = ["pin_id", "source_sha256"]


@dataclass(frozen=True)
class Settled:
    """Rows of SETTLED. kept: of the day's rows as they are now. stale: of rows that the day no longer has."""

    kept: DataFrame
    stale: DataFrame


def read_settled(spark: SparkSession, lake: Lake, version: str, ds: str) -> DataFrame:
    """Vectors and reasons of this day under this version."""
    columns = [n for n in SETTLED.names if n in PIN_EMBEDDINGS.schema.names]
    vectors = read_table(spark, lake.open(PIN_EMBEDDINGS), columns, partition_is(ds=ds, embedding_version=version))
    settled = vectors.withColumns({n: F.lit(None).cast("string") for n in ("reason", "detail", "image_uri")})
    columns = [n for n in SETTLED.names if n in QUARANTINE.schema.names]
    where = partition_is(ds=ds, embedding_version=version, stage=Stage.EMBED)
    rejected = read_table(spark, lake.open(QUARANTINE), columns, where)
    return settled.unionByName(rejected, allowMissingColumns=True).select(SETTLED.names)


def split_settled(settled: DataFrame, day: DataFrame, wanted: DataFrame, retry: Retry) -> Settled:
    """What `read_settled` read, by what becomes of it.

    Not kept, of the wanted pins: those that `retry` asks for; and those that were settled twice. A picture that could be read
    once and not the other time, by two runs at once or after an executor was lost, can leave a pin with a vector and a reason.
    """
    twice = settled.groupBy(*KEY).agg(F.count("*").alias("rows")).where(F.col("rows") > 1)
    again = settled.where(retry.chosen()).select(*KEY).union(twice.select(*KEY)).join(wanted.select(*KEY), KEY, "left_semi")
    of_day = settled.join(day.select(*KEY), KEY, "left_semi")
    stale = settled.join(day.select(*KEY), KEY, "left_anti")
    return Settled(of_day.join(again, KEY, "left_anti").select(SETTLED.names), stale)
