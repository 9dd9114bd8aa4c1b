"""Walks from the pins of a graph and writes what is related to each into the table `related_pins`.

    spark-submit jobs/build_graph.py --home .pinlake --run-id by-hand
    spark-submit jobs/relate_pins.py --home .pinlake --run-id by-hand

After the first time only those pins are walked from that have, or had, a board on which something changed since the graph
before, and those whose row names a pin that has left the graph: a board further away that changes is seen with the next
change nearby, or with `--all`. What changed is what the graph's build found (jobs/graph_reads.py); no table is compared.
Executors open the graph memory-mapped and share the pins; the day's rows become visible in one commit. Done again for the
same graph, it changes nothing; where a newer graph is live, neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import RELATED_PINS
from embedding.tables.lake import (
    DataFile,
    DayChangedError,
    Lake,
    data_files,
    partition_is,
    partition_version,
    replace_partition,
)
from embedding.tables.scan import projected_schema, scan_file
from embedding.tables.staging import StagedFile, Stager
from embedding.taste import store
from embedding.taste.graph import PINS_SIDE, GraphError, GraphManifest
from embedding.taste.walks import DEFAULT_WALK, WalkSetting, related
from jobs.argument_types import whole_number
from jobs.graph_reads import changed_edges, graph_pins, only_in_graph, pins_on
from jobs.lookups import wanted_rows
from jobs.session import (
    ArrowRows,
    arguments,
    log,
    map_items,
    read_table,
    run_program,
    spark_session,
    stage,
    until_settled,
)

PINS_A_TASK, PINS_AT_ONCE = 20_000, 64


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    at_least_one = partial(whole_number, least=1)
    parser.add_argument("--related", type=at_least_one, default=50, help="related pins of a pin (default %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=DEFAULT_WALK.steps, help="steps from a pin (default %(default)s)")
    parser.add_argument("--all", action="store_true", help="walk from every pin, though nothing near it changed")
    return parser.parse_args(argv)


def graphs_of_day(spark: SparkSession, lake: Lake, ds: str) -> list[str]:
    """The graphs that a day's rows come from: one, where there are any."""
    rows = read_table(spark, lake.open(RELATED_PINS), ["graph_id"], partition_is(ds=ds))
    return [row.graph_id for row in rows.distinct().limit(2).collect()]


def pins_to_walk(spark: SparkSession, lake: Lake, now: GraphManifest, before: GraphManifest | None, ds: str) -> DataFrame:
    """pin_id of those whose rows are out of date; some of them may have left the graph."""
    if before is None:
        had = related_rows_before(spark, lake, ds).where(F.size("related") > 0).select("pin_id").distinct()
        gone = only_in_graph(had, lake, now, PINS_SIDE, there=False)
        return graph_pins(spark, lake, now).union(gone).distinct()
    changed = changed_edges(spark, lake, now, before).persist()
    pins = changed.select("pin_id").distinct()
    gone = only_in_graph(pins, lake, now, PINS_SIDE, there=False).persist()
    near = pins_on(changed.select("board_id").distinct(), lake, now)
    return near.union(pins).union(pins_naming(spark, lake, gone, ds)).distinct()


def related_rows_before(spark: SparkSession, lake: Lake, ds: str) -> DataFrame:
    """pin_id and `related` of each pin's latest row before a day."""
    rows = read_table(spark, lake.open(RELATED_PINS), ["pin_id", "ds", "related"], lambda part: str(part["ds"]) < ds)
    return rows.groupBy("pin_id").agg(F.max_by("related", "ds").alias("related"))


def pins_naming(spark: SparkSession, lake: Lake, gone: DataFrame, ds: str) -> DataFrame:
    """pin_id of the rows before a day that name one of some pins; the latest rows among them, and older ones."""
    table, keys = lake.open(RELATED_PINS), wanted_rows(gone, "pin_id").keys.view(np.int64)
    schema = projected_schema(table, ["pin_id", "related"])

    def read(file: DataFile) -> ArrowRows:
        for batch in scan_file(file, schema):
            related = batch.column("related")
            named = np.isin(related.flatten().to_numpy(), keys)
            rows = np.unique(pc.list_parent_indices(related).to_numpy()[named])
            yield batch.select(["pin_id"]).take(pa.array(rows))

    files = data_files(table, lambda partition: str(partition["ds"]) < ds) if len(keys) else []
    return map_items(spark, files, read, pa.schema([("pin_id", pa.int64())]))


def related_rows(home: str, graph_id: str, k: int, setting: WalkSetting, run_id: str, batches: ArrowRows) -> ArrowRows:
    """Rows of RELATED_PINS for batches of pin_id."""
    graph = store.worker_graph(home, graph_id)
    for batch in batches:
        ids = batch.column("pin_id").to_numpy()
        for part in np.array_split(ids, -(-len(ids) // PINS_AT_ONCE) or 1):
            found, scores = related(graph, graph.pins.nodes_of(part), k=k, setting=setting)
            there = found >= 0
            offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
            lists = [
                pa.ListArray.from_arrays(offsets, pa.array(values))
                for values in (graph.pins.ids_of(found[there]), scores[there])
            ]
            names = pa.array([graph_id] * len(part)), pa.array([run_id] * len(part))
            columns = ["pin_id", "related", "scores", "graph_id", "run_id"]
            yield pa.RecordBatch.from_arrays([pa.array(part), *lists, *names], columns)


def relate(spark: SparkSession, lake: Lake, manifest: GraphManifest, args: argparse.Namespace) -> None:
    """Writes the day's partition, unless it is there."""
    ds, partition = manifest.days[-1], {"ds": manifest.days[-1]}
    expected = partition_version(lake.open(RELATED_PINS), partition)
    if graphs_of_day(spark, lake, ds) == [manifest.graph_id] and not args.all:
        log.info("related pins of graph %s are there already", manifest.graph_id)
        return
    before = None if args.all else store.graph_before(lake, ds)
    pins = pins_to_walk(spark, lake, manifest, before, ds).persist()
    count, setting = pins.count(), WalkSetting(steps=args.steps)
    walk = partial(related_rows, lake.home, manifest.graph_id, args.related, setting, args.run_id)

    def write(batches: ArrowRows) -> Iterable[StagedFile]:
        with Stager(lake.table_uri(RELATED_PINS), RELATED_PINS, partition) as staged:
            for rows in walk(batches):
                staged.add(rows)
            staged.flush()
        return staged.files

    files = stage(pins.repartition(max(1, -(-count // PINS_A_TASK))), write).get(RELATED_PINS.name, [])
    replace_partition(lake, RELATED_PINS, partition, files, expected_version=expected, run_id=args.run_id)
    log.info("%s: %d of %d pins walked from", ds, count, manifest.sides["pins"].nodes)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    manifest = store.read_manifest(lake, store.graph_of_run(lake, args.run_id))
    if newer := store.newer_live_graph(lake, manifest):
        log.info("graph %s is live, and newer than %s: nothing is done", newer, manifest.graph_id)
        return
    spark = spark_session(f"related pins {manifest.days[-1]}")
    until_settled(lambda: relate(spark, lake, manifest, args))


if __name__ == "__main__":
    run_program(main, DayChangedError, GraphError)
