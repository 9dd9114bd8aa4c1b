"""Finds the interests of each user whose history changed, and writes them into the table `user_interests`.

    spark-submit jobs/build_interests.py --home .pinlake --run-id by-hand --encoder live

1. A history is a user's saves of current pins, the newest MAX_PINS of them, with the rows of `pins` that they are.
2. Histories whose hash is that of the user's latest rows are left alone: a night's cost is that of its changes, whether a day
   came late or was corrected. Users whose last save is gone get one row that says so.
3. The vectors of the others' pins meet in the task that clusters the user (embedding/taste/interests.py).
4. The day's partition becomes visible in one commit. Done again for the same state, it ends in the same rows.

Every user's history is hashed every night: narrow rows, one shuffle. No history is collected in the driver, and none is longer
than MAX_PINS when it meets its vectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, SAVES, USER_INTERESTS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables.lake import DayChangedError, Lake, PartitionFilter, partition_version, replace_partition
from embedding.tables.staging import StagedFile, Stager
from embedding.taste.interests import MAX_PINS, find_interests, label_of
from jobs.current import ROW_KEY, CurrentState, batch_vectors, current_state, current_vectors, described_pins
from jobs.inputs import LATEST, Inputs, day_or_latest, latest_saves
from jobs.lookups import find_rows, wanted_rows
from jobs.session import (
    ArrowRows,
    arguments,
    job_encoder,
    log,
    read_table,
    run_program,
    spark_schema,
    spark_session,
    stage,
    until_settled,
)

NO_INTEREST = -1
_FOUND = pa.schema([field for field in USER_INTERESTS.schema if field.name not in (*USER_INTERESTS.partition_by, "run_id")])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    return parser.parse_args(argv)


def histories(spark: SparkSession, lake: Lake, state: CurrentState, pins: DataFrame) -> DataFrame:
    """user_id, `history`: (saved, pin_id, ds, source_sha256) newest first, and its `history_hash`. `pins` has ROW_KEY."""
    inputs = Inputs(state.days, {SAVES.name: lake.open(SAVES).version()})
    once = latest_saves(spark, lake, inputs).groupBy("user_id", "pin_id").agg(F.max("saved").alias("saved"))
    full = once.join(pins.select(ROW_KEY), "pin_id", "inner")
    # By rank, where a sort may spill: no task holds all that a program has saved in somebody's name.
    newest = Window.partitionBy("user_id").orderBy(F.desc("saved"), "pin_id")
    kept = full.withColumn("rank", F.row_number().over(newest)).where(F.col("rank") <= MAX_PINS)
    history = F.sort_array(F.collect_list(F.struct("saved", *ROW_KEY)), asc=False)
    return kept.groupBy("user_id").agg(history.alias("history")).withColumn("history_hash", F.xxhash64("history"))


def weighted_tags(pins: DataFrame, chosen: DataFrame) -> DataFrame:
    """pin_id and `tags`: of each chosen pin its tags with log(pins / pins that have the tag)."""
    tags = pins.select("pin_id", F.explode(F.array_distinct("tags")).alias("tag")).where(F.length(F.trim("tag")) > 0)
    known = tags.groupBy("tag").agg(F.count("*").alias("pins"))
    weighted = tags.join(chosen, "pin_id", "left_semi").join(known, "tag", "inner")
    weight = F.log(F.lit(float(pins.count())) / F.col("pins")).alias("weight")
    return weighted.groupBy("pin_id").agg(F.collect_list(F.struct("tag", weight)).alias("tags"))


def earlier_days(state: CurrentState, ds: str) -> PartitionFilter:
    """The partitions of this encoder before a day."""
    return lambda partition: partition["embedding_version"] == state.embedding_version and str(partition["ds"]) < ds


def latest_only(rows: DataFrame) -> DataFrame:
    """Of each user the rows of the latest day."""
    last = rows.groupBy("user_id").agg(F.max("ds").alias("ds"))
    return rows.join(last, ["user_id", "ds"], "left_semi").drop("ds")


def interests_of_user(now: int, history: pa.Table, before: pa.Table) -> pa.Table:
    """Rows of `_FOUND`, from a user's history with vectors and tags, and the interests of the night before."""
    user = (history if len(history) else before)["user_id"][0].as_py()
    if not len(history):
        return _FOUND.empty_table()
    history = history.sort_by([("saved", "descending"), ("pin_id", "ascending")])
    vectors_ND, ids = batch_vectors(history)
    known = before.filter(pa.compute.greater(before["size"], 0))
    earlier = None
    if len(known):
        earlier = known["cluster"].to_numpy(), np.array(known["embedding"].to_pylist(), np.float32)
    found = find_interests(vectors_ND, history["saved"].to_numpy(), now, earlier)
    tags = [{tag["tag"]: tag["weight"] for tag in of_pin or ()} for of_pin in history["tags"].to_pylist()]
    rows = [
        {
            "user_id": user,
            "cluster": interest.cluster,
            "medoid_pin": int(ids[interest.medoid]),
            "embedding": vectors_ND[interest.medoid],
            "importance": interest.importance,
            "size": interest.size,
            "pins": ids[interest.members],
            "label": label_of([tags[member] for member in interest.members]),
            "history_hash": history["history_hash"][0].as_py(),
        }
        for interest in found
    ]
    return pa.Table.from_pylist(rows, _FOUND)


