"""What changed in the tables since a release was built, as a part that is searched beside it: fresh between nights.

The change feed is the log of the Delta tables. Each commit of a day moves the number of that day's transactions
(embedding/tables/lake.py), and nothing else does, no compaction for instance: so two snapshots say which days were committed
between them without a look at a file. The rows of those days are compared, as they were when the release was built and as they
are now; what differs is read whole, and a day that nobody committed costs nothing.

The rules are the nightly build's (jobs/current.py): a pin's state is its row of the latest day among those that passed their
gate. Two cases are finer, because a reader looks while a night is at work: a pin whose latest row has neither a vector nor a
reason yet stays as the release has it, and one that is in quarantine is gone, as it will be from the next release.
(docs/decisions/0011-fresh-between-nights.md)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import DeltaTable

from embedding.contracts import PIN_EMBEDDINGS, PINS, QUARANTINE, Stage
from embedding.index.factory import SearchSetting, deserialize, train_index
from embedding.index.part import ATTRIBUTES, DESCRIBED, Part
from embedding.index.recall import Floats, Ids, Truth, exact_top_k
from embedding.index.release import Manifest
from embedding.index.shards import Shards
from embedding.index.tuning import TOP, OneIndex, Wanted, best_point, lists_for, sweep
from embedding.tables.lake import Lake, data_files, partition_is, partition_version
from embedding.tables.nights import passed_days
from embedding.tables.scan import Wanted as WantedRows
from embedding.tables.scan import column_keys, matching_rows, projected_schema, scan_file

log = logging.getLogger("pinlake")

COMPARED_BELOW = 20_000
"""So many changed pins are compared one by one; more of them get an index of lists, tuned to the release's recall goal."""
MOST = 2_000_000
"""Changed pins that are searched, 0.3 KB each; what is beyond waits for the next release. Deletions are never left out."""

_ROW = pa.schema(
    [
        ("pin_id", pa.int64()),
        ("source_sha256", pa.string()),
        ("board_id", pa.int64()),
        ("deleted", pa.bool_()),
        ("content_sha256", pa.string()),
    ]
)
"""What a day says of a pin, its words apart; `content_sha256` is empty for a pin without a vector."""


@dataclass(frozen=True)
class Changes:
    """What became of pins since a release was built.

    superseded: Pins whose row of the release no longer counts, ascending: deleted, changed, or in quarantine.
    part: The changed and new pins as they are now; None where there is none.
    left_out: How many more there are than a reader can hold.
    pins_version, pin_embeddings_version: The tables' versions that were looked at.
    """

    superseded: Ids
    part: Part | None
    left_out: int
    pins_version: int
    pin_embeddings_version: int

    @property
    def searchable(self) -> int:
        """How many changed and new pins are found."""
        return 0 if self.part is None else len(self.part.shards)


@dataclass(frozen=True)
class _Snapshot:
    """The days that count, and the tables at one version each."""

    days: list[str]
    pins: DeltaTable
    vectors: DeltaTable
    embedding_version: str

    @cached_property
    def numbers(self) -> dict[str, tuple[int, int]]:
        """How often each day was committed to either table."""
        return {
            ds: (
                partition_version(self.pins, {"ds": ds}),
                partition_version(self.vectors, {"embedding_version": self.embedding_version, "ds": ds}),
            )
            for ds in self.days
        }

    def of_pins(self, ds: str, columns: Sequence[str], ids: Ids | None = None) -> pa.Table:
        """Columns of a day's rows of `pins`; with `ids`, of theirs alone."""
        return _read(self.pins, columns, ids, ds=ds)

    def of_vectors(self, ds: str, columns: Sequence[str], ids: Ids | None = None) -> pa.Table:
        """As `of_pins`, of `pin_embeddings`."""
        return _read(self.vectors, columns, ids, ds=ds, embedding_version=self.embedding_version)

    def rows(self, ds: str, ids: Ids | None = None) -> pa.Table:
        """A day's rows (`_ROW`); none of a day that does not count."""
        if ds not in self.numbers:
            return _ROW.empty_table()
        said = self.of_pins(ds, ["pin_id", "source_sha256", "board_id", "deleted"], ids)
        vectors = self.of_vectors(ds, ["pin_id", "source_sha256", "content_sha256"], ids)
        both = said.join(vectors, ["pin_id", "source_sha256"], join_type="left outer")
        # A join never finds null equal to null: what is missing gets a value that nothing else has.
        for name, missing in (("board_id", -1), ("content_sha256", "")):
            both = both.set_column(both.schema.get_field_index(name), name, pc.fill_null(both[name], missing))
        return both.select(_ROW.names).cast(_ROW)


