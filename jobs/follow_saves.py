"""Brings saves into their users' interests as they happen: a stream of events in, rows of `user_interests` out.

    spark-submit jobs/follow_saves.py --home .pinlake --run-id follower --events .events --checkpoint .follower

`--events` is a folder in which files of JSON lines appear, each at once (by a rename): user_id, pin_id, board_id, saved_at and
deleted, as in the export's saves; `saved_at` of a deletion is when the save was taken back. Spark's Structured Streaming reads
each file once. A batch of new files:
1. The saves of its users as their latest rows have them, and the events: the newest event of a user and pin counts.
2. Whose history is another now is clustered as a night does it (jobs/histories.py), against the interests of the last night.
3. One commit, which counts the batch, so that a killed one is added once; that day's night replaces the rows.

A line that is no event, or lies in the future, is written below the checkpoint's `refused`, with the reason. What waits for the
night: a save of a pin without a vector; a pin that was taken off one board and is still on another. `--once` handles what is
there and ends. A batch costs the id columns of `pin_embeddings` and `user_interests`, and its users' histories.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from embedding.contracts import EXPORT_SCHEMAS, NIGHTS, USER_INTERESTS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.log_lines import tell
from embedding.tables.lake import DayChangedError, Lake, append_once, counter, partition_is, transaction_app
from jobs.argument_types import whole_number
from jobs.current import ROW_KEY, CurrentState, current_state, current_vectors, described_pins
from jobs.histories import (
    CURRENT,
    histories_of,
    interests_of,
    latest_only,
    saves_in,
    staged_rows,
    tag_weights,
    tags_of,
    without_interests,
)
from jobs.lookups import find_rows, wanted_rows
from jobs.session import arguments, job_encoder, log, run_program, spark_schema, spark_session, until_settled

FOLLOWER = "follow_saves"
"""The table's counter of batches, whichever stream they were of: it is the revision of their rows."""
_EVENT = StructType([*spark_schema(EXPORT_SCHEMAS["saves"]).fields, StructField("malformed", StringType())])
_AHEAD = "10 minutes"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--events", required=True, help="the folder in which files of JSON lines appear")
    parser.add_argument("--checkpoint", required=True, help="this stream's own folder: how far it has come")
    at_least_one = partial(whole_number, least=1)
    parser.add_argument(
        "--every-s", type=at_least_one, default=10, help="seconds from one look to the next (default %(default)s)"
    )
    parser.add_argument("--files", type=at_least_one, default=1_000, help="files of a batch at most (default %(default)s)")
    parser.add_argument("--once", action="store_true", help="handle what is there, and end")
    return parser.parse_args(argv)


def parsed(lines: DataFrame) -> DataFrame:
    """The lines as events, with the `reason` why one is refused, or null."""
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "malformed"}
    rows = lines.select("value", F.from_json("value", _EVENT, options).alias("event")).select("value", "event.*")

    def but(wrong: Column, reason: str, otherwise: Column) -> Column:
        return F.when(wrong, F.lit(reason)).otherwise(otherwise)

    ahead = F.col("saved_at") > F.current_timestamp() + F.expr(f"INTERVAL {_AHEAD}")
    reason = but(ahead, "in the future", F.lit(None).cast("string"))
    for name in ("saved_at", "pin_id", "user_id"):
        reason = but(F.col(name).isNull(), f"no {name}", reason)
    return rows.withColumn("reason", but(F.col("malformed").isNotNull(), "not an event", reason))


