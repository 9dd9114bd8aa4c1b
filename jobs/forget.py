"""Forgets what was deleted: takes it out of the tables' older days, and deletes what was made of them.

    spark-submit jobs/forget.py --home .pinlake --run-id by-hand --dry-run

What is deleted leaves search, graph and interests with the night of its deletion; the rows of its earlier days stay, so that
a deletion by mistake can be taken back. They go here, once the day of the deletion is `--forget-days` old and passed its gate:
1. *Rows*: of deleted pins, boards and users, and of made tables what nobody reads any more (jobs/forgotten_rows.py). Files with
   such rows are written anew by executors; the driver commits. A night that replaces a day meanwhile keeps its own.
2. *Copies*: releases, training sets and graphs older than that which were made of what is now forgotten, but live ones.

Rows of `pins` and `boards` keep the id alone, and so does `users`. The old files go with the tables' vacuum
(maintain_tables.py). Exits with 3 where something live is so old that it holds what is forgotten: make and publish a new one.
`--dry-run` says what would go, and changes nothing. May be killed at any point and run again.
(docs/decisions/0015-forgetting.md)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from embedding.contracts import TableContract
from embedding.encoder.training_set import TrainingSetError
from embedding.index.release import ReleaseError
from embedding.tables import storage
from embedding.tables.forgetting import FORGET, FORGOTTEN_IN, last_forgetting, rewrites_of, stage_forgotten
from embedding.tables.lake import DataFile, Lake, data_files
from embedding.tables.maintenance import commit_rewrites
from embedding.tables.staging import STAGED_SCHEMA, StagedFile, staged_files
from embedding.taste.graph import GraphError
from jobs.argument_types import MOST_DAYS, whole_number
from jobs.forgotten_copies import delete_unfinished, find_copies
from jobs.forgotten_rows import Deletions, forgotten_rows
from jobs.inputs import LATEST, NothingPassedError, choose_inputs
from jobs.session import (
    EXIT_GATE_FAILED,
    ArrowRows,
    arguments,
    log,
    map_arrow,
    run_program,
    spark_session,
)
from jobs.step_statistics import StepStatistics

FORGET_DAYS = 7
PARTITIONS_A_COMMIT = 200
"""What a killed run has to do again."""

_DONE = pa.schema([("file", pa.int64()), *[pa.field(field.name, field.type) for field in STAGED_SCHEMA]])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument(
        "--forget-days",
        type=partial(whole_number, least=0, most=MOST_DAYS),
        default=os.environ.get("PINLAKE_FORGET_DAYS") or str(FORGET_DAYS),
        help=f"days for which a deletion can be taken back (default $PINLAKE_FORGET_DAYS, else {FORGET_DAYS})",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be forgotten, and change nothing")
    return parser.parse_args(argv)


def stage_files(
    root: str, contract: TableContract, files: Sequence[DataFile], places: DataFrame, tasks: int
) -> dict[int, list[StagedFile]]:
    """By the number of a file what takes its place: a file, or none. A task holds one file's rows at a time."""
    grouped = places.groupBy("file").agg(F.collect_list("place").alias("places"))

    def run(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            for number, rows in zip(batch.column("file").to_pylist(), batch.column("places"), strict=True):
                staged = stage_forgotten(root, contract, files[number], rows.values.to_numpy(zero_copy_only=False))
                yield pa.RecordBatch.from_pylist([{"file": number} | (vars(staged) if staged else {})], schema=_DONE)

    done = map_arrow(grouped.repartition(tasks, "file"), run, _DONE).collect()
    return {row.file: list(staged_files([row.asDict()])) if row.path else [] for row in done}


def forget_rows(lake: Lake, contract: TableContract, deletions: Deletions, args: argparse.Namespace) -> dict[str, int]:
    """One table's forgotten rows. Returns what was done, or in a dry run what would be."""
    table = lake.open(contract)
    root, files = storage.normalise_uri(table.table_uri), data_files(table, deletions.in_time)
    places = forgotten_rows(deletions, contract, files).persist()
    by_file = {row.file: row["count"] for row in places.groupBy("file").count().collect()}
    done = {"rows": sum(by_file.values()), "files": len(by_file), "gave_way": 0}
    if by_file and not args.dry_run:
        staged = stage_files(root, contract, files, places, len(by_file))
        planned = rewrites_of(table, [(files[number], found) for number, found in staged.items()])
        for start in range(0, len(planned), PARTITIONS_A_COMMIT):
            some = planned[start : start + PARTITIONS_A_COMMIT]
            done["gave_way"] += len(commit_rewrites(lake, contract, some, run_id=args.run_id, purpose=FORGET))
    places.unpersist()
    return done


def forget_copies(lake: Lake, forgotten: dict[str, int], args: argparse.Namespace) -> dict[str, list[str]]:
    """Deletes what was made of versions before those in `forgotten`, by table; names what is live and cannot go."""
    since = datetime.now(UTC) - timedelta(days=args.forget_days)
    done: dict[str, list[str]] = {"deleted": [], "live": []}
    for copy in find_copies(lake):
        if copy.built_at > since or all(version >= forgotten.get(name, 0) for name, version in copy.versions.items()):
            continue
        done["live" if copy.live else "deleted"].append(copy.name)
        if copy.live:
            log.error("%s is live and holds what is forgotten: make a new one of the tables, and publish it", copy.name)
        else:
            log.info("%s%s holds what is forgotten: deleted", "dry run, " if args.dry_run else "", copy.name)
            if not args.dry_run:
                copy.delete()
    if not args.dry_run:
        done["deleted"] += delete_unfinished(lake)
    return done


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    find_copies(lake)  # an unreadable manifest ends the run before anything is done
    statistics = StepStatistics(lake, "maintenance", args.run_id, "forget")
    try:
        days = choose_inputs(lake, LATEST).days
    except NothingPassedError as nothing:
        log.info("%s", nothing)
        return 0
    last_day = (datetime.now(UTC).date() - timedelta(days=args.forget_days)).isoformat()
    statistics.values = {"dry_run": args.dry_run, "last_day": last_day, "tables": {}}
    forgotten: dict[str, int] = {}
    deletions = Deletions(spark_session("forget"), lake, frozenset(days), last_day)
    for contract in FORGOTTEN_IN:
        if not lake.exists(contract):
            continue
        done = forget_rows(lake, contract, deletions, args)
        would = args.dry_run and done["rows"]
        forgotten[contract.name] = lake.open(contract).version() + 1 if would else last_forgetting(lake, contract) or 0
        statistics.values["tables"][contract.name] = done
        statistics.write()
        said = "{rows} rows in {files} files forgotten, {gave_way} partitions gave way".format(**done)
        log.info("%s%s: %s", "dry run, " if args.dry_run else "", contract.name, said)
    statistics.values["copies"] = copies = forget_copies(lake, forgotten, args)
    statistics.write()
    return EXIT_GATE_FAILED if copies["live"] else 0


if __name__ == "__main__":
    run_program(main, GraphError, ReleaseError, TrainingSetError)
