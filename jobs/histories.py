"""Histories: the newest saves of current pins of each user or board; and the interests that a user's history makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, SAVES, USER_INTERESTS, TableContract
from embedding.index.release import ReleaseError
from embedding.tables.lake import Lake, Partition, PartitionFilter, partition_version, replace_partition
from embedding.tables.staging import StagedFile, Stager
from embedding.taste.interests import MAX_PINS, find_interests, label_of
from jobs.current import ROW_KEY, CurrentState, batch_vectors, current_state
from jobs.inputs import LATEST, Inputs, latest_saves, read_latest
from jobs.session import ArrowRows, log, spark_schema, stage

NO_INTEREST = -1
NIGHTLY = 0
"""The revision of a night's rows."""
CURRENT = ["ds", "revision"]
"""What orders a user's rows in time."""
_FOUND = pa.schema(
    [field for field in USER_INTERESTS.schema if field.name not in (*USER_INTERESTS.partition_by, "revision", "run_id")]
)
_MINUTE_US = 60_000_000


def state_until(lake: Lake, version: str, ds: str) -> CurrentState:
    """The state of the days up to one. Raises ReleaseError where none of them has passed."""
    state = current_state(lake, version)
    days = [day for day in state.days if ds in (LATEST, day) or day < ds]
    if not days:
        raise ReleaseError(f"no night up to {ds} has passed its gate under {version}: nobody has interests yet")
    return replace(state, days=days)


def earlier_days(state: CurrentState, ds: str) -> PartitionFilter:
    """The partitions of this encoder before a day."""
    return lambda partition: partition["embedding_version"] == state.embedding_version and str(partition["ds"]) < ds


def days_until(state: CurrentState) -> PartitionFilter:
    """The partitions of this encoder up to the state's last day: without what was written within the day after it."""
    last = state.days[-1]
    return lambda partition: partition["embedding_version"] == state.embedding_version and str(partition["ds"]) <= last


def end_of(ds: str) -> int:
    """Minutes from 1970 to the end of a day."""
    return int((datetime.fromisoformat(ds).replace(tzinfo=UTC) + timedelta(days=1)).timestamp()) // 60


def histories(spark: SparkSession, lake: Lake, state: CurrentState, pins: DataFrame, owner: str = "user_id") -> DataFrame:
    """`histories_of` all users, or with `owner` "board_id" of all living boards."""
    inputs = Inputs(state.days, {contract.name: lake.open(contract).version() for contract in (SAVES, BOARDS)})
    saves = latest_saves(spark, lake, inputs)
    if owner == "board_id":
        saves = saves.join(read_latest(spark, lake, inputs, BOARDS).select(owner), owner, "left_semi")
    return histories_of(saves.groupBy(owner, "pin_id").agg(F.max("saved").alias("saved")), pins, owner)


def histories_of(saved: DataFrame, pins: DataFrame, owner: str = "user_id") -> DataFrame:
    """The owner, its `history`, the MAX_PINS newest of (saved, pin_id, ds, source_sha256), and the `history_hash`.

    Args:
        saved: The owner, pin_id and `saved` in minutes since 1970 (UTC), a row a pin. Pins that are not current are left out.
        pins: ROW_KEY of the current pins.
    """
    full = saved.join(pins.select(ROW_KEY), "pin_id", "inner")
    # By rank, where a sort may spill: no task holds all that a program has saved in somebody's name.
    newest = Window.partitionBy(owner).orderBy(F.desc("saved"), "pin_id")
    kept = full.withColumn("rank", F.row_number().over(newest)).where(F.col("rank") <= MAX_PINS)
    history = F.sort_array(F.collect_list(F.struct("saved", *ROW_KEY)), asc=False)
    return kept.groupBy(owner).agg(history.alias("history")).withColumn("history_hash", F.xxhash64("history"))


def saves_in(found: DataFrame, owner: str = "user_id") -> DataFrame:
    """The owner, its `history_hash`, `saved` and ROW_KEY, one row a save of the histories."""
    rows = found.select(owner, "history_hash", F.explode("history").alias("save"))
    return rows.select(owner, "history_hash", "save.*")


def latest_only(rows: DataFrame, owner: str = "user_id", order: Sequence[str] = tuple(CURRENT)) -> DataFrame:
    """Of each owner the rows that count: those of the last day, and of that day's last revision."""
    last = rows.groupBy(owner).agg(F.max(F.struct(*order)).alias("last")).select(owner, "last.*")
    return rows.join(last, [owner, *order], "left_semi").drop(*order)


def tag_weights(pins: DataFrame) -> DataFrame:
    """`tag` and its `weight`, log(pins / pins that have it). `pins` has `tags`."""
    tags = pins.select(F.explode(F.array_distinct("tags")).alias("tag")).where(F.length(F.trim("tag")) > 0)
    known = tags.groupBy("tag").agg(F.count("*").alias("pins"))
    return known.select("tag", F.log(F.lit(float(pins.count())) / F.col("pins")).alias("weight"))


