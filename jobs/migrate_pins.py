"""Embeds under another encoder what lives now: of each day the pins whose latest row is of that day, a commit a day.

    spark-submit jobs/migrate_pins.py --home .pinlake --run-id by-hand --to candidate --slice 0 --of 4

A day belongs to slice (its number in the calendar modulo `--of`), whichever days there are. Rows that a later day superseded,
and deleted pins, cost no encoding. What is settled under the version stays: a killed run, run again, goes on with what is left,
and so does one for the live version, which fills what a corrected export has brought back. Each finished day is checked and
gets its row of `nights`. Exits with 3 at the first day that fails its check.

Runs beside nights: they commit the same days under the same version, and whoever is second looks again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, PINS
from embedding.encoder.config import ConfigError
from embedding.encoder.store import CANDIDATE, fresh_versions
from embedding.index.release import ReleaseError, live_version
from embedding.log_lines import tell
from embedding.quality.gate import NightCounts, check_counts, check_vectors
from embedding.tables.lake import DayChangedError, Lake, partition_version
from embedding.tables.nights import passed_days
from embedding.tables.rows import write_row
from jobs.argument_types import share
from jobs.current import ROW_KEY, CurrentState, current_state, latest_pins, settled_rows
from jobs.embed_day import DayJob, embed_day, kept_frames
from jobs.night_rows import one_row, table_versions, vector_facts
from jobs.resources import ResourcesError
from jobs.retries import add_retry_arguments, retry_of
from jobs.session import EXIT_GATE_FAILED, arguments, job_encoder, log, run_program, spark_session, until_settled


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--to", default=CANDIDATE, help="embedding version of the lake, candidate (the default), or live")
    parser.add_argument("--slice", type=int, default=0, help="which share of the days, from 0")
    parser.add_argument("--of", type=int, default=1, help="number of shares")
    add_retry_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="images a forward pass")
    parser.add_argument(
        "--min-coverage", type=share, default=0.9, help="least share of a day's pins with a vector under the live version"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.slice < args.of:
        parser.error("--slice is from 0 to one less than --of")
    return args


def days_of_slice(days: Sequence[str], number: int, of: int) -> list[str]:
    """The days dealt to a slice: by the calendar, so that a day that comes or goes moves no other."""
    return [ds for ds in days if date.fromisoformat(ds).toordinal() % of == number]


@dataclass(frozen=True)
class Migration:
    """What one run works on: `living` has ROW_KEY of the slice's pins, from the tables' versions in `live`."""

    lake: Lake
    version: str
    live: CurrentState
    living: DataFrame
    args: argparse.Namespace

    def settled(self, spark: SparkSession, version: str, ds: str | None = None, also: Sequence[str] = ()) -> DataFrame:
        """What is settled now under a version, on one day or on all of the live version's."""
        days, vectors = [ds] if ds else self.live.days, self.lake.open(PIN_EMBEDDINGS).version()
        state = replace(self.live, embedding_version=version, days=days, pin_embeddings_version=vectors)
        return settled_rows(spark, self.lake, state, also)


def open_days(spark: SparkSession, migration: Migration, days: Sequence[str]) -> list[str]:
    """The days that have pins left to settle, or have not passed. Reads ids and hashes, a row a day reaches the driver."""
    settled = migration.settled(spark, migration.version)
    settled = settled.where(~retry_of(migration.args).chosen())
    left = migration.living.join(settled, ROW_KEY, "left_anti").groupBy("ds").agg(F.count("*").alias("pins"))
    pins = {row.ds: row.pins for row in left.collect()}
    passed = set(passed_days(migration.lake, migration.version))
    todo = [ds for ds in days if ds in pins or ds not in passed]
    log.info("%d of %d days to do, %d pins to settle under %s", len(todo), len(days), sum(pins.values()), migration.version)
    return todo


