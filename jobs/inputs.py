"""Which days of which table versions a training set or a graph is made of, and the current rows of those tables."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, NIGHTS, PINS, SAVES, TableContract
from embedding.log_lines import tell_day_if_unknown
from embedding.tables.lake import Lake, Partition
from embedding.tables.scan import read_rows
from jobs.argument_types import day_argument
from jobs.session import read_table

LATEST = "latest"
"""For a day: the last one of which a night passed."""


class NothingPassedError(Exception):
    """There is no day that may be read."""


@dataclass(frozen=True)
class Inputs:
    """Which days of which table versions are read."""

    days: list[str]
    versions: dict[str, int]

    def counts(self, partition: Partition) -> bool:
        """Whether a partition is of one of the days."""
        return partition["ds"] in self.days


def day_or_latest(text: str) -> str:
    return text if text == LATEST else day_argument(text)


def choose_inputs(lake: Lake, ds: str) -> Inputs:
    """The days up to `ds` of which some encoder's latest night passed, and the tables' versions now.

    Raises NothingPassedError where there is none.
    """
    columns = ["ds", "embedding_version", "status", "checked_at"]
    nights = read_rows(lake.open(NIGHTS), columns).to_pylist() if lake.exists(NIGHTS) else []
    in_order = sorted(nights, key=lambda row: row["checked_at"])
    latest = {(row["ds"], row["embedding_version"]): row["status"] for row in in_order}
    days = sorted({day for (day, _), status in latest.items() if status == "passed" and (ds == LATEST or day <= ds)})
    if not days:
        raise NothingPassedError(f"no night up to {ds} has passed its gate in {lake.home}: there is nothing to read")
    tell_day_if_unknown(days)
    return Inputs(days, {contract.name: lake.open(contract).version() for contract in (PINS, BOARDS, SAVES)})


def read_latest(spark: SparkSession, lake: Lake, inputs: Inputs, contract: TableContract, *columns: str) -> DataFrame:
    """Each key's row of its latest day, without the deleted ones."""
    key = [name for name in contract.key if name != "ds"]
    table = lake.open(contract, inputs.versions[contract.name])
    read = list(dict.fromkeys([*key, *columns, "deleted", "ds"]))
    rows = read_table(spark, table, read, inputs.counts)
    latest = rows.groupBy(*key).agg(F.max_by(F.struct(*columns, "deleted"), "ds").alias("row"))
    return latest.select(*key, "row.*").where(~F.col("deleted")).drop("deleted")


def latest_saves(spark: SparkSession, lake: Lake, inputs: Inputs) -> DataFrame:
    """user_id, pin_id, board_id and `saved`, minutes since 1970 (UTC); without a time as of the day's beginning."""
    saves = read_latest(spark, lake, inputs, SAVES, "saved_at", "ds")
    return saves.select("user_id", "pin_id", "board_id", saved_minutes())


def saved_minutes() -> Column:
    """`saved` of a row of `saves`: minutes since 1970 (UTC); without a time those of the day's beginning."""
    return F.floor(F.unix_timestamp(F.coalesce("saved_at", F.to_timestamp("ds"))) / 60).alias("saved")
