"""Taking rows out of the tables for good: a file is written anew without them, or with nothing of them but their ids.

Which rows those are says jobs/forgotten_rows.py; how new files take the place of old ones, beside nights, maintenance.py. A
table is forgotten in as its kind says, so a new table with a pin, a board or a user in it needs a line here
(docs/decisions/0015-forgetting.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from numpy.typing import NDArray

from embedding.contracts import (
    BOARD_EMBEDDINGS,
    BOARDS,
    FORGOTTEN_SOURCE,
    PIN_EMBEDDINGS,
    PINS,
    QUARANTINE,
    RELATED_PINS,
    SAVES,
    USER_EMBEDDINGS,
    USER_INTERESTS,
    USERS,
    Stage,
    TableContract,
)
from embedding.tables import storage
from embedding.tables.lake import DataFile, Lake, Partition, partition_version, transaction_app
from embedding.tables.maintenance import Rewrite, RowsChangedError
from embedding.tables.scan import scan_file
from embedding.tables.staging import StagedFile, Stager

FORGET = "forget"
"""What the log of a table says of such a commit."""

LATEST_BY = ("ds", "revision")
"""The columns that say which rows of a `Derived` table are current, as far as it has them: the greatest ones' are."""


@dataclass(frozen=True)
class Derived:
    """A table that is made of others and read by its current rows alone: what has not been current for long goes, whoever's.

    entity: The columns that name whose rows these are, a pin, a board or a user first.
    nothing: A number, or a list, that is 0 or empty in a row that says that there is nothing any more; None without such rows.
    """

    contract: TableContract
    entity: tuple[str, ...]
    nothing: str | None = None


LOGS = (PINS, BOARDS)
"""Tables of a row a change, whose forgotten rows keep the id: `check_night` counts them against the day's export."""

DERIVED = (
    Derived(RELATED_PINS, ("pin_id",), nothing="related"),
    Derived(USER_INTERESTS, ("user_id", "embedding_version"), nothing="size"),
    Derived(BOARD_EMBEDDINGS, ("board_id", "embedding_version"), nothing="size"),
    Derived(USER_EMBEDDINGS, ("user_id", "embedding_version"), nothing="size"),
)

FORGOTTEN_IN: tuple[TableContract, ...] = (*LOGS, SAVES, PIN_EMBEDDINGS, QUARANTINE, *(made.contract for made in DERIVED))
"""In this order: vectors go where the row of `pins` is a deletion."""

TOMBSTONES = (USERS, *LOGS)
"""Tables in which the id of what was deleted stays, alone: so that an old day, landed again, does not bring it back."""

_BLANK: dict[str, dict[str, Any]] = {
    PINS.name: {"deleted": True, "source_sha256": FORGOTTEN_SOURCE},
    BOARDS.name: {"deleted": True},
    QUARANTINE.name: {"image_uri": None, "content_sha256": None, "source_sha256": None},
}


def blank_values(contract: TableContract, partition: Partition) -> Mapping[str, Any] | None:
    """What the columns of a forgotten row become; None where the row itself goes.

    Rows stay that `check_night` counts against the export: those of LOGS, and what could not land.
    """
    if contract.name not in _BLANK or partition.get("stage") == Stage.EMBED:
        return None
    nullable = (field.name for field in contract.file_schema if field.nullable)
    return (dict.fromkeys(nullable) if contract in LOGS else {}) | _BLANK[contract.name]


def forget_rows(rows: pa.RecordBatch, chosen: NDArray[np.bool_], values: Mapping[str, Any] | None) -> pa.RecordBatch:
    """The batch without the chosen rows or, where there are `values`, with these in them."""
    if values is None:
        return rows.filter(pa.array(~chosen))
    places = pa.array(np.arange(rows.num_rows), mask=chosen)  # taking a null gives null, in a column of any type
    for name, value in values.items():
        index = rows.schema.get_field_index(name)
        column = rows.column(index).take(places)
        if value is not None:
            column = column.fill_null(pa.scalar(value, column.type))
        rows = rows.set_column(index, name, column)
    return rows


def stage_forgotten(root: str, contract: TableContract, file: DataFile, places: NDArray[np.int64]) -> StagedFile | None:
    """Stages a file's rows anew, those at `places` forgotten; None where none is left. Memory: one file's rows.

    Raises RowsChangedError where the file has not the rows that the log says.
    """
    values, chosen, begin = blank_values(contract, file.partition), np.zeros(file.num_rows, np.bool_), 0
    chosen[places] = True
    with Stager(root, contract, file.partition, max_rows=file.num_rows + 1) as stager:
        for batch in scan_file(file, contract.file_schema):
            stager.add(forget_rows(batch, chosen[begin : begin + batch.num_rows], values))
            begin += batch.num_rows
        stager.flush()
        staged = sum(made.num_rows for made in stager.files)
        if begin != file.num_rows or staged != file.num_rows - (0 if values is not None else int(chosen.sum())):
            raise RowsChangedError(f"{file.uri}: {file.num_rows} rows by the log, {begin} read, {staged} staged")
    return stager.files[0] if stager.files else None


def rewrites_of(
    table: DeltaTable, staged: Sequence[tuple[DataFile, Sequence[StagedFile]]]
) -> list[tuple[Rewrite, list[StagedFile]]]:
    """Files of a snapshot with what is to take their place, as a rewrite a partition for `commit_rewrites`.

    Older days first: a row must not become the latest one because what followed it was forgotten before it.
    """
    root, partitions = storage.normalise_uri(table.table_uri), dict[str, list[tuple[DataFile, Sequence[StagedFile]]]]()
    for file, new in staged:
        partitions.setdefault(transaction_app(file.partition), []).append((file, new))
    planned = []
    for _, replaced in sorted(partitions.items()):
        old = tuple(file for file, _ in replaced)
        paths = tuple(file.uri.removeprefix(f"{root}/") for file in old)
        rewrite = Rewrite(old[0].partition, old, paths, len(old), partition_version(table, old[0].partition))
        planned.append((rewrite, [file for _, new in replaced for file in new]))
    return planned


def last_forgetting(lake: Lake, contract: TableContract) -> int | None:
    """The table's version that last forgot something, as far as its log goes back: earlier ones hold what is forgotten."""
    entries = lake.open(contract).history()
    return max((int(entry["version"]) for entry in entries if entry.get("maintenance") == FORGET), default=None)
