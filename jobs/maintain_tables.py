"""Keeps the tables fit: few large files in the order of their keys, nothing on disk that nobody needs, a short log.

    spark-submit jobs/maintain_tables.py --home .pinlake --run-id by-hand

Table by table:
1. *Rewrite*: a partition of many small files, or of files whose ranges of ids overlap, becomes few files in the order of its
   ids. Executors rewrite, the driver commits. No row changes, and a night that runs meanwhile loses nothing.
2. *Log*: a checkpoint of the current version; entries older than 90 days go.
3. *Vacuum*: files go that no version of the last `--retention-hours` needs, and orphans of that age: staged by a run that was
   killed, named by no commit. What stays readable beyond that are the table versions of the releases that the pointer LIVE
   names (the live one, the one before it, the one to go back to after a cut-over); and younger releases' and training sets'.

`--dry-run` says what would be done, and changes no table. What was done is in `runs/ds=maintenance/<run>/maintain.json`. May be
killed at any point and run again. A retention shorter than the longest night deletes what that night is staging: for a lake at
rest only. (docs/decisions/0008-maintenance.md)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from embedding.contracts import BOARDS, PIN_EMBEDDINGS, PINS, SAVES, TABLES, TableContract
from embedding.encoder.training_set import TrainingSetError, is_finished, read_manifest
from embedding.index.release import ReleaseError, list_releases, read_pointer
from embedding.tables import storage
from embedding.tables.lake import Lake, data_files
from embedding.tables.maintenance import (
    Rewrite,
    check_rows,
    commit_rewrites,
    keep_log_short,
    log_files,
    plan_rewrites,
    readable_versions,
    set_retention,
    stage_part,
    stage_rewrite,
    vacuum,
)
from embedding.tables.scan import scan_file
from embedding.tables.staging import MAX_ROWS_A_FILE, STAGED_SCHEMA, StagedFile, describe_staged, staged_files
from embedding.taste.graph import GraphError
from embedding.taste.store import finished_graphs
from jobs.argument_types import MOST_DAYS, whole_number
from jobs.session import arguments, log, map_items, run_program, spark_session, stage
from jobs.step_statistics import StepStatistics

PARTITIONS_A_COMMIT = 200
"""Small partitions that are rewritten and committed together: what a killed run has to do again."""

LINE = (
    "{rewritten} partitions rewritten, {gave_way} gave way; {files_before} -> {files_after} files, "
    "{bytes_before} -> {bytes_after} bytes; {deleted[files]} files deleted ({deleted[size_bytes]} bytes, "
    "{deleted[orphans]} orphans); log {log_files_before} -> {log_files_after} files"
)

_REWRITTEN = STAGED_SCHEMA.append(pa.field("rewrite", pa.int64(), nullable=False))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    hours, rows = partial(whole_number, least=0, most=24 * MOST_DAYS), partial(whole_number, least=1)
    parser.add_argument("--retention-hours", type=hours, default=168, help="how long unneeded files stay (default 168: a week)")
    parser.add_argument("--rows-a-file", type=rows, default=MAX_ROWS_A_FILE, help=f"at most (default {MAX_ROWS_A_FILE})")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser.parse_args(argv)


def versions_in_use(lake: Lake, since: datetime) -> dict[str, dict[int, list[str]]]:
    """By table, the versions that must stay readable, and who refers to them. Raises where a manifest cannot be read."""
    pointer, used = read_pointer(lake), {contract.name: dict[int, list[str]]() for contract in TABLES.values()}
    roles = {}
    if pointer:
        roles = {pointer.cut_over_release: "before the cut-over", pointer.previous: "previous", pointer.release_id: "live"}
    for release in list_releases(lake):
        role = roles.get(release.release_id)
        if role or datetime.fromisoformat(release.built_at) >= since:
            who = f"release {release.release_id} ({role or 'recent'})"
            used[PINS.name].setdefault(release.pins_version, []).append(who)
            used[PIN_EMBEDDINGS.name].setdefault(release.pin_embeddings_version, []).append(who)
    for set_id in storage.folders(f"{lake.home}/training"):
        made = read_manifest(lake, set_id) if is_finished(lake, set_id) else None
        if made and datetime.fromisoformat(made.built_at) >= since:
            for name in {PINS.name, BOARDS.name, SAVES.name} & set(made.table_versions):
                used[name].setdefault(made.table_versions[name], []).append(f"training set {set_id}")
    for graph in finished_graphs(lake):  # two or three: check_taste.py deletes the others
        for name, version in graph.versions.items():
            used[name].setdefault(version, []).append(f"graph {graph.graph_id}")
    return used


def session() -> SparkSession:
    """Started by the first table that has something to rewrite."""
    return spark_session("maintenance")


def rewrite_small(lake: Lake, contract: TableContract, rewrites: Sequence[Rewrite]) -> list[tuple[Rewrite, list[StagedFile]]]:
    """Partitions that fit into one file each: a partition an executor's task, in memory."""
    root = lake.table_uri(contract)

    def run(item: tuple[int, Rewrite]) -> list[pa.RecordBatch]:
        batch = describe_staged(stage_rewrite(root, contract, item[1]))
        return [batch.append_column("rewrite", pa.array([item[0]] * batch.num_rows, pa.int64())).cast(_REWRITTEN)]

    found: dict[int, list[StagedFile]] = {}
    for row in map_items(session(), list(enumerate(rewrites)), run, _REWRITTEN).collect():
        found.setdefault(row["rewrite"], []).extend(staged_files([row.asDict()]))
    return [(rewrite, found.get(number, [])) for number, rewrite in enumerate(rewrites)]


