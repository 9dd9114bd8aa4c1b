"""Where everything of one pinlake lies, and its Delta tables: open, and commit a day atomically.

Two rules of Delta that this file exists for (docs/decisions/0002-one-commit-a-day.md): a day's partition is replaced in
one transaction by files that executors staged before, and two runs of one day never mix, because each commit carries
the day's transaction number and is refused if another run has moved it since the run looked.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from embedding.contracts import ENCODERS_FOLDER, TABLES, TableContract
from embedding.redaction import CredentialsInAddressError, has_credentials
from embedding.tables import storage
from embedding.tables.staging import StagedFile

Partition = Mapping[str, str | None]

_MAX_COMMIT_ATTEMPTS = 30

log = logging.getLogger("pinlake")


def run_folder(run_id: str) -> str:
    """The name of a run's folders. Two runs never share one, whatever those who started them called them.

    ASCII's letters and digits, `-` and `_` stay. A name with anything else, of over 100 characters, or that ends as if it had
    one already, gets a hash at its end.

    >>> run_folder("../../by hand")
    '______by_hand-0357f9ef125381f2'
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", run_id)[:100]
    if name == run_id and not re.search(r"-[0-9a-f]{16}$", name):
        return name
    return f"{name}-{hashlib.sha256(run_id.encode()).hexdigest()[:16]}"


class DayChangedError(Exception):
    """Another run committed this partition after ours had read it: what we staged answers an old question."""


@dataclass(frozen=True)
class Lake:
    """The addresses below one home (a folder or an object-store prefix). Creates nothing by itself.

    Raises CredentialsInAddressError where the home's address carries a key or a password: it would stand in logs.
    """

    home: str

    def __post_init__(self) -> None:
        if has_credentials(self.home):
            what_to_do = "give them by the environment (docs/security.md)"
            raise CredentialsInAddressError(f"a lake's address may not carry credentials: {what_to_do}")
        object.__setattr__(self, "home", storage.normalise_uri(self.home))

    def table_uri(self, contract: TableContract) -> str:
        return f"{self.home}/tables/{contract.name}"

    @property
    def releases_uri(self) -> str:
        return f"{self.home}/releases/pins"

    @property
    def encoders_uri(self) -> str:
        return f"{self.home}/{ENCODERS_FOLDER}"

    def run_uri(self, ds: str, run_id: str) -> str:
        """Folder for what the steps of one run tell each other (statistics; never data)."""
        return f"{self.home}/runs/ds={ds}/{run_folder(run_id)}"

    def exists(self, contract: TableContract) -> bool:
        return DeltaTable.is_deltatable(self.table_uri(contract))

    def open(self, contract: TableContract, version: int | None = None) -> DeltaTable:
        """The table, created with its constraints on first use. `version` opens an earlier one.

        Constraints that are missing are added: whoever creates the table may not have come to them yet, or have died before.
        """
        if not self.exists(contract):
            self._create(contract)
        table = DeltaTable(self.table_uri(contract), version=version)
        if version is None and not _constraints(contract).items() <= table.metadata().configuration.items():
            for name, expression in contract.constraints.items():
                self._constrain(table, name, expression)
            table = DeltaTable(self.table_uri(contract))
        return table

    def snapshot(self, contract: TableContract, version: int | None = None) -> DeltaTable:
        """A table that exists, to read it: nothing is created or mended. Raises TableNotFoundError or DeltaError."""
        return DeltaTable(self.table_uri(contract), version=version)

    def _create(self, contract: TableContract) -> None:
        DeltaTable.create(
            self.table_uri(contract),
            Schema.from_arrow(contract.schema),
            mode="ignore",
            partition_by=list(contract.partition_by),
            name=contract.name,
            description=contract.about,
            configuration={
                "delta.enableChangeDataFeed": "false",
                "delta.logRetentionDuration": "interval 90 days",
                # A night's commit would clean the log without a look at what releases refer to: maintenance does it.
                "delta.enableExpiredLogCleanup": "false",
            },
        )

    @staticmethod
    def _constrain(table: DeltaTable, name: str, expression: str) -> None:
        """Adds a constraint. Two first nights may create the table side by side: the other one's constraint is as good, and its
        commit, of this constraint or of the next, may refuse ours."""
        for attempt in range(_MAX_COMMIT_ATTEMPTS):
            if f"delta.constraints.{name}" in table.metadata().configuration:
                return
            try:
                table.alter.add_constraint({name: expression})
                return
            except DeltaError:
                table.update_incremental()
                if attempt == _MAX_COMMIT_ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - jitter, no secret

    def create_all(self) -> None:
        for contract in TABLES.values():
            self.open(contract)


def _constraints(contract: TableContract) -> dict[str, str]:
    """A contract's constraints as a Delta table's configuration has them."""
    return {f"delta.constraints.{name}": expression for name, expression in contract.constraints.items()}


