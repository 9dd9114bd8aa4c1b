"""Checks an embedded day and writes its row of `nights`. Exits with 3 where the night must not be read.

    spark-submit jobs/check_night.py --home .pinlake --ds 2026-11-18 --run-id by-hand --encoder live

All counts come from the tables and from the export's own footers, none from what the earlier steps say they did.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import IMPLIED_SOURCE, NIGHTS, PIN_EMBEDDINGS, PINS, QUARANTINE
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.quality.gate import NightCounts, check_counts, check_vectors
from embedding.tables.exports import ExportError
from embedding.tables.lake import Lake, Partition, partition_is
from embedding.tables.rows import write_row
from jobs.argument_types import share
from jobs.lookups import find_rows, wanted_rows
from jobs.night_rows import one_row, table_versions, vector_facts
from jobs.session import EXIT_GATE_FAILED, arguments, job_encoder, log, read_table, run_program, spark_session
from jobs.step_statistics import StepStatistics


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, encoder=True)
    parser.add_argument("--min-coverage", type=share, default=0.9, help="smallest share of landed pins with a vector")
    return parser.parse_args(argv)


def count_new(pins_before: DataFrame, usable: DataFrame) -> int:
    """How many of the day's pins were not alive before it: never seen, or deleted when last seen.

    pins_before: (pin_id, ds, deleted) of earlier days, at least of the day's pins.
    """
    last = pins_before.groupBy("pin_id").agg(F.max_by("deleted", "ds").alias("deleted"))
    return usable.join(last.where(~F.col("deleted")), "pin_id", "left_anti").count()


def count_night(spark: SparkSession, lake: Lake, ds: str, version: str, run_id: str, exported: int) -> NightCounts:
    pins = lake.open(PINS)
    day = read_table(spark, pins, ["pin_id", "deleted", "source_sha256"], partition_is(ds=ds)).persist()
    implied = F.count_if(F.col("source_sha256") == IMPLIED_SOURCE).alias("implied")
    of_day = one_row(day.agg(F.count_if("deleted").alias("deleted"), F.count_if(~F.col("deleted")).alias("usable"), implied))
    usable = day.where(~F.col("deleted"))
    earlier, of_the_day = (lambda partition: str(partition["ds"]) < ds), wanted_rows(usable, "pin_id")
    before = find_rows(spark, pins, ["pin_id", "deleted", "ds"], earlier, of_the_day)
    columns = ["pin_id", "content_sha256", "encoded_by"]
    vectors = read_table(spark, lake.open(PIN_EMBEDDINGS), columns, partition_is(ds=ds, embedding_version=version))
    totals = one_row(
        vectors.agg(
            F.count("*").alias("embedded"),
            F.count_distinct("pin_id").alias("pins"),
            F.count_distinct(F.when(F.col("encoded_by") == run_id, F.col("content_sha256"))).alias("encoded"),
        )
    )

    def of_this_night(partition: Partition) -> bool:
        return partition["ds"] == ds and partition["embedding_version"] in (None, version)

    quarantined = read_table(spark, lake.open(QUARANTINE), ["entity"], of_this_night).where(F.col("entity") == "pin")
    return NightCounts(
        exported=exported + of_day.implied,
        deleted=of_day.deleted,
        landed_usable=of_day.usable,
        new=count_new(before, usable),
        embedded=totals.embedded,
        embedded_pins=totals.pins,
        encoded=totals.encoded,
        quarantined=quarantined.count(),
    )


def night_row(lake: Lake, args: argparse.Namespace, version: str, counts: NightCounts, failures: list[str]) -> dict[str, Any]:
    land, embed = (StepStatistics.read(lake, args.ds, args.run_id, step) for step in ("land", f"embed-{version}"))
    encode_s = embed.get("encode_s")
    return {
        "run_id": args.run_id,
        "ds": args.ds,
        "embedding_version": version,
        "status": "failed" if failures else "passed",
        "failures": failures,
        **{name: getattr(counts, name) for name in ("landed", "new", "changed", "deleted", "embedded", "encoded")},
        "reused": counts.reused,
        "quarantined": counts.quarantined,
        "coverage": counts.coverage,
        "images_per_s": counts.encoded / encode_s if encode_s and counts.encoded else None,
        "land_s": land.get("seconds"),
        "embed_s": embed.get("seconds"),
        "encode_s": encode_s,
        **table_versions(lake),
        "checked_at": datetime.now(UTC),
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    version = job_encoder(lake, args.encoder).version
    exported = StepStatistics.read(lake, args.ds, args.run_id, "land").get("export_pin_rows")
    if exported is None:
        raise ExportError(f"{args.ds} was not landed by run {args.run_id}: run land_exports.py with the same --run-id first")
    spark = spark_session(f"check {args.ds}")
    counts = count_night(spark, lake, args.ds, version, args.run_id, exported)
    failures = check_counts(counts, args.min_coverage)
    failures += check_vectors(vector_facts(spark, lake, args.ds, version), counts.embedded)
    write_row(lake, NIGHTS, night_row(lake, args, version, counts, failures))
    for failure in failures:
        log.error("%s: %s", args.ds, failure)
    log.info("%s: %s", args.ds, counts)
    return EXIT_GATE_FAILED if failures else 0


if __name__ == "__main__":
    run_program(main, ConfigError, ExportError, ReleaseError)
