"""Reading a Delta snapshot file by file with pyarrow's own filesystems, in batches, on a driver or an executor.

deltalake's `to_pyarrow_table` and `to_pyarrow_dataset` read through a filesystem written in Python, whose threads pyarrow
may still be running when the interpreter ends: with deltalake 1.6.6 and pyarrow 26 four processes in ten then died of
"terminate called without an active exception" and exit status 134, after their work was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from embedding.tables import storage
from embedding.tables.lake import DataFile, PartitionFilter, data_files

BATCH_ROWS = 8_192


def projected_schema(table: DeltaTable, columns: Sequence[str] | None = None) -> pa.Schema:
    """The Arrow schema of some of a table's columns, or of all."""
    schema = pa.schema(table.schema().to_arrow())
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


Keys = npt.NDArray[np.uint64]

_HEX_DIGITS_A_KEY = 16


def column_keys(column: pa.Array) -> Keys:
    """A number a value: of an id the id itself, of a text of hex digits (a SHA-256) its first 64 bits.

    Two ids never share one; of a billion hashes two do with a chance of 3%. No value may be null, and no hash shorter than 64
    bits or of another length than the rest.
    """
    if pa.types.is_integer(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False)).view(np.uint64)
    if not len(column):
        return np.empty(0, np.uint64)
    column = column.cast(pa.string())
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    text = memoryview(column.buffers()[2])[offsets[0] : offsets[-1]]
    digits = np.frombuffer(text, np.uint8).reshape(len(column), -1)[:, :_HEX_DIGITS_A_KEY]
    return np.frombuffer(bytes.fromhex(digits.tobytes().decode("ascii")), ">u8").astype(np.uint64)


@dataclass(frozen=True)
class Wanted:
    """Which rows a look-up is after: those whose `column` has one of `keys` (`column_keys`; sorted, without duplicates).

    Eight bytes a value, so that tens of millions still travel to every executor. `once`: of rows with one key, one of each
    file is enough.
    """

    column: str
    keys: Keys
    once: bool = False

    def mask(self, column: pa.Array) -> npt.NDArray[np.bool_]:
        """Which of the column's values are wanted; null never is."""
        wanted = np.zeros(len(column), np.bool_)
        known = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else slice(None)
        wanted[known] = _among(self.keys, column_keys(column.drop_null()))
        return wanted

    def without(self, column: pa.Array) -> Wanted:
        """What is still wanted after these values."""
        return Wanted(self.column, self.keys[~np.isin(self.keys, column_keys(column))], self.once)

    def find(self, parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The wanted rows of a file, a batch a row group."""
        wanted = self
        for group in range(parquet.num_row_groups):
            # No threads: a task takes the cores that it was given.
            looked_at = parquet.read_row_group(group, columns=[wanted.column], use_threads=False).column(0).combine_chunks()
            rows = np.flatnonzero(wanted.mask(looked_at))
            if wanted.once and len(rows):
                _, firsts = np.unique(column_keys(looked_at.take(pa.array(rows))), return_index=True)
                rows = rows[np.sort(firsts)]
                wanted = wanted.without(looked_at.take(pa.array(rows)))
            yield from _rows_of(parquet, group, columns, rows)


@dataclass(frozen=True)
class WantedPairs:
    """Rows of a table of pairs: those with one of some pairs (`pair_keys`), or with one of some first or second ids.

    All keys are sorted, without duplicates. Of a billion pairs a few may be found that nobody wanted (3%).
    """

    columns: tuple[str, str]
    pairs: Keys
    firsts: Keys
    seconds: Keys

    def mask(self, firsts: pa.Array, seconds: pa.Array) -> npt.NDArray[np.bool_]:
        """Which of the rows are wanted."""
        found = _among(self.pairs, pair_keys(firsts, seconds))
        for keys, column in ((self.firsts, firsts), (self.seconds, seconds)):
            if len(keys):
                found |= _among(keys, column_keys(column))
        return found

    def find(self, parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """As `Wanted.find`."""
        for group in range(parquet.num_row_groups):
            looked_at = parquet.read_row_group(group, columns=list(self.columns), use_threads=False)
            rows = np.flatnonzero(self.mask(*(looked_at[name].combine_chunks() for name in self.columns)))
            yield from _rows_of(parquet, group, columns, rows)


def pair_keys(firsts: pa.Array, seconds: pa.Array) -> Keys:
    """A number a pair of ids: 64 bits of both, mixed (the finaliser of splitmix64). Two pairs seldom share one."""
    mixed = column_keys(firsts) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) + column_keys(seconds)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _among(keys: Keys, found: Keys) -> npt.NDArray[np.bool_]:
    """Which of the numbers are among sorted keys."""
    if not len(keys):
        return np.zeros(len(found), np.bool_)
    return np.equal(keys[np.minimum(np.searchsorted(keys, found), len(keys) - 1)], found)


def _rows_of(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str], rows: npt.NDArray[np.intp]
) -> Iterator[pa.RecordBatch]:
    """Some rows of a row group, which is not read without any."""
    if len(rows):
        rest = parquet.read_row_group(group, columns=list(columns), use_threads=False)
        yield from rest.take(pa.array(rows)).combine_chunks().to_batches()


def scan_file(file: DataFile, schema: pa.Schema, wanted: Wanted | WantedPairs | None = None) -> Iterator[pa.RecordBatch]:
    """One data file's rows in the columns of `schema`; partition columns come from the log.

    With `wanted` its columns, which the file has, are read first, and the others only of row groups that have a wanted row:
    a look-up of few rows reads a narrow column or two.
    """
    in_file = [name for name in schema.names if name not in file.partition]
    filesystem, path = storage.filesystem_of(file.uri)
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        found = (
            parquet.iter_batches(batch_size=BATCH_ROWS, columns=in_file) if wanted is None else wanted.find(parquet, in_file)
        )
        for batch in found:
            columns = [
                pa.repeat(pa.scalar(file.partition[field.name], field.type), batch.num_rows)
                if field.name in file.partition
                else batch.column(field.name).cast(field.type)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(columns, names=schema.names)


def scan(
    table: DeltaTable, columns: Sequence[str] | None = None, where: PartitionFilter | None = None
) -> Iterator[pa.RecordBatch]:
    """The snapshot's rows, a batch at a time, of the partitions that `where` keeps."""
    schema = projected_schema(table, columns)
    for file in data_files(table, where):
        yield from scan_file(file, schema)


def read_rows(table: DeltaTable, columns: Sequence[str] | None = None, where: PartitionFilter | None = None) -> pa.Table:
    """As `scan`, all at once: for tables and projections that are small by nature (`nights`, a day's quarantine)."""
    schema = projected_schema(table, columns)
    return pa.Table.from_batches([batch.cast(schema) for batch in scan(table, columns, where)], schema)


def matching_rows(left: pa.Table, right: pa.Table, key: Sequence[str]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The places of the rows of two tables that have one key, pair by pair, in the order of the key's first column.

    For tables with columns of lists, which Arrow's join does not take along.
    """
    places = [
        table.select(key).append_column(name, pa.array(np.arange(len(table)))) for name, table in (("l", left), ("r", right))
    ]
    pairs = places[0].join(places[1], list(key), join_type="inner").sort_by(key[0])
    return pairs["l"], pairs["r"]
