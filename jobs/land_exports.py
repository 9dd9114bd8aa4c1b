"""Lands a day's export in the tables `pins`, `boards`, `saves` and `users`; rows that cannot land go to `quarantine`.

    spark-submit jobs/land_exports.py --home .pinlake --exports .pinlake/exports --ds 2026-11-18 --run-id by-hand

Each table's day is replaced by one Delta commit, `users` first and `pins` last. An export that has landed already, byte for
byte, changes nothing. Of two rows with one key the later `updated_at` lands (a deletion wins a tie), the other is quarantined.
What users have who were deleted on the day, or on a later one that has landed, lands as deletions (jobs/gone_users.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, EXPORT_SCHEMAS, PINS, QUARANTINE, SAVES, USERS, Reason, Stage, TableContract
from embedding.tables.exports import (
    ENTITY_OF,
    JUDGED_COLUMNS,
    ExportError,
    ExportFile,
    cut_detail,
    export_sha256,
    file_sha256,
    find_export,
    judge_rows,
    read_export_file,
)
from embedding.tables.lake import DayChangedError, Lake, Replacement, partition_is, partition_version, replace_in_order
from embedding.tables.staging import StagedFile, Stager
from jobs.argument_types import address
from jobs.gone_users import gone_users, land_users, names_gone_users, with_implied, without_content
from jobs.session import (
    ArrowRows,
    arguments,
    contract_partition,
    log,
    map_items,
    read_table,
    run_program,
    spark_session,
    stage,
    until_settled,
    with_columns,
)
from jobs.step_statistics import StepStatistics

CONTRACTS: dict[str, TableContract] = {"users": USERS, "boards": BOARDS, "saves": SAVES, "pins": PINS}
KEYS = {name: [column for column in contract.key if column != "ds"] for name, contract in CONTRACTS.items()}
ORDER = {"pins": "updated_at", "boards": "created_at", "saves": "saved_at"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--exports", type=address, help="where the days lie; default <home>/exports")
    return parser.parse_args(argv)


def hash_files(spark: SparkSession, files: list[ExportFile]) -> dict[str, str]:
    """The export's fingerprint, an entity at a time, hashed by the executors; of users only where there is a file of them."""
    schema = pa.schema([("entity", pa.string()), ("sha256", pa.string())])

    def digest(file: ExportFile) -> ArrowRows:
        yield pa.RecordBatch.from_pylist([{"entity": file.entity, "sha256": file_sha256(file.uri)}], schema=schema)

    rows = map_items(spark, files, digest, schema).collect()
    found = {name: [row.sha256 for row in rows if row.entity == name] for name in CONTRACTS}
    return {name: export_sha256(name, hashes) for name, hashes in found.items() if hashes or name != "users"}


def read_judged(spark: SparkSession, entity: str, files: list[ExportFile]) -> DataFrame:
    """The entity's rows in the contract's types, each with its `reason` if it may not land."""
    schema = pa.schema([*EXPORT_SCHEMAS[entity], *[pa.field(name, pa.string()) for name in JUDGED_COLUMNS]])

    def read(file: ExportFile) -> ArrowRows:
        return (judge_rows(entity, rows) for rows in read_export_file(entity, file.uri))

    return map_items(spark, [file for file in files if file.entity == entity], read, schema)


def transform(entity: str, judged: DataFrame) -> DataFrame:
    """Marks all but one of the usable rows that share a key as duplicates."""
    latest = [F.col(ORDER[entity]).desc_nulls_last()] if entity in ORDER else []
    order = [*latest, F.col("deleted").desc(), F.xxhash64(*judged.columns).asc()]
    usable = F.col("reason").isNull()
    rank = F.row_number().over(Window.partitionBy(usable, *KEYS[entity]).orderBy(*order))
    duplicate = usable & (F.col("rank") > 1)
    # Of a deletion nothing but the fact is kept: what the platform deletes must not live on here.
    forgotten = [n for n in judged.columns if n not in (*KEYS[entity], "deleted", "source_sha256", "reason", "detail")]
    return (
        judged.withColumn("rank", rank)
        .withColumns({name: F.when(~F.col("deleted"), F.col(name)) for name in forgotten})
        .withColumn("detail", F.when(duplicate, "another row of this day has the same key").otherwise(F.col("detail")))
        .withColumn("reason", F.when(duplicate, Reason.DUPLICATE_ID.value).otherwise(F.col("reason")))
        .drop("rank")
    )


