"""Upkeep of the tables: few large files in the order of their keys, no file that nobody needs, a log that opens quickly.

Nothing here changes a row (docs/decisions/0008-maintenance.md); who does is forgetting.py, and replaces files as this does. A
rewrite reads a partition's files and stages as many as its rows need; its commit replaces exactly the files that were read, and
gives way where a night has replaced the partition meanwhile. A night that planned before such a commit and commits after it
replaces the rewritten files as it would have replaced the others.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from embedding.contracts import TableContract
from embedding.tables import storage
from embedding.tables.lake import (
    DataFile,
    Lake,
    Partition,
    data_files,
    discard,
    names_any,
    partition_version,
    transaction_app,
)
from embedding.tables.scan import scan_file
from embedding.tables.staging import MAX_ROWS_A_FILE, StagedFile, Stager

TARGET_BYTES = 256 * 2**20
"""A file of fewer rows than MAX_ROWS_A_FILE is large enough at this size: long texts must not fill an executor's memory."""

_MAX_COMMIT_ATTEMPTS = 30
_LOG_CLEANUP, _LOG_RETENTION = "delta.enableExpiredLogCleanup", "delta.logRetentionDuration"
_FILE_RETENTION = "delta.deletedFileRetentionDuration"
_NO_CLEANUP = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)

log = logging.getLogger("pinlake")


class RowsChangedError(Exception):
    """A rewrite staged another number of rows than its files hold. Nothing was committed."""


@dataclass(frozen=True)
class Rewrite:
    """One partition whose files are to be replaced by `parts` files of the same rows.

    paths: The files' paths in the log, in the order of `files`.
    seen: `partition_version` of the snapshot that was planned with.
    """

    partition: Partition
    files: tuple[DataFile, ...]
    paths: tuple[str, ...]
    parts: int
    seen: int

    @property
    def rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def name(self) -> str:
        return transaction_app(self.partition) or "the whole table"


# -- compaction and order ---------------------------------------------------------------------------------------------------


def plan_rewrites(lake: Lake, contract: TableContract, max_rows: int = MAX_ROWS_A_FILE) -> list[Rewrite]:
    """The partitions that have too many files, or files whose ranges of ids overlap. Reads the log only.

    A partition that was rewritten is not planned again until a night replaces it.
    """
    table = lake.open(contract)
    key = contract.key[0] if contract.key else None
    groups: dict[str, list[tuple[DataFile, dict[str, Any]]]] = {}
    root = storage.normalise_uri(table.table_uri)
    rows = {f"{root}/{row['path']}": row for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()}
    for file in data_files(table):
        groups.setdefault(transaction_app(file.partition), []).append((file, rows[file.uri]))
    planned = []
    for _, group in sorted(groups.items()):
        files = tuple(file for file, _ in group)
        parts = _parts(files, max_rows)
        ranges = [(row.get(f"min.{key}"), row.get(f"max.{key}")) for _, row in group]
        too_many = len(files) > (1 if parts == 1 else 2 * parts)
        if too_many or (key is not None and pa.types.is_int64(contract.schema.field(key).type) and _overlap(ranges)):
            partition = files[0].partition
            paths = tuple(row["path"] for _, row in group)
            planned.append(Rewrite(partition, files, paths, parts, _number(table, contract, partition)))
    return planned


