"""What the checks of nights and of migrations share: a look at every vector of a day, and the versions of the tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession

from embedding.contracts import EMBEDDING_DIM, PIN_EMBEDDINGS, PINS
from embedding.quality.gate import NORM_TOLERANCE, VectorFacts
from embedding.tables.lake import Lake, partition_is
from jobs.session import ArrowRows, map_arrow, read_table


def one_row(aggregate: DataFrame) -> Row:
    row = aggregate.first()
    assert row is not None, "an aggregate without groups has one row"
    return row


_PARTIAL = pa.schema(
    [("rows", pa.int64()), ("wrong_dimension", pa.int64()), ("off_norm", pa.int64()), ("sum", pa.list_(pa.float64()))]
)


def _look_at_vectors(batches: ArrowRows) -> ArrowRows:
    """A partition's counts, and the sum of its vectors."""
    rows, wrong, off, total = 0, 0, 0, np.zeros(EMBEDDING_DIM)
    for batch in batches:
        rows += batch.num_rows
        column = batch.column("embedding")
        lengths = np.diff(column.offsets.to_numpy())
        wrong += int((lengths != EMBEDDING_DIM).sum())
        good = column.filter(pa.array(lengths == EMBEDDING_DIM))
        vectors_ND = good.flatten().to_numpy(zero_copy_only=False).reshape(-1, EMBEDDING_DIM).astype(np.float64)
        norms = np.linalg.norm(vectors_ND, axis=1)
        off += int((~(np.abs(norms - 1) <= NORM_TOLERANCE)).sum())
        total += np.nan_to_num(vectors_ND).sum(axis=0)
    yield pa.RecordBatch.from_pylist([{"rows": rows, "wrong_dimension": wrong, "off_norm": off, "sum": total}], schema=_PARTIAL)


def vector_facts(spark: SparkSession, lake: Lake, ds: str, version: str) -> VectorFacts:
    vectors = read_table(spark, lake.open(PIN_EMBEDDINGS), ["embedding"], partition_is(ds=ds, embedding_version=version))
    parts = map_arrow(vectors, _look_at_vectors, _PARTIAL).collect()
    rows = sum(part.rows for part in parts)
    total = np.sum([part["sum"] for part in parts], axis=0) if parts else np.zeros(EMBEDDING_DIM)
    return VectorFacts(
        wrong_dimension=sum(part.wrong_dimension for part in parts),
        off_norm=sum(part.off_norm for part in parts),
        mean_vector_norm=float(np.linalg.norm(total) / rows) if rows else None,
    )


def table_versions(lake: Lake) -> dict[str, int]:
    """The columns of `nights` that say which versions of the tables were looked at."""
    return {f"{contract.name}_version": lake.open(contract).version() for contract in (PINS, PIN_EMBEDDINGS)}