class Follower:
    """Handles one batch after the other. What it keeps between them is of the nights: pins, their tags' weights."""

    def __init__(self, spark: SparkSession, lake: Lake, args: argparse.Namespace):
        self._spark, self._lake, self._args = spark, lake, args
        self._state: CurrentState | None = None
        self._frames: list[DataFrame] = []
        self._pins = self._weights = spark.range(0)

    def __call__(self, lines: DataFrame, batch: int) -> None:
        """Adds a batch to the table, unless it is there."""
        started = time.monotonic()
        # Spark names a stream in its checkpoint: who begins a new one begins to count anew.
        stream = f"{FOLLOWER}/{self._spark.sparkContext.getLocalProperty('sql.streaming.queryId')}"
        rows = self._kept(parsed(lines))
        refused = rows.where(F.col("reason").isNotNull()).select("reason", F.col("value").alias("line"))
        if not refused.isEmpty():
            refused.write.mode("overwrite").json(f"{self._args.checkpoint}/refused/batch={batch}")
        when = F.struct("saved_at", F.coalesce("deleted", F.lit(False)).alias("deleted"))
        events = rows.where(F.col("reason").isNull()).groupBy("user_id", "pin_id").agg(F.max(when).alias("event"))
        events = self._kept(events.select("user_id", "pin_id", "event.*"))
        until_settled(lambda: self._add(events, stream, batch))
        said = events.agg(F.count("*").alias("events"), F.count_distinct("user_id").alias("users")).collect()[0]
        took = time.monotonic() - started
        log.info("batch %d: %d saves of %d users, %d lines refused, %.1f s", batch, *said, refused.count(), took)
        while self._frames:
            self._frames.pop().unpersist()

    def _kept(self, frame: DataFrame) -> DataFrame:
        """Persisted until the batch is done."""
        self._frames.append(frame.persist())
        return frame

    def _add(self, events: DataFrame, stream: str, batch: int) -> None:
        lake, table = self._lake, self._lake.open(USER_INTERESTS)
        last = events.agg(F.max(F.to_date("saved_at"))).collect()[0][0]
        if last is None or counter(table, stream) > batch:
            return
        state = self._current()
        open_day = date.fromisoformat(state.days[-1]) + timedelta(days=1)
        ds = max(last, open_day).isoformat()
        tell(ds=ds)
        partition: dict[str, str | None] = {"embedding_version": state.embedding_version, "ds": ds}
        seen = {app: counter(table, app) for app in (transaction_app(partition), FOLLOWER, stream)}
        revision = seen[FOLLOWER] + 1
        columns = ["user_id", *CURRENT, "cluster", "embedding", "size", "pins", "saved_at", "history_hash"]
        wanted = wanted_rows(events.select("user_id").distinct(), "user_id")
        of_encoder = partition_is(embedding_version=state.embedding_version)
        rows = self._kept(find_rows(self._spark, table, columns, of_encoder, wanted))
        found = self._interests(events, rows, state, ds).withColumns(
            {"run_id": F.lit(self._args.run_id), "revision": F.lit(revision)}
        )
        # One file: a night's replaces it, and until then there is one for each batch.
        files = staged_rows(found.repartition(1), lake, USER_INTERESTS, partition)
        append_once(
            lake,
            USER_INTERESTS,
            partition,
            files,
            seen=seen,
            moved={FOLLOWER: revision, stream: batch + 1},
            run_id=self._args.run_id,
        )

    def _interests(self, events: DataFrame, rows: DataFrame, state: CurrentState, ds: str) -> DataFrame:
        """New rows of the users whose history the events change. `rows` are all that the table has of the users."""
        latest = latest_only(rows)
        had = latest.where(F.col("size") > 0)
        users = histories_of(merged(had, events), self._pins)
        known = latest.select("user_id", "history_hash").distinct()
        changed = self._kept(users.join(known, ["user_id", "history_hash"], "left_anti"))
        saves = saves_in(changed)
        vectors = current_vectors(self._spark, self._lake, state, wanted=wanted_rows(saves.select("pin_id"), "pin_id"))
        medoids = latest_only(rows.where(F.col("ds") < ds)).join(changed.select("user_id"), "user_id", "left_semi")
        columns = ["user_id", "cluster", "embedding", "size"]
        found = interests_of(saves, vectors, tags_of(self._pins, self._weights, saves), medoids.select(columns), ds)
        gone = had.select("user_id").distinct().join(users, "user_id", "left_anti")
        return found.unionByName(without_interests(gone), allowMissingColumns=True)

    def _current(self) -> CurrentState:
        # Asked for anew: a migration may have made another encoder the live one.
        state = current_state(self._lake, job_encoder(self._lake, self._args.encoder).version)
        if state != self._state:
            self._pins.unpersist()
            self._weights.unpersist()
            self._pins = described_pins(self._spark, self._lake, state, ("pin_id", "tags")).select(*ROW_KEY, "tags").persist()
            self._weights = tag_weights(self._pins).persist()
            self._state = state
        return state


def merged(had: DataFrame, events: DataFrame) -> DataFrame:
    """user_id, pin_id and `saved`, minutes: what users had saved by their rows, and what the events say since."""
    save = F.explode(F.arrays_zip("pins", "saved_at")).alias("save")
    before = had.select("user_id", save).select("user_id", F.col("save.pins").alias("pin_id"), "save.saved_at")
    both = before.withColumnRenamed("saved_at", "before").join(events, ["user_id", "pin_id"], "full_outer")
    minute = F.date_trunc("minute", "saved_at")
    gone = F.coalesce(F.col("deleted") & (F.col("before").isNull() | (minute >= F.col("before"))), F.lit(False))
    saved = F.greatest("before", F.when(~F.col("deleted"), minute))
    return both.where(~gone).select("user_id", "pin_id", F.floor(F.unix_timestamp(saved) / 60).alias("saved"))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    if not lake.exists(NIGHTS) or not lake.exists(USER_INTERESTS):
        raise ReleaseError(f"nobody has interests yet under {lake.home}: run jobs/build_interests.py first")
    spark = spark_session("follow saves")
    lines = spark.readStream.option("maxFilesPerTrigger", args.files).text(args.events)
    follower = lines.writeStream.foreachBatch(Follower(spark, lake, args)).queryName(FOLLOWER)
    every = {"availableNow": True} if args.once else {"processingTime": f"{args.every_s} seconds"}
    follower.option("checkpointLocation", args.checkpoint).trigger(**every).start().awaitTermination()


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError)
