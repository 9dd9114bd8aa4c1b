"""What the report says, read from the tables and the releases' manifests. Queries only: no HTML, no pictures, no vectors.

Each query reads the columns and partitions that it needs, and keeps no more rows in memory than a batch. Nothing is
created: a table or a release that does not exist yet is an empty answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedding.contracts import QUARANTINE, TABLES
from embedding.index.history import release_rows
from embedding.index.release import (
    Check,
    Manifest,
    ReleaseError,
    list_releases,
    live_release_id,
    read_check,
    read_manifest,
)
from embedding.report.taste import TasteFacts, read_taste
from embedding.tables.lake import Lake, data_files
from embedding.tables.nights import last_nights
from embedding.tables.scan import scan

NIGHTS_SHOWN = 30
RELEASES_SHOWN = 20
QUARANTINE_DAYS_SHOWN = 14
EXAMPLES_A_REASON = 2


@dataclass(frozen=True)
class Night:
    """A row of `nights`. A day that ran twice has two."""

    run_id: str
    ds: str
    embedding_version: str
    status: str
    failures: list[str] | None
    landed: int
    new: int
    changed: int
    deleted: int
    embedded: int
    encoded: int
    reused: int
    quarantined: int
    coverage: float | None
    images_per_s: float | None
    land_s: float | None
    embed_s: float | None
    encode_s: float | None
    pin_embeddings_version: int
    checked_at: datetime

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def total_s(self) -> float | None:
        """Seconds of landing and embedding; None where neither was timed."""
        known = [second for second in (self.land_s, self.embed_s) if second is not None]
        return sum(known) if known else None

    @property
    def embed_other_s(self) -> float | None:
        """Seconds of the embedding job outside its encoding stage: fetching, hashing, reusing, committing."""
        return None if self.embed_s is None else max(0.0, self.embed_s - (self.encode_s or 0.0))


class Example(NamedTuple):
    """One row of `quarantine`, as far as people want to see it."""

    pin_id: int | None
    detail: str | None
    image_uri: str | None
    content_sha256: str | None


class QuarantineKey(NamedTuple):
    """What rows of `quarantine` are counted by."""

    ds: str
    stage: str
    entity: str
    reason: str
    embedding_version: str | None


@dataclass
class QuarantineGroup:
    """How many rows share a key, and the first of them."""

    key: QuarantineKey
    rows: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class TableState:
    """A table as its log describes it now."""

    name: str
    version: int
    rows: int
    files: int
    size_bytes: int


@dataclass(frozen=True)
class ReleaseState:
    """A whole release: its manifest and its check, None where nobody checked it."""

    manifest: Manifest
    check: Check | None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files.values())


@dataclass(frozen=True)
class Releases:
    """The releases, oldest first, and the live one; `faults` says what could not be read; `rows` are those of the table."""

    all: list[ReleaseState] = field(default_factory=list)
    live: ReleaseState | None = None
    faults: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """All that the report says, but for its galleries, its map and its profiles."""

    home: str
    nights: list[Night]
    quarantine: list[QuarantineGroup]
    tables: list[TableState]
    releases: Releases
    taste: TasteFacts

    @property
    def night(self) -> Night | None:
        """The run that was checked last: "last night"."""
        return self.nights[-1] if self.nights else None


def gather_facts(lake: Lake) -> Facts:
    """Runs every query once."""
    nights = read_nights(lake)
    return Facts(
        home=lake.home,
        nights=nights,
        quarantine=read_quarantine(lake, also=nights[-1].ds if nights else None),
        tables=read_tables(lake),
        releases=read_releases(lake),
        taste=read_taste(lake),
    )


def read_nights(lake: Lake, last: int = NIGHTS_SHOWN) -> list[Night]:
    """The last runs, oldest first by when they were checked."""
    return [Night(**row) for row in last_nights(lake, [column.name for column in fields(Night)], last)]


def read_quarantine(lake: Lake, also: str | None = None, days: int = QUARANTINE_DAYS_SHOWN) -> list[QuarantineGroup]:
    """Counts and examples of the newest `days` of data, and of the day `also`; newest day first, then the most rows."""
    if not lake.exists(QUARANTINE):
        return []
    table = lake.open(QUARANTINE)
    present = {str(file.partition["ds"]) for file in data_files(table)}
    shown = {*sorted(present)[-days:], *(ds for ds in present if ds == also)}
    if not shown:
        return []
    columns = [*QuarantineKey._fields, *Example._fields]
    groups: dict[QuarantineKey, QuarantineGroup] = {}
    for batch in scan(table, columns, lambda partition: partition["ds"] in shown):
        for part in _group_batch(batch):
            group = groups.setdefault(part.key, QuarantineGroup(part.key))
            group.rows += part.rows
            group.examples = (group.examples + part.examples)[:EXAMPLES_A_REASON]
    ordered = sorted(groups.values(), key=lambda group: (-group.rows, group.key.reason))
    return sorted(ordered, key=lambda group: group.key.ds, reverse=True)


def _group_batch(batch: pa.RecordBatch) -> Iterator[QuarantineGroup]:
    """The groups of one batch, counted by Arrow: Python sees a row a group."""
    if not batch.num_rows:
        return
    keys = list(QuarantineKey._fields)
    with_nulls = pc.ScalarAggregateOptions(skip_nulls=False, min_count=0)
    ends = [(name, end, with_nulls) for end in ("first", "last") for name in Example._fields]
    rows = pa.Table.from_batches([batch]).group_by(keys, use_threads=False).aggregate([([], "count_all"), *ends])
    for row in rows.to_pylist():
        examples = [Example(*(row[f"{name}_{end}"] for name in Example._fields)) for end in ("first", "last")]
        yield QuarantineGroup(QuarantineKey(*(row[name] for name in keys)), row["count_all"], examples[: row["count_all"]])


def read_tables(lake: Lake) -> list[TableState]:
    """The tables that exist, from their logs alone."""
    states = []
    for contract in TABLES.values():
        if lake.exists(contract):
            table = lake.open(contract)
            files = data_files(table)
            rows, size = sum(file.num_rows for file in files), sum(file.size_bytes for file in files)
            states.append(TableState(contract.name, table.version(), rows, len(files), size))
    return states


def read_releases(lake: Lake) -> Releases:
    """All releases with their checks. A damaged manifest or pointer becomes a fault, so that the rest still shows."""
    faults: list[str] = []
    live: ReleaseState | None = None
    try:
        live_id = live_release_id(lake)
        live = None if live_id is None else _release_state(lake, read_manifest(lake, live_id), faults)
    except ReleaseError as error:
        faults.append(str(error))
    # The checks of the shown releases only: there may be a release a night, for years.
    states = [_release_state(lake, manifest, faults) for manifest in list_releases(lake, faults)[-RELEASES_SHOWN:]]
    return Releases(states or ([live] if live else []), live, list(dict.fromkeys(faults)), release_rows(lake))


def _release_state(lake: Lake, manifest: Manifest, faults: list[str]) -> ReleaseState:
    check: Check | None = None
    try:
        check = read_check(lake, manifest.release_id)
    except (ValueError, TypeError) as error:
        faults.append(f"the check of release {manifest.release_id} cannot be read ({error})")
    return ReleaseState(manifest, check)


def is_released(night: Night, manifest: Manifest) -> bool:
    """Whether the release holds this night's day, as this night left it."""
    same_encoder = night.embedding_version == manifest.embedding_version
    return same_encoder and night.ds in manifest.days and manifest.pin_embeddings_version >= night.pin_embeddings_version
