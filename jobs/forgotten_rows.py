"""Which rows of the tables are to be forgotten, by the place that they have in their files.

Asked anew each time, of the tables as they are: what was forgotten is not found again, and what a late day, a night beside it
or a run that was killed has left is found by the next run. Ids and days are read and shuffled once or twice a table, as for the
nightly state (jobs/current.py); no set of ids is held anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, PIN_EMBEDDINGS, PINS, QUARANTINE, SAVES, USERS, Stage, TableContract
from embedding.tables.forgetting import DERIVED, LATEST_BY, LOGS
from embedding.tables.lake import DataFile, Lake, Partition
from embedding.tables.scan import projected_schema, scan_file
from jobs.session import ArrowRows, map_items, read_table

PLACE = ["file", "place"]
"""The number of a file among those that were asked for, and of a row in it."""


def read_places(spark: SparkSession, files: Sequence[DataFile], schema: pa.Schema) -> DataFrame:
    """The columns of `schema`, of a list its length, and PLACE."""
    places = pa.schema([(name, pa.int64()) for name in PLACE])
    given = pa.schema([*(pa.field(f.name, pa.int64()) if pa.types.is_list(f.type) else f for f in schema), *places])

    def read(item: tuple[int, DataFile]) -> ArrowRows:
        number, file = item
        begin = 0
        for batch in scan_file(file, schema):
            lengths = (pc.list_value_length(c).cast(pa.int64()) if pa.types.is_list(c.type) else c for c in batch.columns)
            rows = np.arange(begin, begin + batch.num_rows)
            begin += batch.num_rows
            yield pa.RecordBatch.from_arrays([*lengths, pa.array(np.full(len(rows), number)), pa.array(rows)], schema=given)

    return map_items(spark, list(enumerate(files)), read, given)


@dataclass(frozen=True)
class Deletions:
    """What was deleted on one of `days`, which have passed their gate, up to `last_day`; each with the day, as `until`."""

    spark: SparkSession
    lake: Lake
    days: frozenset[str]
    last_day: str

    @cached_property
    def pins(self) -> DataFrame:
        return self.of(PINS).persist()

    @cached_property
    def boards(self) -> DataFrame:
        return self.of(BOARDS).persist()

    @cached_property
    def users(self) -> DataFrame:
        """Who has rows of later days as well is back, and what was before is forgotten all the same."""
        rows = self._rows(USERS, "user_id").where("deleted")
        return rows.where(F.col("ds") <= self.last_day).groupBy("user_id").agg(F.max("ds").alias("until")).persist()

    def of(self, contract: TableContract) -> DataFrame:
        """The table's key and `until`, where the latest row is a deletion."""
        key = [name for name in contract.key if name != "ds"]
        latest = self._rows(contract, *key).groupBy(*key)
        rows = latest.agg(F.max_by("deleted", "ds").alias("deleted"), F.max("ds").alias("until"))
        return rows.where(F.col("deleted") & (F.col("until") <= self.last_day)).drop("deleted")

    def tombstones(self) -> DataFrame:
        """pin_id and ds of every row of `pins` that is a deletion."""
        rows = read_table(self.spark, self.lake.open(PINS), ["pin_id", "ds", "deleted"], self.in_time)
        return rows.where("deleted").select("pin_id", "ds")

    def in_time(self, partition: Partition) -> bool:
        return str(partition["ds"]) <= self.last_day

    def _rows(self, contract: TableContract, *key: str) -> DataFrame:
        table = self.lake.open(contract)
        return read_table(self.spark, table, [*key, "deleted", "ds"], lambda partition: partition["ds"] in self.days)


def forgotten_rows(deletions: Deletions, contract: TableContract, files: Sequence[DataFile]) -> DataFrame:
    """PLACE of each row of the files that is to be forgotten, once."""
    kinds = {log.name: of_log for log in LOGS} | {made.contract.name: of_derived for made in DERIVED}
    kinds |= {SAVES.name: of_saves, PIN_EMBEDDINGS.name: of_vectors, QUARANTINE.name: of_quarantine}
    return kinds[contract.name](deletions, contract, files).select(*PLACE).distinct()