def tags_of(pins: DataFrame, weights: DataFrame, chosen: DataFrame) -> DataFrame:
    """pin_id and `tags`, with their weights, of the chosen pins."""
    some = pins.join(chosen.select("pin_id").distinct(), "pin_id", "left_semi")
    tags = some.select("pin_id", F.explode(F.array_distinct("tags")).alias("tag")).join(weights, "tag", "inner")
    return tags.groupBy("pin_id").agg(F.collect_list(F.struct("tag", "weight")).alias("tags"))


def interests_of(saves: DataFrame, vectors: DataFrame, tags: DataFrame, medoids: DataFrame, ds: str) -> DataFrame:
    """Rows of `user_interests` of the users whose saves are given (`saves_in`), as of the end of a day.

    Args:
        vectors, tags: Of the pins that they saved: ROW_KEY and `embedding`; pin_id and `tags`.
        medoids: user_id, cluster, embedding and size of the users' interests before.
    """
    # Tags first: each join and the grouping shuffle what was joined before, and a vector is ten times as wide as all the rest.
    full = saves.join(tags, "pin_id", "left").join(vectors, ROW_KEY, "inner")
    cluster = partial(_interests_of_user, end_of(ds))
    return full.groupBy("user_id").cogroup(medoids.groupBy("user_id")).applyInArrow(cluster, spark_schema(_FOUND))


def _interests_of_user(now: int, history: pa.Table, before: pa.Table) -> pa.Table:
    """Rows of `_FOUND`, from a user's history with vectors and tags, and the interests of the night before."""
    if not len(history):
        return _FOUND.empty_table()
    history = history.sort_by([("saved", "descending"), ("pin_id", "ascending")])
    vectors_ND, ids = batch_vectors(history)
    known = before.filter(pa.compute.greater(before["size"], 0))
    earlier = None
    if len(known):
        earlier = known["cluster"].to_numpy(), np.array(known["embedding"].to_pylist(), np.float32)
    saved = history["saved"].to_numpy()
    tags = [{tag["tag"]: tag["weight"] for tag in of_pin or ()} for of_pin in history["tags"].to_pylist()]
    rows = [
        {
            "user_id": history["user_id"][0].as_py(),
            "cluster": interest.cluster,
            "medoid_pin": int(ids[interest.medoid]),
            "embedding": vectors_ND[interest.medoid],
            "importance": interest.importance,
            "size": interest.size,
            "pins": ids[interest.members],
            "saved_at": (saved[interest.members] * _MINUTE_US).tolist(),
            "label": label_of([tags[member] for member in interest.members]),
            "history_hash": history["history_hash"][0].as_py(),
        }
        for interest in find_interests(vectors_ND, saved, now, earlier)
    ]
    return pa.Table.from_pylist(rows, _FOUND)


def without_interests(users: DataFrame) -> DataFrame:
    """A row for each user that says that there is nothing left."""
    nothing = {"cluster": F.lit(NO_INTEREST), "importance": F.lit(0.0), "size": F.lit(0), "history_hash": F.lit(0)}
    return users.select("user_id").withColumns(nothing)


def staged_rows(rows: DataFrame, lake: Lake, contract: TableContract, partition: Partition) -> list[StagedFile]:
    """Executors write the rows as files of a partition, which a commit is to name."""
    root = lake.table_uri(contract)

    def write(batches: ArrowRows) -> Iterable[StagedFile]:
        with Stager(root, contract, partition) as staged:
            for batch in batches:
                staged.add(batch)
            staged.flush()
        return staged.files

    return stage(rows, write).get(contract.name, [])


def replace_day(
    spark: SparkSession,
    lake: Lake,
    contract: TableContract,
    version: str,
    ds: str,
    run_id: str,
    rows_of: Callable[[SparkSession, Lake, CurrentState], DataFrame],
) -> None:
    """Makes what `rows_of` the state gives the whole content of a table's partition of the last day up to `ds` that passed.

    Raises DayChangedError where another run has committed it meanwhile, ReleaseError where no day has passed.
    """
    day = state_until(lake, version, ds).days[-1]
    partition: dict[str, str | None] = {"embedding_version": version, "ds": day}
    expected = partition_version(lake.open(contract), partition)
    state = state_until(lake, version, day)  # after the number: what another run commits from now on is no older than this
    files = staged_rows(rows_of(spark, lake, state).withColumn("run_id", F.lit(run_id)), lake, contract, partition)
    replace_partition(lake, contract, partition, files, expected_version=expected, run_id=run_id)
    log.info("%s: %d rows of %s", day, sum(file.num_rows for file in files), contract.name)
