"""SQL over a lake's tables, to read them: DuckDB in this process, with the tables, and what is current in them, as views.

    with open_sql(lake) as connection:
        connection.sql("SELECT count(*) FROM current_pins").fetchall()

The tables reach DuckDB as Arrow datasets, wherever the lake lies: columns and days that a question does not need are not read,
and no extension of DuckDB is fetched. SQL that runs there can write nothing and reach no file: external access is off, and the
settings are locked. What does not fit in the memory limit goes to a temporary folder that ends with the connection.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from embedding.contracts import TABLES, TableContract
from embedding.tables import storage
from embedding.tables.lake import Lake, data_files
from embedding.tables.scan import BATCH_ROWS, projected_schema

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DEFAULT_MEMORY = "1GB"
MAX_SPILL = "20GB"
"""Most that one question may put into the temporary folder."""

_READING = ("SELECT", "EXPLAIN")
_ASKS_FOR_NAMES = re.compile(r"\b(show|information_schema|duckdb_\w+|pg_\w+)\b", re.I)


class SqlError(Exception):
    """A question that cannot be answered; the message is for who asked it."""


@dataclass(frozen=True)
class AsOf:
    """Tables as they once were: all as at a time, and those of `versions`, by name, at that version of the Delta table."""

    at: datetime | None = None
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What people ask for every day, in SQL. `reads` names tables and other views; `{version}` is the live encoder's."""

    about: str
    reads: tuple[str, ...]
    sql: str


def _latest(table: str, key: Sequence[str]) -> str:
    """Each key's row of its latest day, without deletions. A join, and no window: the wide columns are not sorted."""
    columns = ", ".join(key)
    latest = f"SELECT {columns}, max(ds) AS ds FROM {table} GROUP BY ALL"  # noqa: S608 - names of the contracts
    return f"SELECT t.* FROM {table} AS t JOIN ({latest}) USING ({columns}, ds) WHERE NOT deleted"  # noqa: S608


VIEWS: dict[str, View] = {
    "current_pins": View("Pins as they are now.", ("pins",), _latest("pins", ["pin_id"])),
    "current_boards": View("Boards as they are now.", ("boards",), _latest("boards", ["board_id"])),
    "current_saves": View(
        "Saves that stand, those of deleted pins among them.",
        ("saves",),
        _latest("saves", ["user_id", "pin_id", "board_id"]),
    ),
    "current_vectors": View(
        "One vector a current pin, of the live release's encoder.",
        ("pin_embeddings", "current_pins"),
        "SELECT v.* FROM pin_embeddings AS v JOIN (SELECT pin_id, ds, source_sha256 FROM current_pins)"
        " USING (pin_id, ds, source_sha256) WHERE v.embedding_version = '{version}'",
    ),
    "current_interests": View(
        "Each user's interests as they are now, under that encoder.",
        ("user_interests",),
        "WITH theirs AS (SELECT * FROM user_interests WHERE embedding_version = '{version}'),"
        " latest AS (SELECT user_id, max({{'ds': ds, 'revision': revision}}) AS at FROM theirs GROUP BY user_id)"
        " SELECT i.* FROM theirs AS i JOIN latest AS l ON l.user_id = i.user_id"
        " AND l.at.ds = i.ds AND l.at.revision = i.revision WHERE i.size > 0",
    ),
}

MACROS: dict[str, View] = {
    "cosine": View("`cosine(a, b)`: the cosine of two vectors.", (), "(a, b) AS list_cosine_similarity(a, b)"),
    "pins_on": View(
        "`pins_on('2026-11-18')`: pins as they were at the end of that day.",
        ("pins",),
        f"(day) AS TABLE {_latest('(FROM pins WHERE ds <= day)', ['pin_id'])}",
    ),
    "neighbours": View(
        "`neighbours(pin, k)`: the k pins nearest to a pin, exactly: it reads every current vector.",
        ("current_vectors",),
        "(pin, k) AS TABLE SELECT v.pin_id, list_cosine_similarity(v.embedding, q.embedding) AS cosine"
        " FROM (SELECT embedding FROM current_vectors WHERE pin_id = pin) AS q, current_vectors AS v"
        " WHERE v.pin_id <> pin ORDER BY cosine DESC, v.pin_id LIMIT k",
    ),
}


class _StreamedDataset(pads.FileSystemDataset):  # type: ignore[misc]
    """A dataset that is read in few batches ahead: by itself Arrow holds dozens, each of up to 131,072 vectors."""

    def scanner(self, **asked: Any) -> pads.Scanner:
        return super().scanner(**{"batch_size": BATCH_ROWS, "batch_readahead": 2, "fragment_readahead": 2} | asked)


def dataset(table: DeltaTable) -> pads.Dataset:
    """A snapshot's rows. Files of days that a filter rules out are not opened.

    Made of the log's partition values alone: with deltalake's own `to_pyarrow_dataset`, a filter by a column whose least and
    greatest value the log does not have loses every row.
    """
    schema, form = projected_schema(table), pads.ParquetFileFormat()
    fragments = []
    for file in data_files(table):
        filesystem, path = storage.filesystem_of(file.uri)
        where = pads.scalar(True)
        for name, value in file.partition.items():
            where = where & (pads.field(name).is_null() if value is None else pads.field(name) == value)
        fragments.append(form.make_fragment(path, filesystem, where))
    filesystem, _ = storage.filesystem_of(table.table_uri)
    return _StreamedDataset(fragments, schema, form, filesystem)


