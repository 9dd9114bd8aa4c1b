"""Finding a day's few rows in a table of many: the day's ids or hashes go to the files, not the files' rows through a join."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession

from embedding.tables.lake import PartitionFilter, data_files
from embedding.tables.scan import Wanted, column_keys, projected_schema, scan_file
from jobs.session import ArrowRows, map_arrow, map_items

_KEYS = pa.schema([("keys", pa.binary())])


def wanted_rows(frame: DataFrame, column: str, *, once: bool = False) -> Wanted:
    """The rows of a table whose `column`, an id or a hash, has one of the frame's values.

    Eight bytes a value pass through the driver, and from there go to each task: a night of 40 million changes sends 320 MB.
    """

    def collect_keys(batches: ArrowRows) -> ArrowRows:
        keys = [column_keys(batch.column(0)) for batch in batches]
        if keys:
            yield pa.RecordBatch.from_pylist([{"keys": np.unique(np.concatenate(keys)).tobytes()}], schema=_KEYS)

    found = [np.frombuffer(row.keys, np.uint64) for row in map_arrow(frame.select(column), collect_keys, _KEYS).collect()]
    return Wanted(column, np.unique(np.concatenate([np.empty(0, np.uint64), *found])), once)


def find_rows(
    spark: SparkSession, table: DeltaTable, columns: Sequence[str], where: PartitionFilter | None, wanted: Wanted
) -> DataFrame:
    """As `read_table`, of the wanted rows alone: their column is read of all rows, the others where there is a wanted one."""
    schema = projected_schema(table, columns)
    return map_items(spark, data_files(table, where), partial(scan_file, schema=schema, wanted=wanted), schema)
