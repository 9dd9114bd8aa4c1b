"""Reading a Delta snapshot file by file with pyarrow's own filesystems, in batches, on a driver or an executor.

deltalake's `to_pyarrow_table` and `to_pyarrow_dataset` read through a filesystem written in Python, whose threads pyarrow
may still be running when the interpreter ends: with deltalake 1.6.6 and pyarrow 26 four processes in ten then died of
"terminate called without an active exception" and exit status 134, after their work was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def scan_file(file: DataFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """One data file's rows in the columns of `schema`; partition columns come from the log."""
    in_file = [name for name in schema.names if name not in file.partition]
    filesystem, path = storage.filesystem_of(file.uri)
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=in_file):
            columns = [
                pa.array([file.partition[field.name]] * batch.num_rows, field.type)
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