def of_log(deletions: Deletions, contract: TableContract, files: Sequence[DataFile]) -> DataFrame:
    """Rows with content of what was deleted on a later day, and of users who were."""
    key = contract.key[0]
    rows = _read(deletions, contract, files, key, "user_id", "deleted").where(~F.col("deleted")).persist()
    of_key = rows.join(deletions.boards if contract is BOARDS else deletions.pins, key, "inner")
    of_user = rows.join(deletions.users, "user_id", "inner")
    return _before(of_key, "<").union(_before(of_user, "<="))


def of_saves(deletions: Deletions, contract: TableContract, files: Sequence[DataFile]) -> DataFrame:
    """Saves by users who were deleted, of pins that were, and rows before the day on which the save was taken back.

    Of a save that was taken back the deletion stays; of deleted users and pins nothing: their own deletion says it.
    """
    key = [name for name in contract.key if name != "ds"]
    rows = _read(deletions, contract, files, *key).persist()
    of_user, of_pin = rows.join(deletions.users, "user_id", "inner"), rows.join(deletions.pins, "pin_id", "inner")
    taken_back = rows.join(deletions.of(SAVES), key, "inner")
    return _before(of_user, "<=").union(_before(of_pin, "<=")).union(_before(taken_back, "<"))


def of_vectors(deletions: Deletions, contract: TableContract, files: Sequence[DataFile]) -> DataFrame:
    """Vectors of deleted pins, and others whose row of `pins` is a deletion."""
    return _of_tombstones(deletions, _read(deletions, contract, files, "pin_id").persist())


def of_quarantine(deletions: Deletions, contract: TableContract, files: Sequence[DataFile]) -> DataFrame:
    """As `of_vectors`; and of what could not land, of which nobody can say any more whose it is, what has an address left."""
    rows = _read(deletions, contract, files, "pin_id", "stage", "image_uri", "source_sha256").persist()
    landing = F.col("stage") == str(Stage.LAND)
    held = rows.where(landing & (F.col("image_uri").isNotNull() | F.col("source_sha256").isNotNull()))
    return _of_tombstones(deletions, rows.where(~landing)).union(held.select(*PLACE))


def of_derived(deletions: Deletions, contract: TableContract, files: Sequence[DataFile]) -> DataFrame:
    """Rows that were not current any more on the last day that counts, rows up to the day on which what they are about was
    deleted, and those that say that nothing is left.

    What a later day took the place of stays: that day, done again, compares with it. And a row that says that nothing is left
    stays while there are earlier ones, which would count again.
    """
    made = next(made for made in DERIVED if made.contract is contract)
    entity, order = list(made.entity), [name for name in LATEST_BY if name in contract.schema.names]
    columns = [*entity, *order, *([made.nothing] if made.nothing else [])]
    rows = _read(deletions, contract, files, *columns).withColumn("order", F.struct(*order)).persist()
    of_entity = rows.groupBy(*entity).agg(F.max("order").alias("last"), F.min("order").alias("first"))
    placed = rows.join(of_entity, entity, "inner")
    gone = F.col("order") < F.col("last")
    if made.nothing:
        gone = gone | ((F.col("first") == F.col("last")) & (F.col(made.nothing) == 0))
    subjects = {"pin_id": "pins", "board_id": "boards", "user_id": "users"}
    deleted: DataFrame = getattr(deletions, subjects[entity[0]])
    return placed.where(gone).select(*PLACE).union(_before(rows.join(deleted, entity[0], "inner"), "<="))


def _read(deletions: Deletions, contract: TableContract, files: Sequence[DataFile], *columns: str) -> DataFrame:
    schema = projected_schema(deletions.lake.open(contract), list(dict.fromkeys([*columns, "ds"])))
    return read_places(deletions.spark, files, schema)


def _of_tombstones(deletions: Deletions, rows: DataFrame) -> DataFrame:
    """PLACE of the rows of pins that were deleted since, or on the very day."""
    of_pin = _before(rows.join(deletions.pins, "pin_id", "inner"), "<=")
    return of_pin.union(rows.join(deletions.tombstones(), ["pin_id", "ds"], "left_semi").select(*PLACE))


def _before(rows: DataFrame, how: str) -> DataFrame:
    """PLACE of the rows of days before `until`, or up to it."""
    return rows.where(F.expr(f"ds {how} until")).select(*PLACE)
