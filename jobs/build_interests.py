"""Finds the interests of each user whose history changed, and writes them into the table `user_interests`.

    spark-submit jobs/build_interests.py --home .pinlake --run-id by-hand --encoder live

1. A history is a user's saves of current pins, the newest MAX_PINS of them, with the rows of `pins` that they are.
2. Histories whose hash is that of the user's latest rows are left alone: a night's cost is that of its changes, whether a day
   came late or was corrected. Users whose last save is gone get one row that says so.
3. The vectors of the others' pins meet in the task that clusters the user (embedding/taste/interests.py).
4. The day's partition becomes visible in one commit; what jobs/follow_saves.py wrote into it meanwhile is replaced. Done again
   for the same state, it ends in the same rows.

Every user's history is hashed every night: narrow rows, one shuffle. No history is collected in the driver, and none is longer
than MAX_PINS when it meets its vectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, USER_INTERESTS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables.lake import DayChangedError, Lake
from jobs.current import CurrentState, current_vectors, described_pins
from jobs.histories import (
    CURRENT,
    NIGHTLY,
    earlier_days,
    histories,
    interests_of,
    latest_only,
    replace_day,
    saves_in,
    tag_weights,
    tags_of,
    without_interests,
)
from jobs.inputs import LATEST, day_or_latest
from jobs.lookups import find_rows, wanted_rows
from jobs.session import arguments, job_encoder, read_table, run_program, spark_session, until_settled


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    return parser.parse_args(argv)


def changed_interests(spark: SparkSession, lake: Lake, state: CurrentState) -> DataFrame:
    """The day's rows: of users whose history is another than the one that was clustered last, and of those who have none."""
    ds = state.days[-1]
    pins = described_pins(spark, lake, state, ("pin_id", "tags")).persist()
    users = histories(spark, lake, state, pins)
    table, earlier = lake.open(USER_INTERESTS), earlier_days(state, ds)
    before = latest_only(read_table(spark, table, ["user_id", *CURRENT, "history_hash", "size"], earlier)).persist()
    known = before.select("user_id", "history_hash").distinct()
    changed = users.join(known, ["user_id", "history_hash"], "left_anti").persist()
    saves = saves_in(changed)
    # The medoids of those alone who are clustered again: the rest of a large table's vectors is not read.
    columns, wanted = ["user_id", *CURRENT, "cluster", "embedding", "size"], wanted_rows(changed, "user_id")
    medoids = latest_only(find_rows(spark, table, columns, earlier, wanted))
    tags = tags_of(pins, tag_weights(pins), saves)
    found = interests_of(saves, current_vectors(spark, lake, state), tags, medoids, ds)
    had = before.where(F.col("size") > 0).select("user_id").distinct()
    nobody = without_interests(had.join(users, "user_id", "left_anti"))
    return found.unionByName(nobody, allowMissingColumns=True).withColumn("revision", F.lit(NIGHTLY))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: nobody has interests yet")
    spark = spark_session(f"interests {encoder.version}")
    until_settled(lambda: replace_day(spark, lake, USER_INTERESTS, encoder.version, args.ds, args.run_id, changed_interests))


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError)