def rewrite_large(lake: Lake, contract: TableContract, rewrite: Rewrite, max_rows: int) -> list[StagedFile]:
    """A partition of many files' worth of rows: Spark shares its ids out in ranges, a range a task, and sorts them on disk."""
    schema, root = contract.file_schema, lake.table_uri(contract)
    rows = map_items(session(), rewrite.files, partial(scan_file, schema=schema), schema)
    keys = [name for name in contract.key if name in schema.names]
    in_order = rows.repartitionByRange(rewrite.parts, *keys).sortWithinPartitions(*keys) if keys else None
    shared = rows.repartition(rewrite.parts) if in_order is None else in_order
    staged = stage(shared, partial(stage_part, root, contract, rewrite.partition, max_rows=max_rows)).get(contract.name, [])
    check_rows(contract, rewrite, staged)
    return staged


def rewrite(lake: Lake, contract: TableContract, planned: Sequence[Rewrite], args: argparse.Namespace) -> int:
    """Rewrites what was planned; returns how many partitions gave way to a night."""
    small, gave_way = [item for item in planned if item.parts == 1], 0
    for start in range(0, len(small), PARTITIONS_A_COMMIT):
        staged = rewrite_small(lake, contract, small[start : start + PARTITIONS_A_COMMIT])
        gave_way += len(commit_rewrites(lake, contract, staged, run_id=args.run_id))
    for item in planned:
        if item.parts > 1:
            staged = [(item, rewrite_large(lake, contract, item, args.rows_a_file))]
            gave_way += len(commit_rewrites(lake, contract, staged, run_id=args.run_id))
    return gave_way


def maintain(lake: Lake, contract: TableContract, args: argparse.Namespace) -> dict[str, Any]:
    """One table, from its rewrites to its vacuum. Returns what was done, or in a dry run what would be."""
    before, entries = data_files(lake.open(contract)), log_files(lake, contract)
    planned, gave_way = plan_rewrites(lake, contract, args.rows_a_file), 0
    if not args.dry_run:
        set_retention(lake, contract, args.retention_hours)
        gave_way = rewrite(lake, contract, planned, args)
    # Read after the rewrites: a release may have been built meanwhile.
    used = versions_in_use(lake, datetime.now(UTC) - timedelta(hours=args.retention_hours))[contract.name]
    kept = readable_versions(lake, contract, used)
    if not args.dry_run:
        keep_log_short(lake, contract, kept)
    deleted = vacuum(lake, contract, kept, args.retention_hours, dry_run=args.dry_run)
    after = data_files(lake.open(contract))
    return {
        "rewritten": len(planned) - gave_way,
        "gave_way": gave_way,
        "files_before": len(before),
        "files_after": len(before) - sum(len(r.files) - r.parts for r in planned) if args.dry_run else len(after),
        "bytes_before": sum(file.size_bytes for file in before),
        "bytes_after": sum(file.size_bytes for file in after),
        "log_files_before": entries,
        "log_files_after": log_files(lake, contract),
        "version": lake.open(contract).version(),
        "deleted": asdict(deleted),
        "protected": {version: used[version] for version in kept},
        "lost": {version: who for version, who in used.items() if version not in kept},
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    versions_in_use(lake, datetime.now(UTC))  # an unreadable manifest ends the run before anything is done
    statistics = StepStatistics(lake, "maintenance", args.run_id, "maintain")
    statistics.values = {"dry_run": args.dry_run, "retention_hours": args.retention_hours, "tables": {}}
    for contract in TABLES.values():
        if not lake.exists(contract):
            continue
        done = maintain(lake, contract, args)
        statistics.values["tables"][contract.name] = done
        statistics.write()
        log.info("%s%s: %s", "dry run, " if args.dry_run else "", contract.name, LINE.format(**done))
        for version, who in done["protected"].items():
            log.info("%s: version %d stays readable for %s", contract.name, version, ", ".join(who))


if __name__ == "__main__":
    run_program(main, GraphError, ReleaseError, TrainingSetError)