def migrate_day(spark: SparkSession, migration: Migration, ds: str) -> list[str]:
    """Embeds, checks and records one day; returns what the check found wrong."""
    lake, args, started = migration.lake, migration.args, time.monotonic()
    tell(ds=ds)
    only = migration.living.where(F.col("ds") == ds).drop("ds")
    job = DayJob(ds, migration.version, args.run_id, args.batch_size, retry_of(args), only)
    statistics: dict[str, float] = {}
    until_settled(lambda: statistics.update(embed_day(spark, lake, job)))
    then, now = (lake.open(PINS, version) for version in (migration.live.pins_version, None))
    if partition_version(then, {"ds": ds}) != partition_version(now, {"ds": ds}):
        log.info("%s was landed anew meanwhile: its night embeds it under %s too; the next run looks again", ds, job.version)
        return []
    counts, comparable = count_day(spark, migration, ds, int(statistics.get("contents", 0)))
    failures = check_counts(counts, min_coverage=0.0)
    if counts.embedded < args.min_coverage * comparable:
        failures.append(
            f"{counts.embedded} pins have a vector, but {comparable} do under {migration.live.embedding_version}: see the "
            f"reasons in quarantine under {job.version}"
        )
    failures += check_vectors(vector_facts(spark, lake, ds, job.version), counts.embedded)
    encode_s = statistics.get("encode_s")
    row = {
        "run_id": args.run_id,
        "ds": ds,
        "embedding_version": job.version,
        "status": "failed" if failures else "passed",
        "failures": failures,
        **{name: getattr(counts, name) for name in ("landed", "embedded", "encoded", "reused", "quarantined", "coverage")},
        **dict.fromkeys(("new", "changed", "deleted"), 0),
        "images_per_s": counts.encoded / encode_s if encode_s and counts.encoded else None,
        "embed_s": round(time.monotonic() - started, 3),
        "encode_s": encode_s,
        **table_versions(lake),
        "checked_at": datetime.now(UTC),
    }
    write_row(lake, NIGHTS, row)
    log.info("%s: %d living pins, %d encoded, %d quarantined", ds, counts.landed, counts.encoded, counts.quarantined)
    return failures


def count_day(spark: SparkSession, migration: Migration, ds: str, contents: int) -> tuple[NightCounts, int]:
    """The counts over the day's living pins, and how many of these have a vector under the live version.

    `contents` is how many were unknown: those of them that ended in quarantine were not encoded.
    """
    living = migration.living.where(F.col("ds") == ds)
    settled = migration.settled(spark, migration.version, ds, also=["content_sha256", "run_id"])
    is_vector, by_this_run = F.col("reason").isNull(), F.col("run_id") == migration.args.run_id
    totals = one_row(
        settled.join(living, ROW_KEY, "left_semi").agg(
            F.count_if(is_vector).alias("embedded"),
            F.count_distinct(F.when(is_vector, F.col("pin_id"))).alias("pins"),
            F.count_distinct(F.when(~is_vector & by_this_run, F.col("content_sha256"))).alias("unreadable"),
            F.count_if(~is_vector).alias("quarantined"),
        )
    )
    live = migration.settled(spark, migration.live.embedding_version, ds).where(is_vector)
    landed, encoded = living.count(), max(0, contents - totals.unreadable)
    counts = NightCounts(landed, 0, landed, 0, totals.embedded, totals.pins, encoded, totals.quarantined)
    return counts, live.join(living, ROW_KEY, "left_semi").count()


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    live = live_version(lake)
    if live is None or not lake.exists(NIGHTS):
        raise ReleaseError(f"no release is live under {lake.home}: there is nothing to migrate")
    version = job_encoder(lake, args.to).version
    if version != live and version not in fresh_versions(lake):
        raise ReleaseError(f"nights do not keep {version} fresh, so it would never be complete: run begin_migration.py first")
    state = current_state(lake, live)
    days = days_of_slice(state.days, args.slice, args.of)
    spark = spark_session(f"migrate {args.slice} of {args.of}")
    with kept_frames() as keep:
        living = keep(latest_pins(spark, lake, state, ["pin_id"]).select(ROW_KEY).where(F.col("ds").isin(days)))
        migration = Migration(lake, version, state, living, args)
        for ds in open_days(spark, migration, days):
            if failures := migrate_day(spark, migration, ds):
                for failure in failures:
                    log.error("%s under %s: %s", ds, version, failure)
                return EXIT_GATE_FAILED
    return 0


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError, ResourcesError)
