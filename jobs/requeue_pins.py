"""Tries quarantined pins again, on whichever days they are: after an outage of a store, or once a setting was mended.

    spark-submit jobs/requeue_pins.py --home .pinlake --run-id by-hand --retry-reasons fetch_failed,missing_image --dry-run
    spark-submit jobs/requeue_pins.py --home .pinlake --run-id by-hand --retry-pins 42

Only pins that live, and whose latest row is the quarantined one: what a later day replaced is not looked at. A day with such
pins is committed, checked and recorded as jobs/migrate_pins.py does; the others are not touched. What fails again stays in
quarantine, with its reason of today. `--dry-run` says how many there are, by day and reason, and changes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from embedding.encoder.config import ConfigError
from embedding.encoder.store import LIVE
from embedding.index.release import ReleaseError, live_version
from embedding.log_lines import tell
from embedding.tables.lake import DayChangedError, Lake
from jobs import migrate_pins
from jobs.current import ROW_KEY, current_state, latest_pins, settled_rows
from jobs.resources import ResourcesError
from jobs.retries import Retry, add_retry_arguments, retry_of
from jobs.session import arguments, log, run_program, spark_session


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    add_retry_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be tried again")
    args = parser.parse_args(argv)
    if retry_of(args).nothing:
        parser.error("nothing is asked for: give --retry-reasons, --retry-pins or --retry-quarantined")
    return args


def count_waiting(spark: SparkSession, lake: Lake, version: str, retry: Retry) -> dict[tuple[str, str], int]:
    """Living pins in quarantine that are asked for, by day and reason."""
    state = current_state(lake, version)
    latest = latest_pins(spark, lake, state, ["pin_id"])
    chosen = settled_rows(spark, lake, state).where(retry.chosen())
    rows = chosen.join(latest, ROW_KEY, "left_semi").groupBy("ds", "reason").agg(F.count("*").alias("pins")).collect()
    return {(row.ds, row.reason): row.pins for row in sorted(rows)}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake, retry = Lake(args.home), retry_of(args)
    live = live_version(lake)
    if live is None:
        raise ReleaseError(f"no release is live under {lake.home}: run the day's night with --retry-reasons instead")
    tell(embedding_version=live)
    waiting = count_waiting(spark_session("requeue"), lake, live, retry)
    for (ds, reason), pins in waiting.items():
        log.info("%s: %d in quarantine for %s", ds, pins, reason)
    log.info("to try again under %s: %d%s", live, sum(waiting.values()), ", but this is a dry run" if args.dry_run else "")
    if args.dry_run or not waiting:
        return 0
    asked = ["--retry-reasons", ",".join(sorted(retry.reasons)), "--retry-pins", ",".join(map(str, sorted(retry.pins)))]
    return migrate_pins.main(["--home", args.home, "--run-id", args.run_id, "--to", LIVE, *asked])


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError, ResourcesError)