@contextmanager
def open_sql(
    lake: Lake, text: str | None = None, as_of: AsOf | None = None, memory: str = DEFAULT_MEMORY
) -> Iterator[DuckDBPyConnection]:
    """A connection in which the lake's tables, VIEWS and MACROS can be read, and nothing else.

    With `text`, a question, only those that it names are opened. Raises SqlError where there is no lake, or not as it was then.
    """
    import duckdb

    present = [contract for contract in TABLES.values() if lake.exists(contract)]
    if not present:
        raise SqlError(f"there are no tables under {lake.home}: run `make demo`, or give --home")
    names = [contract.name for contract in present]
    wanted = _named(text, names)
    snapshots = {name: _snapshot(lake, TABLES[name], as_of or AsOf()) for name in names if name in wanted}
    opened = {name: table for name, table in snapshots.items() if table is not None}
    with tempfile.TemporaryDirectory(prefix="pinlake-sql-") as spill, duckdb.connect(":memory:") as connection:
        try:
            settings = {
                "memory_limit": memory,
                "temp_directory": spill,
                "max_temp_directory_size": MAX_SPILL,
                "TimeZone": "UTC",
            }
            for setting, value in settings.items():
                connection.execute(f"SET {setting} = '{value.replace(chr(39), '')}'")
        except duckdb.Error as error:
            raise SqlError(f"--memory {memory}: {_said(error)}") from error
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET max_temp_directory_size = ?", [MAX_SPILL])
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in opened.items():
            connection.register(name, dataset(table))
        _define(connection, lake, set(opened))
        for setting in (
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "python_enable_replacements = false",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        yield connection


def ask(connection: DuckDBPyConnection, text: str) -> pa.RecordBatchReader:
    """The answer to one question, a stream. Raises SqlError for what is no question, or cannot be answered."""
    import duckdb

    try:
        statements = connection.extract_statements(text)
        if len(statements) != 1:
            raise SqlError(f"one question at a time: these are {len(statements)}" if statements else "there is no question")
        kind = statements[0].type.name
        if kind not in _READING:
            raise SqlError(f"the tables can only be read here, by SELECT, SHOW, DESCRIBE, SUMMARIZE or EXPLAIN; this is {kind}")
        answer = connection.sql(statements[0].query)
        return answer.to_arrow_reader(BATCH_ROWS)
    except duckdb.CatalogException as error:
        raise SqlError(_not_there(_said(error))) from error
    except duckdb.Error as error:
        raise SqlError(_said(error)) from error


def batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The stream's batches. Raises SqlError where the question fails on the way: a cast, no memory, a file that is gone."""
    import duckdb

    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise SqlError(_said(error)) from error
        yield batch


def _named(text: str | None, tables: Sequence[str]) -> set[str]:
    """The tables that a question names, or that what it names reads; all where it names none, or asks what there is."""
    known = [*tables, *VIEWS, *MACROS]
    found = set(known) if text is None or _ASKS_FOR_NAMES.search(text) else _words(text) & set(known)
    wanted: set[str] = set()
    while found:
        name = found.pop()
        wanted.add(name)
        view = VIEWS.get(name) or MACROS.get(name)
        found |= set(view.reads if view else ()) - wanted
    return wanted or _named(None, tables)


def _words(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"\w+", text)}


def _snapshot(lake: Lake, contract: TableContract, as_of: AsOf) -> DeltaTable | None:
    """The table as of then; None where it was not there yet."""
    version, table = as_of.versions.get(contract.name), lake.snapshot(contract)
    try:
        if version is not None:
            table.load_as_version(version)
        elif as_of.at is not None:
            if min(commit["timestamp"] for commit in table.history()) > as_of.at.timestamp() * 1000:
                return None
            table.load_as_version(as_of.at)
    except DeltaError as error:
        raise SqlError(f"there is no version {version} of {contract.name}, whose last one is {table.version()}") from error
    return table


def _define(connection: DuckDBPyConnection, lake: Lake, tables: set[str]) -> None:
    """Makes the views and macros whose tables are there, in an order in which each finds what it reads."""
    there, version = set(tables), None
    for kind, made in (("VIEW", VIEWS), ("MACRO", MACROS)):
        for name, view in made.items():
            if not there >= set(view.reads):
                continue
            sql = view.sql
            if "{version}" in sql:
                version = version or _version(lake)
                sql = sql.format(version=version.replace("'", "''"))
            connection.execute(f"CREATE {kind} {name} {'AS ' if kind == 'VIEW' else ''}{sql}")
            there.add(name)


def _version(lake: Lake) -> str:
    """The encoder of the live release; before there is one, that of the last night."""
    from embedding.index.release import live_version
    from embedding.tables.nights import last_nights

    version = live_version(lake)
    if version is None and (night := last_nights(lake, ["embedding_version"], 1)):
        version = night[0]["embedding_version"]
    return version or ""


def _not_there(said: str) -> str:
    """What DuckDB says of a name that it does not know, with the names that there are."""
    missing = re.match(r"Table with name (\S+) does not exist", said)
    if missing is None:
        return said
    if missing[1] in TABLES:
        return f"this lake has no table {missing[1]} yet"
    if view := VIEWS.get(missing[1]):
        return f"this lake has no {missing[1]} yet: it reads {', '.join(view.reads)}"
    return f"there is no table {missing[1]}. There are {', '.join([*TABLES, *VIEWS])}, and {', '.join(MACROS)} as functions"


def _said(error: Exception) -> str:
    """What DuckDB says, without its advice to change settings, which are locked."""
    text = str(error).split("\n\nPossible solutions:")[0].split("\n\nSee a")[0].strip()
    return re.sub(r"^(\w+ )?Error: ", "", text)