def changed_interests(spark: SparkSession, lake: Lake, state: CurrentState) -> DataFrame:
    """The day's rows: of users whose history is another than the one that was clustered last, and of those who have none."""
    ds = state.days[-1]
    pins = described_pins(spark, lake, state, ("pin_id", "tags")).persist()
    users = histories(spark, lake, state, pins)
    table, earlier = lake.open(USER_INTERESTS), earlier_days(state, ds)
    before = latest_only(read_table(spark, table, ["user_id", "ds", "history_hash", "size"], earlier)).persist()
    changed = users.join(
        before.select("user_id", "history_hash").distinct(), ["user_id", "history_hash"], "left_anti"
    ).persist()
    saves = changed.select("user_id", "history_hash", F.explode("history").alias("save")).select(
        "user_id", "history_hash", "save.*"
    )
    full = saves.join(current_vectors(spark, lake, state), ROW_KEY, "inner")
    full = full.join(weighted_tags(pins, saves.select("pin_id").distinct()), "pin_id", "left")
    # The medoids of those alone who are clustered again: the rest of a large table's vectors is not read.
    columns, wanted = ["user_id", "ds", "cluster", "embedding", "size"], wanted_rows(changed, "user_id")
    medoids = latest_only(find_rows(spark, table, columns, earlier, wanted))
    cluster = partial(interests_of_user, _end_of(ds))
    found = full.groupBy("user_id").cogroup(medoids.groupBy("user_id")).applyInArrow(cluster, spark_schema(_FOUND))
    had = before.where(F.col("size") > 0).select("user_id").distinct()
    empty = {"cluster": F.lit(NO_INTEREST), "importance": F.lit(0.0), "size": F.lit(0), "history_hash": F.lit(0)}
    nobody = had.join(users, "user_id", "left_anti").select("user_id").withColumns(empty)
    return found.unionByName(nobody, allowMissingColumns=True)


def _end_of(ds: str) -> int:
    """Minutes from 1970 to the end of a day."""
    return int((datetime.fromisoformat(ds).replace(tzinfo=UTC) + timedelta(days=1)).timestamp()) // 60


def state_until(lake: Lake, version: str, ds: str) -> CurrentState:
    """The state of the days up to one. Raises ReleaseError where none of them has passed."""
    state = current_state(lake, version)
    days = [day for day in state.days if ds in (LATEST, day) or day < ds]
    if not days:
        raise ReleaseError(f"no night up to {ds} has passed its gate under {version}: nobody has interests yet")
    return replace(state, days=days)


def write_day(spark: SparkSession, lake: Lake, version: str, ds: str, run_id: str) -> None:
    """Replaces the partition of the last day up to `ds` that passed."""
    day = state_until(lake, version, ds).days[-1]
    partition: dict[str, str | None] = {"embedding_version": version, "ds": day}
    expected = partition_version(lake.open(USER_INTERESTS), partition)
    state = state_until(lake, version, day)  # after the number: what another run commits from now on is no older than this
    rows = changed_interests(spark, lake, state).withColumn("run_id", F.lit(run_id))

    def write(batches: ArrowRows) -> Iterable[StagedFile]:
        with Stager(lake.table_uri(USER_INTERESTS), USER_INTERESTS, partition) as staged:
            for batch in batches:
                staged.add(batch)
            staged.flush()
        return staged.files

    files = stage(rows, write).get(USER_INTERESTS.name, [])
    replace_partition(lake, USER_INTERESTS, partition, files, expected_version=expected, run_id=run_id)
    log.info("%s: %d interests", state.days[-1], sum(file.num_rows for file in files))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: nobody has interests yet")
    spark = spark_session(f"interests {encoder.version}")
    until_settled(lambda: write_day(spark, lake, encoder.version, args.ds, args.run_id))


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError)
