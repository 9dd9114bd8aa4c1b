"""What changed in a table between two states of it: which days, and by which files. The log of the Delta table is the feed.

Every commit says of each file whether its rows are new or only in another place: a night's are new, those of a rewrite by
maintenance are not. So the commits between two versions tell the days that changed, and the two snapshots the files that they
differ in. Delta's own change data feed would say "all rows deleted, all inserted" of a day that is replaced, which is every
commit of ours (docs/decisions/0011-fresh-between-nights.md).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from embedding.contracts import TableContract
from embedding.tables import storage
from embedding.tables.lake import DataFile, Lake, data_files, transaction_app


class FeedBrokenError(Exception):
    """The log does not reach back to where one wants to begin, or does not say enough."""


@dataclass(frozen=True)
class TableState:
    """A version of a table, and the days of it that count."""

    version: int
    days: Collection[str]


@dataclass(frozen=True)
class ChangedFiles:
    """The files of changed days that only one of two states has."""

    before: list[DataFile]
    now: list[DataFile]

    @property
    def rows(self) -> int:
        return sum(file.num_rows for file in (*self.before, *self.now))


def changed_partitions(lake: Lake, contract: TableContract, before: int, now: int) -> set[str]:
    """The partitions (`transaction_app`) whose rows a commit after version `before`, up to `now`, has changed.

    Raises FeedBrokenError where a commit's entry in the log is gone. Cost: the entries between the two versions.
    """
    if now < before:
        raise FeedBrokenError(f"{contract.name}: version {now} is older than {before}")
    found: set[str] = set()
    for version in range(before + 1, now + 1):
        try:
            entry = storage.read_bytes(f"{lake.table_uri(contract)}/_delta_log/{version:020d}.json")
        except FileNotFoundError:
            raise FeedBrokenError(f"{contract.name}: the log's entry of version {version} is gone") from None
        for line in entry.splitlines():
            action = json.loads(line)
            changed = action.get("add") or action.get("remove")
            if changed and changed.get("dataChange", True):
                values = changed.get("partitionValues")
                if values is None:
                    raise FeedBrokenError(f"{contract.name}: version {version} does not say of which day it took out a file")
                found.add(transaction_app({name: values[name] for name in contract.partition_by}))
    return found


def changed_files(lake: Lake, contract: TableContract, before: TableState, now: TableState) -> ChangedFiles:
    """The files that make the difference between two states of a table that has a partition a day. Reads the log alone.

    A day that counts in one state only is there with all of its files. Raises FeedBrokenError.
    """
    changed = changed_partitions(lake, contract, before.version, now.version)
    both = set(before.days) & set(now.days)

    def files_of(state: TableState) -> dict[str, DataFile]:
        files = data_files(lake.open(contract, state.version), lambda partition: partition["ds"] in state.days)
        return {
            file.uri: file for file in files if file.partition["ds"] not in both or transaction_app(file.partition) in changed
        }

    old, new = files_of(before), files_of(now)
    return ChangedFiles(
        [file for uri, file in old.items() if uri not in new], [file for uri, file in new.items() if uri not in old]
    )