def _read(table: DeltaTable, columns: Sequence[str], ids: Ids | None, **partition: str) -> pa.Table:
    schema = projected_schema(table, columns)
    keys = None if ids is None else WantedRows("pin_id", np.sort(column_keys(pa.array(ids))))
    files = data_files(table, partition_is(**partition))
    batches = [batch for file in files for batch in scan_file(file, schema, keys)]
    plain = pa.schema([(field.name, field.type) for field in schema])
    return pa.Table.from_batches([batch.cast(schema) for batch in batches], schema).cast(plain)


class ChangeFeed:
    """The changes of a lake's tables since a release."""

    def __init__(self, lake: Lake, manifest: Manifest, most: int = MOST):
        self._lake, self._manifest, self._most = lake, manifest, most
        self._seen: dict[str, tuple[int, int]] | None = None
        self._changes = Changes(np.empty(0, np.int64), None, 0, manifest.pins_version, manifest.pin_embeddings_version)

    @cached_property
    def _before(self) -> _Snapshot:
        manifest = self._manifest
        return self._at(manifest.days, manifest.pins_version, manifest.pin_embeddings_version)

    def _at(self, days: list[str], pins: int | None, vectors: int | None) -> _Snapshot:
        # Vectors before pins: a night that commits between the two shows pins without vectors, never the reverse.
        tables = self._lake.snapshot(PIN_EMBEDDINGS, vectors), self._lake.snapshot(PINS, pins)
        return _Snapshot(days, tables[1], tables[0], self._manifest.embedding_version)

    def look(self) -> Changes:
        """What changed until now; the same object as before where no day was committed meanwhile.

        Where there are no tables beside the releases, as on a host that was given those alone, nothing changes. Raises
        DeltaError or OSError where the tables cannot be read, as they are now or as the release was built from them.
        """
        if not (self._lake.exists(PINS) and self._lake.exists(PIN_EMBEDDINGS)):
            return self._changes
        now = self._at(passed_days(self._lake, self._manifest.embedding_version), None, None)
        if now.numbers != self._seen:
            self._changes = self._compare(now)
            self._seen = now.numbers
        return self._changes

    def _compare(self, now: _Snapshot) -> Changes:
        before = self._before
        days = sorted(set(before.days) | set(now.days), reverse=True)
        touched = {ds: now.rows(ds) for ds in days if before.numbers.get(ds) != now.numbers.get(ds)}
        differing = {ds: _differing_pins(before.rows(ds), rows) for ds, rows in touched.items()}
        gone, living = self._resolve(now, touched, differing)
        part, left_out = self._part(now, living) if living else (None, 0)
        superseded = np.sort(np.concatenate([gone, *living.values()]))
        return Changes(superseded, part, left_out, now.pins.version(), now.vectors.version())

    def _resolve(self, now: _Snapshot, touched: dict[str, pa.Table], differing: dict[str, Ids]) -> tuple[Ids, dict[str, Ids]]:
        """The pins that are gone, and the others by the day of their state, the newest first; both only if that changed."""
        gone, living = [np.empty(0, np.int64)], {}
        pending, due = _union(*differing.values()), np.empty(0, np.int64)
        for ds in sorted(set(now.days) | set(differing), reverse=True):
            if not len(pending):
                break
            # A pin that differs on earlier days alone is still what this day says, as it was for the release.
            due = _union(due, *([differing[ds]] if ds in differing else []))
            rows = touched.get(ds)
            found = now.rows(ds, pending) if rows is None else rows.filter(pc.is_in(rows["pin_id"], pa.array(pending)))
            ids = found["pin_id"].to_numpy()
            pending = np.setdiff1d(pending, ids)
            deleted = found["deleted"].to_numpy()
            embedded = pc.not_equal(found["content_sha256"], "").to_numpy()
            counts = np.isin(ids, due)
            rejected = self._rejected(ds, found.filter(pa.array(counts & ~deleted & ~embedded)))
            gone.append(np.concatenate([ids[counts & deleted], rejected]))
            if (counts & ~deleted & embedded).any():
                living[ds] = ids[counts & ~deleted & embedded]
        return np.concatenate([*gone, pending]), living

    def _rejected(self, ds: str, rows: pa.Table) -> Ids:
        """Those of a day's rows that are in quarantine for what they say now."""
        if not len(rows):
            return np.empty(0, np.int64)
        key = ["pin_id", "source_sha256"]
        partition = {"ds": ds, "stage": str(Stage.EMBED), "embedding_version": self._manifest.embedding_version}
        rejected = _read(self._lake.snapshot(QUARANTINE), key, None, **partition)
        ids: Ids = rows.select(key).join(rejected, key, join_type="left semi")["pin_id"].to_numpy()
        return ids

    def _part(self, now: _Snapshot, living: dict[str, Ids]) -> tuple[Part, int]:
        tables, room = [], self._most
        for ds, ids in living.items():  # the newest day first
            taken = ids[: max(room, 0)]
            room -= len(taken)
            if len(taken):
                words = now.of_pins(ds, [*DESCRIBED.names, "source_sha256"], taken)
                vectors = now.of_vectors(ds, ["pin_id", "source_sha256", "embedding"], taken)
                tables.append(_with_vectors(words, vectors))
        described = pa.concat_tables(tables).sort_by("pin_id").combine_chunks()
        left_out = sum(map(len, living.values())) - len(described)
        if left_out > 0:
            log.error(
                "%d pins changed since release %s: %d of them wait for the next one",
                len(described) + left_out,
                self._manifest.release_id,
                left_out,
            )
        return make_part(described, self._manifest.choice.wanted if self._manifest.choice else Wanted()), left_out