def stage_rows(lake: Lake, entity: str, ds: str, constants: dict[str, str | None], batches: ArrowRows) -> Iterable[StagedFile]:
    """Writes the usable rows as files of the entity's table, the others as files of `quarantine`."""
    contract = CONTRACTS[entity]
    quarantine = contract_partition(QUARANTINE, ds=ds, stage=Stage.LAND, embedding_version=None)
    missing: dict[str, str | None] = {"content_sha256": None, "image_uri": None}
    with (
        Stager(lake.table_uri(contract), contract, {"ds": ds}) as landed,
        Stager(lake.table_uri(QUARANTINE), QUARANTINE, quarantine) as rejected,
    ):
        for batch in batches:
            usable = pc.is_null(batch.column("reason"))
            landed.add(with_columns(batch.filter(usable), constants))
            bad = batch.filter(pc.invert(usable))
            extra = {k: v for k, v in missing.items() if k not in bad.schema.names} | {"entity": ENTITY_OF[entity]}
            bad = with_columns(bad, constants | extra)
            if "pin_id" not in bad.schema.names:
                bad = bad.append_column("pin_id", pa.nulls(bad.num_rows, pa.int64()))
            rejected.add(cut_detail(bad))
        landed.flush()
        rejected.flush()
    return [*landed.files, *rejected.files]


def already_landed(spark: SparkSession, lake: Lake, ds: str, hashes: dict[str, str]) -> bool:
    """Whether `pins`, the last to be committed, holds this very export of the day."""
    table = lake.open(PINS)
    found = read_table(spark, table, ["export_sha256"], partition_is(ds=ds)).distinct().limit(2).collect()
    return [row.export_sha256 for row in found] == [combined(hashes)]


def combined(hashes: dict[str, str]) -> str:
    return export_sha256("day", list(hashes.values()))


TABLES = {"quarantine": QUARANTINE, **CONTRACTS}
"""In the order of their commits, but for users, which are first of all; last are pins, whose commit says that the day is in."""


def day_partitions(ds: str) -> dict[str, dict[str, str | None]]:
    """The day's partition of each of TABLES."""
    landed = contract_partition(QUARANTINE, ds=ds, stage=Stage.LAND, embedding_version=None)
    return {"quarantine": landed, **{name: {"ds": ds} for name in CONTRACTS}}


def land_day(
    spark: SparkSession, lake: Lake, files: list[ExportFile], ds: str, run_id: str, sha256: str, seen: dict[str, int]
) -> None:
    """Stages and commits users, then the others. `seen`: each table's number of the day, read before the day was looked at."""
    constants: dict[str, str | None] = {"export_sha256": sha256, "run_id": run_id}
    partitions = day_partitions(ds)
    staged: dict[str, list[StagedFile]] = {name: [] for name in TABLES}

    def stage_entity(entity: str, rows: DataFrame) -> None:
        for name, found in stage(rows, partial(stage_rows, lake, entity, ds, constants)).items():
            staged[name] += found

    if any(file.entity == "users" for file in files):
        stage_entity("users", transform("users", read_judged(spark, "users", files)))
    land_users(lake, staged.pop("users"), ds, run_id, seen["users"])
    gone = gone_users(spark, lake, ds)
    for entity in ("boards", "saves", "pins"):
        rows = transform(entity, without_content(read_judged(spark, entity, files), gone))
        stage_entity(entity, with_implied(spark, lake, CONTRACTS[entity], ds, rows))
    changes = [Replacement(TABLES[name], partitions[name], found, seen[name]) for name, found in staged.items()]
    replace_in_order(lake, changes, run_id=run_id)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    statistics = StepStatistics(lake, args.ds, args.run_id, "land")
    exports = args.exports or f"{lake.home}/exports"
    find_export(exports, args.ds)  # an absent one is told before Spark starts
    lake.create_all()
    spark = spark_session(f"land {args.ds}")

    def land() -> None:
        # First of all: a run that lands the day from here on is seen, by its rows or when we commit.
        seen = {name: partition_version(lake.open(TABLES[name]), where) for name, where in day_partitions(args.ds).items()}
        # Looked for anew at each look: the run that was faster may have landed a newer export than ours was.
        files = find_export(exports, args.ds)
        hashes = hash_files(spark, files)
        statistics.values["export_pin_rows"] = sum(file.num_rows for file in files if file.entity == "pins")
        if already_landed(spark, lake, args.ds, hashes) and not names_gone_users(spark, lake, args.ds):
            log.info("%s has landed already, from this very export", args.ds)
            return
        land_day(spark, lake, files, args.ds, args.run_id, combined(hashes), seen)
        if names_gone_users(spark, lake, args.ds):
            raise DayChangedError(f"{args.ds}: another day that landed meanwhile deletes a user")

    until_settled(land)
    statistics.write()


if __name__ == "__main__":
    run_program(main, ExportError, DayChangedError)
