"""What a night would do without this design, on the same lake: the peers of benchmarks/increment.py, a program each.

    spark-submit benchmarks/increment_peers.py scan --home LAKE --version VERSION --ds DAY
    python benchmarks/increment_peers.py merge --home LAKE --version VERSION --ds DAY --table FOLDER

scan: finds which contents of the day have a vector, and takes that vector, with a plain Spark join (the day broadcast to the
history, then a row a content), read by Spark's own Parquet reader. It stands for the look-up alone; fetching, hashing and
writing are not in it.

merge: keeps one row a pin, and merges the day's rows into it by pin_id with delta-rs, as the documentation of
`DeltaTable.merge` has it. It stands for the writing alone. The table of the state before the day is made first, untimed.

Each prints a line of JSON with what it found and its own seconds, start-up not included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from embedding.contracts import PIN_EMBEDDINGS
from embedding.tables.lake import Lake, Partition, PartitionFilter, data_files, partition_is
from embedding.tables.scan import read_rows, scan

MERGED_COLUMNS = ["pin_id", "content_sha256", "embedding"]


def scan_everything(lake: Lake, version: str, ds: str) -> dict[str, float]:
    """The day's contents that are known from other days, with their vectors."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    table = lake.open(PIN_EMBEDDINGS)
    spark = SparkSession.builder.appName("peer: scan").config("spark.log.level", "WARN").getOrCreate()
    started = time.monotonic()
    history = spark.read.parquet(*[file.uri for file in data_files(table, _before(version, ds))])
    day = spark.read.parquet(*[file.uri for file in data_files(table, partition_is(embedding_version=version, ds=ds))])
    contents = day.select("content_sha256").distinct()
    columns = ["embedding", "has_image", "has_text", "encoded_by"]
    shown = history.join(F.broadcast(contents), "content_sha256", "left_semi")
    one_each = shown.groupBy("content_sha256").agg(*[F.first(name).alias(name) for name in columns])
    known = one_each.select(F.sum(F.size("embedding")), F.count("*")).first()
    unknown = contents.join(history.select("content_sha256"), "content_sha256", "left_anti").count()
    assert known is not None, "an aggregate without groups has one row"
    return {"seconds": round(time.monotonic() - started, 3), "known": int(known[1]), "unknown": unknown}


def merge_day(lake: Lake, version: str, ds: str, folder: str) -> dict[str, float]:
    """One row a pin, and the day merged into it."""
    table = lake.open(PIN_EMBEDDINGS)
    schema = pa.schema([pa.schema(table.schema().to_arrow()).field(name) for name in MERGED_COLUMNS])
    if not DeltaTable.is_deltatable(folder):
        days = sorted({str(file.partition["ds"]) for file in data_files(table, _before(version, ds))})
        # The first day has every pin: the state that the later, small days are merged into.
        rows = (
            batch.cast(schema) for batch in scan(table, MERGED_COLUMNS, partition_is(embedding_version=version, ds=days[0]))
        )
        write_deltalake(folder, pa.RecordBatchReader.from_batches(schema, rows))
    changes = read_rows(table, MERGED_COLUMNS, partition_is(embedding_version=version, ds=ds))
    state = DeltaTable(folder)
    before = {file.uri: file.size_bytes for file in data_files(state)}
    started = time.monotonic()
    merging = state.merge(changes, "target.pin_id = source.pin_id", source_alias="source", target_alias="target")
    done = merging.when_matched_update_all().when_not_matched_insert_all().execute()
    seconds = time.monotonic() - started
    written = sum(file.size_bytes for file in data_files(DeltaTable(folder)) if file.uri not in before)
    copied = int(done["num_target_rows_copied"])
    return {"seconds": round(seconds, 3), "written_bytes": written, "rows_copied": copied, "rows_changed": changes.num_rows}


def _before(version: str, ds: str) -> PartitionFilter:
    def keep(partition: Partition) -> bool:
        return partition["embedding_version"] == version and str(partition["ds"]) < ds

    return keep


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("scan", "merge"))
    for name in ("--home", "--version", "--ds"):
        parser.add_argument(name, required=True)
    parser.add_argument("--table", help="where merge keeps its table")
    args = parser.parse_args(argv)
    lake = Lake(args.home)
    if args.peer == "scan":
        print(json.dumps(scan_everything(lake, args.version, args.ds)))
    else:
        print(json.dumps(merge_day(lake, args.version, args.ds, args.table)))


if __name__ == "__main__":
    main()
