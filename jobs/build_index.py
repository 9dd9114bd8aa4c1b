"""Builds an index release of all current pins: train, fill shards on the executors, merge, measure, write the manifest.

    spark-submit jobs/build_index.py --home .pinlake --ds 2026-11-18 --run-id by-hand --encoder live

A release holds the current state over every day whose latest night passed its gate under the encoder, at one version of each
table; `--ds` only says which night asked. If a release of that very state exists, it is taken as it is.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from embedding.contracts import EMBEDDING_DIM, NIGHTS
from embedding.encoder.config import ConfigError, EncoderConfig
from embedding.index.build import (
    TRAINING_POINTS_A_CENTROID,
    cheapest_point,
    choose_factory,
    fill_shard,
    lists_of,
    merge_shards,
    train,
    tune,
)
from embedding.index.release import (
    INDEX_FILE,
    MANIFEST,
    Manifest,
    ReleaseError,
    ReleaseFile,
    make_release_id,
    release_uri,
    write_candidate,
)
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake
from jobs.current import PIN_COLUMNS, CurrentState, batch_vectors, current_pins, current_state, exact_neighbours, sample_pins
from jobs.session import ArrowRows, arguments, day_argument, job_encoder, log, map_arrow, run_program, spark_session

ROWS_A_SHARD = 1_000_000
RECIPE_VERSION = 1
QUERIES = 500

_SHARD = pa.schema([("shard", pa.string()), ("rows", pa.int64())])
_DESCRIBED = pa.schema([pa.field(name, pa.int64() if name.endswith("_id") else pa.string()) for name in PIN_COLUMNS])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", type=day_argument, help="the day of the night that asked, for the log")
    return parser.parse_args(argv)


def fill_shards(current: DataFrame, trained: bytes, work_uri: str) -> list[tuple[str, int]]:
    """Each executor task adds its pins to a copy of the trained index, and writes a shard and its pins' descriptions."""

    def fill(batches: ArrowRows) -> ArrowRows:
        context = TaskContext.get()
        name = f"{context.partitionId() if context else 0:05d}"
        with tempfile.TemporaryDirectory() as folder:
            described = Path(folder) / f"pins-{name}.parquet"
            with pa.OSFile(str(described), "wb") as sink, _parquet_writer(sink) as writer:
                rows = fill_shard(trained, _written(batches, writer), Path(folder) / f"shard-{name}.faiss")
            filesystem, path = storage.filesystem_of(work_uri)
            pafs.copy_files(folder, path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)
        yield pa.RecordBatch.from_pylist([{"shard": name, "rows": rows}], schema=_SHARD)

    return [(row.shard, row.rows) for row in map_arrow(current, fill, _SHARD).collect()]


def _parquet_writer(sink: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetWriter(sink, _DESCRIBED, compression="zstd", write_page_index=True)


def _written(batches: ArrowRows, writer: Any) -> Any:
    """The batches' vectors and ids, after writing what describes them."""
    for batch in batches:
        writer.write_batch(batch.select(_DESCRIBED.names).cast(_DESCRIBED))
        yield batch_vectors(batch)


def build(
    spark: SparkSession, lake: Lake, state: CurrentState, release_id: str, config: EncoderConfig, run_id: str
) -> Manifest:
    """Writes all files of the release, the manifest last. An earlier, unfinished attempt is overwritten."""
    current = current_pins(spark, lake, state).persist()
    rows = current.count()
    if not rows:
        raise ReleaseError(f"no current pin has a vector of {state.embedding_version}: there is nothing to release")
    factory = choose_factory(rows)
    training = sample_pins(current, rows, lists_of(factory) * TRAINING_POINTS_A_CENTROID, seed=1)
    trained = train(factory, EMBEDDING_DIM, training[0])
    shards = max(min(2, rows // 100), rows // ROWS_A_SHARD, 1)
    work_uri = f"{lake.releases_uri}/.building-{release_id}"
    _clear(work_uri)
    filled = fill_shards(current.repartition(shards), trained, work_uri)
    if sum(count for _, count in filled) != rows:
        raise ReleaseError(f"{rows} pins went in, but the shards hold {sum(count for _, count in filled)}")
    queries_QD, query_ids = sample_pins(current, rows, QUERIES, seed=2)
    exact_QK = exact_neighbours(current, queries_QD, query_ids)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        filesystem, path = storage.filesystem_of(work_uri)
        pafs.copy_files(path, folder, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
        shard_files = sorted(local.glob("shard-*.faiss"))
        merge_shards(trained, shard_files, local / INDEX_FILE)
        for shard in shard_files:
            shard.unlink()
        sweep = tune(faiss.read_index(str(local / INDEX_FILE)), factory, queries_QD, query_ids, exact_QK)
        point = cheapest_point(sweep)
        files = {p.name: ReleaseFile(p.stat().st_size, file_sha256(str(p))) for p in sorted(local.iterdir())}
        _upload(local, release_uri(lake, release_id))
    manifest = Manifest(
        release_id=release_id,
        ds=state.days[-1],
        embedding_version=state.embedding_version,
        encoder=config.name,
        rows=rows,
        dim=EMBEDDING_DIM,
        factory=factory,
        nprobe=point.nprobe,
        recall_at_10=point.recall_at_10,
        days=state.days,
        pins_version=state.pins_version,
        pin_embeddings_version=state.pin_embeddings_version,
        built_by=run_id,
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        files=files,
        sweep=sweep,
    )
    storage.write_atomic(f"{release_uri(lake, release_id)}/{MANIFEST}", manifest.to_json())
    _clear(work_uri)
    return manifest


def _upload(folder: Path, uri: str) -> None:
    filesystem, path = storage.filesystem_of(uri)
    filesystem.create_dir(path, recursive=True)
    pafs.copy_files(str(folder), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)


def _clear(uri: str) -> None:
    filesystem, path = storage.filesystem_of(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)
    filesystem.create_dir(path, recursive=True) if not uri.endswith("/") else None


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: there is nothing to release")
    state = current_state(lake, encoder.version)
    release_id = make_release_id(state.days[-1], {**vars(state), "recipe": RECIPE_VERSION, "faiss": faiss.__version__})
    if storage.exists(f"{release_uri(lake, release_id)}/{MANIFEST}"):
        log.info("%s: release %s of this state exists already", args.ds or encoder.version, release_id)
    else:
        manifest = build(spark_session(f"build {release_id}"), lake, state, release_id, encoder.config, args.run_id)
        log.info(
            "%s: %d rows, %s, nprobe %d, recall@10 %.4f",
            release_id,
            manifest.rows,
            manifest.factory,
            manifest.nprobe,
            manifest.recall_at_10,
        )
    write_candidate(lake, args.run_id, release_id)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    run_program(main, ConfigError, ReleaseError)
