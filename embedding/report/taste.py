"""What the report says of the taste graph: its figures, what its gate found, and the interests of many users at once.

Reads the live graph's manifest, the gate's notes and `user_interests`, of this about MOST_ROWS rows, newest days first: a
user's latest rows are the current ones, so that those of earlier days that are not read change nothing about whom was read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from numpy.typing import NDArray

from embedding.contracts import RELATED_PINS, USER_INTERESTS, TableContract
from embedding.tables.lake import DataFile, Lake, data_files, partition_is
from embedding.tables.scan import Wanted, column_keys, projected_schema, scan_file
from embedding.taste import store
from embedding.taste.checks import TasteCheck, last_checks
from embedding.taste.graph import GraphError, GraphManifest
from embedding.taste.interests import DEFAULT_SETTING, Floats, Ids

MOST_ROWS = 1_000_000
"""Rows of `user_interests` whose users are looked at: 24 MB."""
MOST_INTERESTS = 2_000
"""Interests on the map: placing them takes the square of their number in time and memory."""
DAYS_SHOWN = 30


@dataclass(frozen=True)
class TasteFacts:
    """The live graph, the gate's checks (oldest first), rows written a day (by table), and what could not be read."""

    graph: GraphManifest | None = None
    checks: list[TasteCheck] = field(default_factory=list)
    written: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def last_check(self) -> TasteCheck | None:
        return self.checks[-1] if self.checks else None


def read_taste(lake: Lake) -> TasteFacts:
    """From manifests, notes and the tables' logs: no row is read."""
    faults: list[str] = []
    graph = None
    try:
        live = store.live_graph_id(lake)
        graph = store.read_manifest(lake, live) if live else None
    except (GraphError, ValueError, KeyError) as error:
        faults.append(f"the live graph cannot be read: {error}")
    written = {contract.name: _rows_a_day(lake, contract) for contract in (RELATED_PINS, USER_INTERESTS)}
    return TasteFacts(graph, last_checks(lake, faults, DAYS_SHOWN), written, faults)


def _rows_a_day(lake: Lake, contract: TableContract) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for file in data_files(lake.snapshot(contract)) if lake.exists(contract) else ():
        rows[str(file.partition["ds"])] += file.num_rows
    return {ds: rows[ds] for ds in sorted(rows)[-DAYS_SHOWN:]}


@dataclass(frozen=True)
class CurrentUsers:
    """Users with interests, in an order of chance that is the same every day.

    user_ids, interests, pins: (U,) each; of a user the number of interests, and of the pins in them. files: Where their rows
    are, and those of users who have none left. whole: Whether these are all users, or those alone whose rows are newest.
    """

    user_ids: Ids
    interests: Ids
    pins: Ids
    files: list[DataFile]
    whole: bool


def current_users(lake: Lake, embedding_version: str, most_rows: int = MOST_ROWS) -> CurrentUsers:
    """The users who have interests under an encoder. Files are read newest day first, until they have `most_rows` together."""
    none = np.empty(0, np.int64)
    if not lake.exists(USER_INTERESTS):
        return CurrentUsers(none, none, none, [], whole=True)
    table = lake.snapshot(USER_INTERESTS)
    every = data_files(table, partition_is(embedding_version=embedding_version))
    every.sort(key=lambda file: str(file.partition["ds"]), reverse=True)
    read_by_then = np.cumsum([file.num_rows for file in every])
    files = every[: max(1, int(np.searchsorted(read_by_then, most_rows, side="right")))]
    rows = current_only(_rows_of(files, _schema(table, "size")))
    user_ids, of_row = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
    pins = np.bincount(of_row, rows["size"].to_numpy(), len(user_ids)).astype(np.int64)
    order = np.argsort(user_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), kind="stable")
    interests = np.bincount(of_row, minlength=len(user_ids))
    return CurrentUsers(user_ids[order], interests[order], pins[order], files, whole=len(files) == len(every))


def _schema(table: DeltaTable, *columns: str) -> pa.Schema:
    """Those columns, beside the ones that say what is current."""
    return projected_schema(table, ["user_id", "ds", "revision", *columns])


def current_only(rows: pa.Table) -> pa.Table:
    """Of each user the rows of the latest day, of these the ones of the greatest revision; none of who has nothing left.

    `rows` has at least the columns of `_schema` and size. For all that the report shows of many users, what is current is
    decided here.
    """
    if not len(rows):
        return rows
    days = rows["ds"].combine_chunks().dictionary_encode()
    rank_of = np.argsort(np.argsort(np.array(days.dictionary.to_pylist(), dtype=str)))
    moments = (rank_of[days.indices.to_numpy()] << 40) + rows["revision"].to_numpy()
    user_ids, of_row = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
    latest = np.full(len(user_ids), -1, np.int64)
    np.maximum.at(latest, of_row, moments)
    return rows.filter(pa.array((moments == latest[of_row]) & (rows["size"].to_numpy() > 0)))


def _rows_of(files: list[DataFile], schema: pa.Schema, wanted: Wanted | None = None) -> pa.Table:
    batches = (batch for file in files for batch in scan_file(file, schema, wanted))
    return pa.Table.from_batches([batch.cast(schema) for batch in batches], schema)


@dataclass(frozen=True)
class InterestSample:
    """Current interests of some users, a user's all or none.

    user_ids, sizes: (N,). importances: (N,), as of the latest day among them, so that they compare. medoids: (N, D),
    L2-normalised.
    """

    user_ids: Ids
    labels: list[str | None]
    sizes: Ids
    importances: NDArray[np.float64]
    medoids: Floats

    def __len__(self) -> int:
        return len(self.user_ids)


def sample_interests(lake: Lake, users: CurrentUsers, most: int = MOST_INTERESTS) -> InterestSample | None:
    """Interests of the first users, as many of these as have `most` together. None where nobody has any."""
    chosen = np.sort(users.user_ids[np.cumsum(users.interests) <= most])
    if not len(chosen):
        return None
    schema = _schema(lake.snapshot(USER_INTERESTS), "cluster", "importance", "size", "label", "embedding")
    rows = current_only(_rows_of(users.files, schema, Wanted("user_id", np.sort(column_keys(pa.array(chosen))))))
    rows = rows.sort_by([("user_id", "ascending"), ("cluster", "ascending")])
    days = [date.fromisoformat(ds).toordinal() for ds in rows["ds"].to_pylist()]
    faded = np.exp(-DEFAULT_SETTING.decay_per_day * (max(days) - np.array(days)))
    vectors = rows["embedding"].combine_chunks()
    return InterestSample(
        user_ids=rows["user_id"].to_numpy(),
        labels=rows["label"].to_pylist(),
        sizes=rows["size"].to_numpy(),
        importances=rows["importance"].to_numpy() * faded,
        medoids=vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), -1),
    )


def users_to_show(users: CurrentUsers, wanted: tuple[int, ...] = (6, 3, 1)) -> list[int]:
    """A user for each wanted number of interests, or the nearest that somebody has; of such users one with most pins."""
    shown: list[int] = []
    counts = sorted({int(count) for count in users.interests})
    for number in wanted:
        if counts:
            count = min(counts, key=lambda each: (abs(each - number), each))
            counts.remove(count)
            of_count = np.flatnonzero(users.interests == count)
            shown.append(int(users.user_ids[of_count[np.argmax(users.pins[of_count])]]))
    return shown