@dataclass(frozen=True)
class DataFile:
    """One live data file of a table: `uri`, and the values of its partition columns."""

    uri: str
    size_bytes: int
    num_rows: int
    partition: dict[str, str | None]


PartitionFilter = Callable[[Partition], bool]


def partition_is(**values: str | None) -> PartitionFilter:
    """A filter for the partitions whose columns have these values."""
    return lambda partition: all(partition[name] == value for name, value in values.items())


def data_files(table: DeltaTable, where: PartitionFilter | None = None) -> list[DataFile]:
    """The files of a table's snapshot in the partitions that `where` keeps (all without it). Reads the log only, no data."""
    rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    root = storage.normalise_uri(table.table_uri)
    files = [
        DataFile(
            uri=f"{root}/{row['path']}",
            size_bytes=row["size_bytes"],
            num_rows=row["num_records"] or 0,
            partition={key.removeprefix("partition."): row[key] for key in row if key.startswith("partition.")},
        )
        for row in rows
    ]
    return [file for file in files if where is None or where(file.partition)]


def transaction_app(partition: Partition) -> str:
    """The name of a partition's Delta transactions."""
    return "/".join(f"{key}={value}" for key, value in partition.items())


def partition_version(table: DeltaTable, partition: Partition) -> int:
    """How often this partition has been committed: read it when planning, hand it to `replace_partition`."""
    return counter(table, transaction_app(partition))


def counter(table: DeltaTable, app: str) -> int:
    """The last number that a Delta transaction of this name has written; 0 before the first."""
    return table.transaction_version(app) or 0


def _remove_action(row: Mapping[str, Any], partition: Partition, now_ms: int) -> RemoveAction:
    return RemoveAction(
        path=row["path"],
        data_change=True,
        deletion_timestamp=now_ms,
        size=row["size_bytes"],
        partition_values=dict(partition),
    )


def _add_actions(partition: Partition, staged: Sequence[StagedFile]) -> list[AddAction]:
    now_ms = int(time.time() * 1000)
    return [
        AddAction(
            path=file.path,
            size=file.size_bytes,
            partition_values=dict(partition),
            modification_time=now_ms,
            data_change=True,
            stats=file.stats,
        )
        for file in staged
    ]


def _remove_actions(table: DeltaTable, partition: Partition) -> list[RemoveAction]:
    now_ms = int(time.time() * 1000)
    present = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return [
        _remove_action(row, partition, now_ms)
        for row in present
        if all(row[f"partition.{key}"] == value for key, value in partition.items())
    ]


def discard(lake: Lake, contract: TableContract, staged: Sequence[StagedFile]) -> None:
    """Deletes staged files that will not be committed."""
    for file in staged:
        storage.delete_quietly(f"{lake.table_uri(contract)}/{file.path}")


def names_any(table: DeltaTable, staged: Sequence[StagedFile]) -> bool:
    """Whether the snapshot has one of these files: a commit of several is atomic, so then it has them all."""
    ours = {f"{storage.normalise_uri(table.table_uri)}/{file.path}" for file in staged}
    return any(file.uri in ours for file in data_files(table)) if ours else False


