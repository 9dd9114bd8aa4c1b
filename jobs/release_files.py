"""The files of a release, written by executors: the index in shards, the pins' descriptions, their attributes.

Shared by jobs/build_index.py and benchmarks. Every task writes to a temporary folder of its own and uploads whole files under
names that its number gives, so a task that is tried again replaces what it left.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.index.build import Layout, Shard, merge_pieces
from embedding.index.part import ATTRIBUTES
from embedding.index.release import ReleaseFile
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from jobs.current import task_number
from jobs.session import ArrowRows, map_arrow

ROWS_A_GROUP = 16_384
"""Rows of a Parquet row group: a look-up of a few pins reads as little."""

WRITTEN = pa.schema(
    [("number", pa.int64()), ("rows", pa.int64()), ("name", pa.string()), ("size", pa.int64()), ("sha", pa.string())]
)


@dataclass(frozen=True)
class Written:
    """Files that tasks uploaded into a release, and the rows of each task, by its number."""

    files: dict[str, ReleaseFile]
    rows: dict[int, int]


def merge_shards(
    spark: SparkSession, layout: Layout, pieces: Sequence[int], trained: bytes, work_uri: str, release: str
) -> tuple[Written, list[Shard]]:
    """Merges the pieces of each shard; `pieces` are the numbers of those that were filled.

    A task an executor, one shard after the other: a merge fills memory and disk, and leaves the cores idle.
    """
    piece_numbers = sorted(pieces)

    def merge(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                shard = Shard(number, 0)
                mine = [piece for piece in piece_numbers if piece // layout.pieces_a_shard == number]
                with tempfile.TemporaryDirectory() as folder:
                    paths = [_fetched(work_uri, f"piece-{piece:05d}", Path(folder)) for piece in mine]
                    index, ids = Path(folder) / shard.index_file, Path(folder) / shard.ids_file
                    rows = merge_pieces(trained, paths, index, ids)
                    yield uploaded(number, rows, [index, ids], release)

    written = collected(map_arrow(spark.range(0, layout.shards, 1, min(layout.shards, _executors(spark))), merge, WRITTEN))
    return written, [Shard(number, written.rows[number]) for number in range(layout.shards)]


def _executors(spark: SparkSession) -> int:
    """How many executors there are now; 1 where driver and executor are one process."""
    known: Any = spark.sparkContext._jsc
    return max(1, int(known.sc().getExecutorMemoryStatus().size()) - 1)


def write_attributes(pins: DataFrame, tasks: int, release: str) -> Written:
    """What a search may be confined to: (kind, value, pin_id) of boards and tags, in this order: a value is one range."""
    boards = pins.where(F.col("board_id").isNotNull()).select(
        F.lit("board").alias("kind"), F.col("board_id").cast("string").alias("value"), "pin_id"
    )
    tags = pins.select(F.lit("tag").alias("kind"), F.explode(F.array_distinct("tags")).alias("value"), "pin_id")
    both = boards.unionByName(tags.where(F.col("value").isNotNull()))

    def write(batches: ArrowRows) -> ArrowRows:
        number, rows = task_number(), 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"attributes-{number:05d}.parquet"
            with pq.ParquetWriter(path, ATTRIBUTES, compression="zstd", write_page_index=True) as writer:
                for batch in batches:
                    writer.write_table(pa.Table.from_batches([batch.cast(ATTRIBUTES)]), ROWS_A_GROUP)
                    rows += batch.num_rows
            yield uploaded(number, rows, [path], release)

    ordered = both.repartitionByRange(tasks, "kind", "value").sortWithinPartitions("kind", "value", "pin_id")
    return collected(map_arrow(ordered, write, WRITTEN))


def upload(paths: Sequence[Path], uri: str) -> None:
    filesystem, target = storage.filesystem_of(uri)
    filesystem.create_dir(target, recursive=True)
    for path in paths:
        source = pafs.LocalFileSystem()
        pafs.copy_files(str(path), f"{target}/{path.name}", source_filesystem=source, destination_filesystem=filesystem)


def uploaded(number: int, rows: int, paths: Sequence[Path], uri: str) -> pa.RecordBatch:
    """Uploads files; one row a file, the task's number and rows in each."""
    files = [(path.name, path.stat().st_size, file_sha256(str(path))) for path in paths]
    upload(paths, uri)
    described = [{"number": number, "rows": rows, "name": name, "size": size, "sha": sha} for name, size, sha in files]
    return pa.RecordBatch.from_pylist(described, schema=WRITTEN)


def collected(frame: DataFrame) -> Written:
    """The rows that tasks made with `uploaded`."""
    rows = frame.collect()
    return Written({row.name: ReleaseFile(row.size, row.sha) for row in rows}, {row.number: row.rows for row in rows})


def _fetched(uri: str, name: str, folder: Path) -> tuple[Path, Path]:
    """A piece's index and ids, copied from where the pieces lie."""
    filesystem, source = storage.filesystem_of(uri)
    paths = folder / f"{name}.faiss", folder / f"{name}.npy"
    for path in paths:
        target = pafs.LocalFileSystem()
        pafs.copy_files(f"{source}/{path.name}", str(path), source_filesystem=filesystem, destination_filesystem=target)
    return paths
