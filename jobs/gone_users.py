"""Users' deletions while days land: which rows of a day they reach, and which deletions they imply.

A user who is deleted on a day has nothing left of what they made or saved until the end of that day. Two halves of one rule
keep that so in whichever order days land (docs/decisions/0015-forgetting.md):
- The day of the deletion gets a deletion of each pin, board and save that earlier days have of the user and that still stands.
- Any day that lands from then on, the deletion's own or an earlier one, lands what the user has there as deletions.

A deletion is committed before the rows of other days are looked at, and a day that has committed its rows looks once more
who was deleted meanwhile: of two days that land side by side, one sees the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, FORGOTTEN_SOURCE, IMPLIED_SOURCE, PINS, SAVES, USERS, TableContract
from embedding.tables.lake import Lake, Partition, PartitionFilter, data_files, partition_is, replace_partition
from embedding.tables.staging import StagedFile
from jobs.lookups import find_rows, wanted_rows
from jobs.session import read_table


def land_users(lake: Lake, staged: Sequence[StagedFile], ds: str, run_id: str, seen: int) -> None:
    """Commits the day's rows of `users`; nothing where there are none and were none, as on most days of a small platform."""
    if staged or data_files(lake.open(USERS), partition_is(ds=ds)):
        replace_partition(lake, USERS, {"ds": ds}, staged, expected_version=seen, run_id=run_id)


def deleted_users(spark: SparkSession, lake: Lake, where: PartitionFilter) -> DataFrame | None:
    """user_id of who was deleted on the days that `where` keeps; None where no such day says anything of users."""
    table = lake.open(USERS)
    if not data_files(table, where):
        return None
    return read_table(spark, table, ["user_id", "deleted"], where).where("deleted").select("user_id").distinct()


def gone_users(spark: SparkSession, lake: Lake, ds: str) -> DataFrame | None:
    """user_id of those whom nothing is left of on a day: who was deleted on it or on a later one."""
    return deleted_users(spark, lake, lambda partition: str(partition["ds"]) >= ds)


def without_content(judged: DataFrame, gone: DataFrame | None) -> DataFrame:
    """A day's judged rows, those of the users who are gone as deletions."""
    if gone is None:
        return judged
    marked = judged.join(gone.withColumn("gone", F.lit(True)), "user_id", "left")
    is_gone = F.coalesce("gone", F.lit(False)) & ~F.col("deleted")
    source = F.when(is_gone & F.col("source_sha256").isNotNull(), FORGOTTEN_SOURCE).otherwise(F.col("source_sha256"))
    return marked.withColumns({"source_sha256": source, "deleted": F.col("deleted") | is_gone}).select(judged.columns)


def with_implied(spark: SparkSession, lake: Lake, contract: TableContract, ds: str, rows: DataFrame) -> DataFrame:
    """A day's rows and a deletion of each thing that its deleted users had before and that the day itself says nothing of.

    Looked up by the users' ids, and what was found by its own id: who has it now may be another one. Narrow columns are read.
    """
    users = deleted_users(spark, lake, partition_is(ds=ds))
    if users is None:
        return rows
    key, table = [name for name in contract.key if name != "ds"], lake.open(contract)
    columns = list(dict.fromkeys([*key, "user_id", "deleted", "ds"]))

    def earlier(partition: Partition) -> bool:
        return str(partition["ds"]) < ds

    found = find_rows(spark, table, columns, earlier, wanted_rows(users, "user_id"))
    if "user_id" not in key:
        found = find_rows(spark, table, columns, earlier, wanted_rows(found, key[0]))
    owner = F.struct(F.col("user_id").alias("owner"), "deleted")
    latest = found.groupBy(*key).agg(F.max_by(owner, "ds").alias("latest")).select(*key, "latest.*").where(~F.col("deleted"))
    theirs = latest.join(users.withColumnRenamed("user_id", "owner"), "owner", "left_semi")
    left = theirs.join(rows.where(F.col("reason").isNull()).select(*key), key, "left_anti").select(*key)
    source = F.lit(IMPLIED_SOURCE if contract is PINS else None).cast("string")
    implied = left.withColumns({"deleted": F.lit(True), "source_sha256": source})
    return rows.unionByName(implied, allowMissingColumns=True)


def names_gone_users(spark: SparkSession, lake: Lake, ds: str) -> bool:
    """Whether a landed day has a row that counts of somebody who is gone by now."""
    gone = gone_users(spark, lake, ds)
    if gone is None:
        return False
    wanted = wanted_rows(gone, "user_id")
    for contract in (PINS, BOARDS, SAVES):
        rows = find_rows(spark, lake.open(contract), ["user_id", "deleted"], partition_is(ds=ds), wanted)
        if not rows.where(~F.col("deleted")).isEmpty():
            return True
    return False