def replace_partition(
    lake: Lake,
    contract: TableContract,
    partition: Partition,
    staged: Sequence[StagedFile],
    *,
    expected_version: int,
    run_id: str,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Makes `staged` the whole content of `partition`, in one Delta transaction. Returns the table's new version.

    Commits of other partitions that come between are no obstacle: the commit is built again on top of them. A commit of
    this one raises DayChangedError: nothing was committed, and the staged files are gone. With nothing staged over nothing
    present, the commit moves the partition's number alone: of two runs that found nothing and something, one must lose.

    Args:
        partition: A value for every partition column of the table.
        expected_version: `partition_version` of the snapshot that the caller planned with.
        sleep: Waits between attempts; a parameter for tests.
    """
    app = transaction_app(partition)

    def actions(table: DeltaTable) -> list[AddAction | RemoveAction]:
        return [*_remove_actions(table, partition), *_add_actions(partition, staged)]

    counters = {app: expected_version}
    return _commit(lake, contract, partition, staged, actions, counters, {app: expected_version + 1}, run_id, sleep)


def append_once(
    lake: Lake,
    contract: TableContract,
    partition: Partition,
    staged: Sequence[StagedFile],
    *,
    seen: Mapping[str, int],
    moved: Mapping[str, int],
    run_id: str,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Adds `staged` to `partition`, in one Delta transaction that moves counters with it. Returns the table's new version.

    A counter is a Delta transaction identifier: a table keeps the last number of each. Where one of `seen` has another number
    than the caller planned with, or gets one at the same moment, DayChangedError is raised: nothing was committed, and the
    staged files are gone. So whoever counts his batches adds each of them once, however often he is killed.

    Args:
        partition: A value for every partition column of the table.
        seen: Counters as `counter` gave them for the snapshot that was planned with.
        moved: Counters with their new numbers.
        sleep: Waits between attempts; a parameter for tests.
    """

    def actions(_: DeltaTable) -> list[AddAction | RemoveAction]:
        return [*_add_actions(partition, staged)]

    return _commit(lake, contract, partition, staged, actions, seen, moved, run_id, sleep)


def _commit(
    lake: Lake,
    contract: TableContract,
    partition: Partition,
    staged: Sequence[StagedFile],
    actions: Callable[[DeltaTable], list[AddAction | RemoveAction]],
    seen: Mapping[str, int],
    moved: Mapping[str, int],
    run_id: str,
    sleep: Callable[[float], None],
) -> int:
    """Commits what `actions` gives for the latest snapshot, as long as the counters `seen` stay; then they are as `moved`."""
    if set(partition) != set(contract.partition_by):
        raise ValueError(f"{contract.name} is partitioned by {contract.partition_by}, not by {tuple(partition)}")
    # A counter that is only watched is written as it was: who moves it at the same moment is in conflict, and one of us fails.
    transactions = [Transaction(app, number) for app, number in sorted({**seen, **moved}.items())]
    properties = CommitProperties(
        app_transactions=transactions, custom_metadata={"run_id": run_id, "partition": transaction_app(partition)}
    )
    for attempt in range(_MAX_COMMIT_ATTEMPTS):
        table = lake.open(contract)
        if changed := [app for app, number in seen.items() if counter(table, app) != number]:
            if names_any(table, staged):
                return table.version()  # our own commit, whose answer was lost: what the log names is never deleted
            discard(lake, contract, staged)
            raise DayChangedError(f"{contract.name}, {', '.join(changed)}: committed by another run meanwhile")
        try:
            table.create_write_transaction(
                actions(table), "append", table.schema(), list(contract.partition_by), commit_properties=properties
            )
            return DeltaTable(lake.table_uri(contract)).version()
        except CommitFailedError:
            sleep(random.uniform(0.05, 0.2) * min(attempt + 1, 10))  # noqa: S311 - jitter, no secret
    raise CommitFailedError(f"{contract.name}: no commit in {_MAX_COMMIT_ATTEMPTS} attempts, others were always faster")


def remove_partitions(
    lake: Lake, contract: TableContract, where: PartitionFilter, *, run_id: str, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Takes all partitions that `where` keeps out of a table, in one Delta transaction. Returns how many there were.

    Their transaction numbers move on: a run that has planned to replace one of them is refused when it commits. The files
    themselves go with the next vacuum.
    """
    for attempt in range(_MAX_COMMIT_ATTEMPTS):
        table, now_ms = lake.open(contract), int(time.time() * 1000)
        removes: list[AddAction | RemoveAction] = []
        apps: set[str] = set()
        for row in pa.table(table.get_add_actions(flatten=True)).to_pylist():
            partition = {name: row[f"partition.{name}"] for name in contract.partition_by}
            if where(partition):
                removes.append(_remove_action(row, partition, now_ms))
                apps.add(transaction_app(partition))
        if not removes:
            return 0
        moved = [Transaction(app, (table.transaction_version(app) or 0) + 1) for app in sorted(apps)]
        properties = CommitProperties(app_transactions=moved, custom_metadata={"run_id": run_id})
        try:
            table.create_write_transaction(
                removes, "append", table.schema(), list(contract.partition_by), commit_properties=properties
            )
            return len(apps)
        except CommitFailedError:
            sleep(random.uniform(0.05, 0.2) * min(attempt + 1, 10))  # noqa: S311 - jitter, no secret
    raise CommitFailedError(f"{contract.name}: no commit in {_MAX_COMMIT_ATTEMPTS} attempts, others were always faster")


@dataclass(frozen=True)
class Replacement:
    """What `replace_partition` is to do with one table."""

    contract: TableContract
    partition: Partition
    staged: Sequence[StagedFile]
    expected_version: int


def replace_in_order(lake: Lake, replacements: Sequence[Replacement], *, run_id: str) -> None:
    """Commits several tables one after the other, the decisive one last.

    A DayChangedError, from any of them, leaves no staged file behind; the tables before it are committed, and equal to what
    the winner wrote or will write (docs/decisions/0002-one-commit-a-day.md).
    """
    for done, r in enumerate(replacements):
        try:
            replace_partition(lake, r.contract, r.partition, r.staged, expected_version=r.expected_version, run_id=run_id)
        except DayChangedError:
            for rest in replacements[done + 1 :]:
                discard(lake, rest.contract, rest.staged)
            raise
        log.info("%s: %d rows in %d files", r.contract.name, sum(f.num_rows for f in r.staged), len(r.staged))