def _parts(files: Sequence[DataFile], max_rows: int) -> int:
    """How many files hold the rows of `files`: one that is full where they fit, otherwise files that are four fifths full."""
    rows, size_bytes = sum(file.num_rows for file in files), sum(file.size_bytes for file in files)
    if rows <= max_rows and size_bytes <= TARGET_BYTES:
        return 1
    return max(-(-5 * rows // (4 * max_rows)), -(-5 * size_bytes // (4 * TARGET_BYTES)))


def _overlap(ranges: Sequence[tuple[int | None, int | None]]) -> bool:
    """Whether a look-up of one id may have to open two of the files. A file without statistics overlaps with every other."""
    known = sorted((low, high) for low, high in ranges if low is not None and high is not None)
    if len(known) < len(ranges):
        return len(ranges) > 1
    return any(after[0] < before[1] for before, after in itertools.pairwise(known))


def _number(table: DeltaTable, contract: TableContract, partition: Partition) -> int:
    return partition_version(table, partition) if contract.partition_by else 0


def stage_rewrite(root: str, contract: TableContract, rewrite: Rewrite) -> list[StagedFile]:
    """Rewrites a partition of one part, in this process. Memory: the rows of one file. Raises RowsChangedError."""
    schema = contract.file_schema
    batches = (batch for file in rewrite.files for batch in scan_file(file, schema))
    staged = stage_part(root, contract, rewrite.partition, batches, max_rows=rewrite.rows + 1)
    check_rows(contract, rewrite, staged)
    return staged


def stage_part(
    root: str,
    contract: TableContract,
    partition: Partition,
    batches: Iterable[pa.RecordBatch],
    max_rows: int = MAX_ROWS_A_FILE,
) -> list[StagedFile]:
    """Stages the rows of `batches` as files of at most `max_rows` rows, each sorted by the table's key."""
    with Stager(root, contract, partition, max_rows) as stager:
        for batch in batches:
            stager.add(batch)
        stager.flush()
    return stager.files


def check_rows(contract: TableContract, rewrite: Rewrite, staged: Sequence[StagedFile]) -> None:
    """Raises RowsChangedError where `staged` does not hold as many rows as the files that it is to replace."""
    found = sum(file.num_rows for file in staged)
    if found != rewrite.rows:
        raise RowsChangedError(f"{contract.name}, {rewrite.name}: {rewrite.rows} rows to rewrite, {found} staged")


def commit_rewrites(
    lake: Lake,
    contract: TableContract,
    staged: Sequence[tuple[Rewrite, Sequence[StagedFile]]],
    *,
    run_id: str,
    purpose: str = "rewrite",
    sleep: Callable[[float], None] = time.sleep,
) -> list[Rewrite]:
    """Replaces the files of several partitions in one Delta transaction. Returns the rewrites that gave way.

    `purpose` is noted in the table's log as `maintenance`.

    A partition that another run has committed since it was planned is left as it is, and what was staged for it is deleted.

    The partitions' transactions are recorded with the numbers that they have. That keeps two commits of one snapshot apart,
    as nights keep theirs apart, and does not make a night that is under way look again: the rows that it replaces are the same.
    """
    gave_way: list[Rewrite] = []
    wanted = list(staged)
    for attempt in range(_MAX_COMMIT_ATTEMPTS):
        table = lake.open(contract)
        present = {row["path"]: row for row in pa.table(table.get_add_actions(flatten=True)).to_pylist()}
        for entry in list(wanted):
            rewrite, files = entry
            if _number(table, contract, rewrite.partition) != rewrite.seen or not present.keys() >= set(rewrite.paths):
                wanted.remove(entry)
                if names_any(table, files):
                    continue  # our own commit, whose answer was lost: what the log names is never deleted
                log.info("%s, %s: replaced by a night meanwhile, left as it is", contract.name, rewrite.name)
                discard(lake, contract, files)
                gave_way.append(rewrite)
        if not wanted:
            return gave_way
        apps = [Transaction(transaction_app(r.partition), r.seen) for r, _ in wanted] if contract.partition_by else None
        properties = CommitProperties(app_transactions=apps, custom_metadata={"run_id": run_id, "maintenance": purpose})
        try:
            table.create_write_transaction(
                [action for rewrite, files in wanted for action in _actions(rewrite, files, present)],
                "append",
                table.schema(),
                list(contract.partition_by),
                commit_properties=properties,
                post_commithook_properties=_NO_CLEANUP,
            )
            return gave_way
        except CommitFailedError:
            _wait(attempt, sleep)
    table = lake.open(contract)
    lost = [(rewrite, files) for rewrite, files in wanted if not names_any(table, files)]
    for _, files in lost:
        discard(lake, contract, files)
    return [*gave_way, *(rewrite for rewrite, _ in lost)]


def _wait(attempt: int, sleep: Callable[[float], None]) -> None:
    sleep(random.uniform(0.05, 0.2) * min(attempt + 1, 10))  # noqa: S311 - jitter, no secret


def _actions(
    rewrite: Rewrite, staged: Sequence[StagedFile], present: Mapping[str, Mapping[str, Any]]
) -> list[AddAction | RemoveAction]:
    now_ms, partition = int(time.time() * 1000), dict(rewrite.partition)
    removes: list[AddAction | RemoveAction] = [
        RemoveAction(
            path=path,
            data_change=False,
            deletion_timestamp=now_ms,
            size=present[path]["size_bytes"],
            partition_values=partition,
        )
        for path in rewrite.paths
    ]
    adds = [
        AddAction(
            path=file.path,
            size=file.size_bytes,
            partition_values=partition,
            modification_time=now_ms,
            data_change=False,
            stats=file.stats,
        )
        for file in staged
    ]
    return [*removes, *adds]


# -- vacuum -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vacuumed:
    """Files that were deleted, or would be. `orphans` counts those that no commit within the log's reach has named."""

    files: int
    size_bytes: int
    orphans: int


def readable_versions(lake: Lake, contract: TableContract, versions: Iterable[int]) -> list[int]:
    """Those of `versions` whose log and data files are still there, in order."""
    found = []
    current = {file.uri for file in data_files(lake.open(contract))}
    root = storage.normalise_uri(lake.table_uri(contract))
    for version in sorted(set(versions)):
        try:
            needed = {file.uri for file in data_files(lake.open(contract, version))} - current
        except DeltaError:
            log.warning("%s: version %d cannot be opened any more, nothing protects its files", contract.name, version)
            continue
        paths = [uri.removeprefix(f"{root}/") for uri in sorted(needed)]
        if absent := len(paths) - len(_sizes(root, paths)):
            log.warning("%s: version %d cannot be read any more, %d of its files are gone", contract.name, version, absent)
        else:
            found.append(version)
    return found


def vacuum(lake: Lake, contract: TableContract, keep: Sequence[int], retention_hours: int, *, dry_run: bool) -> Vacuumed:
    """Deletes the files that neither the table as it is now nor a version of `keep` needs.

    A file stays while a version of the last `retention_hours` hours needs it; one that no commit names, while it is younger
    than that: it may belong to a night that is being staged.

    Args:
        keep: Versions that can be opened (`readable_versions`).
    """
    table = lake.open(contract)
    kept = list(keep) or None
    named = table.vacuum(retention_hours, dry_run=True, enforce_retention_duration=False, full=True, keep_versions=kept)
    # Without `full`, only what commits have taken out of the table.
    removed = set(table.vacuum(retention_hours, dry_run=True, enforce_retention_duration=False))
    # deltalake names files of earlier vacuums as well, for as long as the log remembers them.
    found = _sizes(lake.table_uri(contract), named)
    if found and not dry_run:
        table.vacuum(
            retention_hours,
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            keep_versions=kept,
            post_commithook_properties=_NO_CLEANUP,
        )
    return Vacuumed(len(found), sum(found.values()), len(found.keys() - removed))


def _sizes(root: str, paths: Sequence[str]) -> dict[str, int]:
    """Size in bytes of each of the paths where there is a file."""
    filesystem, folder = storage.filesystem_of(root)
    infos = filesystem.get_file_info([f"{folder}/{path}" for path in paths])
    return {path: info.size for path, info in zip(paths, infos, strict=True) if info.type == pafs.FileType.File}


# -- the log ----------------------------------------------------------------------------------------------------------------


def log_files(lake: Lake, contract: TableContract) -> int:
    """How many files the table's log has."""
    return sum(1 for _ in storage.list_files(f"{lake.table_uri(contract)}/_delta_log"))


def set_retention(lake: Lake, contract: TableContract, retention_hours: int) -> None:
    """Sets what the table itself must know, where it does not yet.

    Commits of nights delete no log entries, since they don't know which versions are kept. And a checkpoint remembers which
    files were taken out of the table for as long as they are to stay: after that, vacuum goes by the age of the files alone.
    """
    for attempt in range(_MAX_COMMIT_ATTEMPTS):
        table = lake.open(contract)
        found = table.metadata().configuration
        wanted = {} if found.get(_LOG_CLEANUP) == "false" else {_LOG_CLEANUP: "false"}
        if timedelta(hours=retention_hours) > _duration(found.get(_FILE_RETENTION), default=timedelta(weeks=1)):
            wanted[_FILE_RETENTION] = f"interval {retention_hours} hours"
        if not wanted:
            return
        try:
            table.alter.set_table_properties(wanted)
        except CommitFailedError:
            if attempt == _MAX_COMMIT_ATTEMPTS - 1:
                raise
            _wait(attempt, time.sleep)


def keep_log_short(lake: Lake, contract: TableContract, keep: Sequence[int], now: datetime | None = None) -> None:
    """Writes a checkpoint of the current version, and deletes log entries that have expired.

    Where a version of `keep` is itself older than the log's retention, no entry is deleted: that version would go with it.
    """
    table = lake.open(contract)
    if not storage.exists(f"{lake.table_uri(contract)}/_delta_log/{table.version():020d}.checkpoint.parquet"):
        table.create_checkpoint()
    retention = _duration(table.metadata().configuration.get(_LOG_RETENTION), default=timedelta(days=30))
    # A day's slack: deltalake goes by the age of the log's files, which are a little younger than the commits.
    expired_before = (now or datetime.now(UTC)) - retention + timedelta(days=1)
    oldest = min(keep, default=None)
    if oldest is not None and _committed_at(lake, contract, oldest) < expired_before:
        log.info("%s: its log is kept whole, version %d refers to entries that have expired", contract.name, oldest)
        return
    table.cleanup_metadata()


def _duration(text: str | None, default: timedelta) -> timedelta:
    """A Delta duration (`interval 90 days`); `default`, the protocol's, where the table has none."""
    if text is None:
        return default
    parts = re.fullmatch(r"interval (\d+) (hour|day|week)s?", text)
    if not parts:
        raise ValueError(f"not a duration that this program reads: {text!r} (for example: interval 90 days)")
    return timedelta(**{f"{parts[2]}s": int(parts[1])})


def _committed_at(lake: Lake, contract: TableContract, version: int) -> datetime:
    commit = lake.open(contract, version).history(1)[0]
    return datetime.fromtimestamp(commit["timestamp"] / 1000, UTC)
