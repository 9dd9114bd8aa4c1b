"""Embeds a landed day: every usable pin ends in `pin_embeddings`, or in `quarantine` with its reason (jobs/embed_day.py).

spark-submit jobs/embed_pins.py --home .pinlake --ds 2026-11-18 --run-id by-hand --encoder live
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables.lake import DayChangedError, Lake
from jobs.embed_day import DayJob, embed_day
from jobs.resources import ResourcesError
from jobs.retries import add_retry_arguments, retry_of
from jobs.session import arguments, job_encoder, log, run_program, spark_session, until_settled
from jobs.step_statistics import StepStatistics


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, encoder=True)
    add_retry_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="images a forward pass")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    version = job_encoder(lake, args.encoder).version
    statistics = StepStatistics(lake, args.ds, args.run_id, f"embed-{version}")
    spark = spark_session(f"embed {args.ds}")
    job = DayJob(args.ds, version, args.run_id, args.batch_size, retry_of(args))
    log.info("%s under %s", args.ds, version)
    until_settled(lambda: statistics.values.update(embed_day(spark, lake, job)))
    statistics.write()


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError, ResourcesError)