def _union(*ids: Ids) -> Ids:
    return np.unique(np.concatenate([np.empty(0, np.int64), *ids]))


def _differing_pins(before: pa.Table, now: pa.Table) -> Ids:
    """The pins of the rows that only one of two tables has."""
    both = ((before, now), (now, before))
    return _union(*(one.join(other, _ROW.names, join_type="left anti")["pin_id"].to_numpy() for one, other in both))


def _with_vectors(words: pa.Table, vectors: pa.Table) -> pa.Table:
    """Descriptions and `embedding` of the pins whose words and vector are of one source."""
    of_words, of_vectors = matching_rows(words, vectors, ["pin_id", "source_sha256"])
    return words.select(DESCRIBED.names).take(of_words).append_column("embedding", vectors["embedding"].take(of_vectors))


def make_part(described: pa.Table, wanted: Wanted) -> Part:
    """An index in memory of some pins: `DESCRIBED` and `embedding`, ascending by pin."""
    ids = described["pin_id"].to_numpy()
    flat = pc.list_flatten(described["embedding"]).to_numpy()
    vectors_ND = np.ascontiguousarray(flat.reshape(len(ids), -1), np.float32)
    index, setting = _index_of(vectors_ND, ids, wanted)
    pins = described.drop_columns(["embedding"])
    attributes = pa.Table.from_batches(_attributes(pins))
    return Part(Shards([index], [ids]), setting, pads.dataset(pins), pads.dataset(attributes), np.empty(0, np.int64))


def _attributes(pins: pa.Table) -> Iterator[pa.RecordBatch]:
    ids, boards, tags = (pins[name].combine_chunks() for name in ("pin_id", "board_id", "tags"))
    on_board = pc.is_valid(boards)
    parents = pc.list_parent_indices(tags)
    for kind, of_pins, values in (
        ("board", ids.filter(on_board), boards.filter(on_board).cast(pa.string())),
        ("tag", ids.take(parents), pc.list_flatten(tags)),
    ):
        columns = [pa.repeat(pa.scalar(kind), len(of_pins)), values, of_pins]
        yield pa.RecordBatch.from_arrays(columns, schema=ATTRIBUTES)


def _index_of(vectors_ND: Floats, ids: Ids, wanted: Wanted) -> tuple[faiss.Index, SearchSetting]:
    rows, dim = vectors_ND.shape
    factory = "Flat" if rows < COMPARED_BELOW else f"IVF{lists_for(rows)},SQ8"
    index: Any = deserialize(train_index(factory, dim, vectors_ND[:: max(1, rows // 200_000)]))
    index.add(vectors_ND)
    if factory == "Flat":
        return index, SearchSetting()
    index.make_direct_map()
    queries = np.linspace(0, rows - 1, 200).astype(np.int64)
    near = exact_top_k(vectors_ND[queries], [(vectors_ND, ids)], 100)
    points = sweep(
        OneIndex(index, ids), factory, vectors_ND[queries], Truth.of(*near, ids[queries], TOP), wanted, latencies=False
    )
    return index, best_point(points, wanted.recall_goal).setting
