"""Whether a graph is the tables': the edges of a sample of pins, as the graph has them and as the tables say.

A graph that is made from the one before it could carry a mistake on from night to night; this finds it. The sample is the same
pins every night, by a hash of their ids, about a thousand. Two scans of the ids in `saves`; nothing large is shuffled.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import SAVES
from embedding.tables.lake import DataFile, Lake, data_files
from embedding.tables.scan import projected_schema, scan_file
from embedding.taste import store
from embedding.taste.graph import PINS_SIDE, GraphManifest, Ids
from jobs.graph_changes import EDGE, edges_in_graph, edges_of_pins
from jobs.graph_reads import graph_pins
from jobs.inputs import Inputs
from jobs.lookups import wanted_rows
from jobs.session import ArrowRows, map_arrow, map_items

SAMPLE = 1_000
_PIN = pa.schema([("pin_id", pa.int64())])


def differing_edges(spark: SparkSession, lake: Lake, manifest: GraphManifest, sample: int = SAMPLE) -> tuple[int, int]:
    """How many pins were looked at, and how many of their edges only the graph has, or only the tables.

    Pins that may have been pruned are left out.
    """
    inputs, one_in = Inputs(manifest.days, manifest.versions), max(1, manifest.sides[PINS_SIDE].nodes // sample)
    in_graph = map_arrow(graph_pins(spark, lake, manifest), partial(_sampled, one_in), _PIN)
    said = _saved_pins(spark, lake, inputs, one_in).union(in_graph)
    whole = map_arrow(said.distinct(), partial(_unpruned, lake.home, manifest.graph_id, manifest.max_degree), _PIN).persist()
    ids = wanted_rows(whole, "pin_id").keys
    by_tables = edges_of_pins(spark, lake, inputs, ids).select(*EDGE)
    by_graph = edges_in_graph(whole, lake, manifest, PINS_SIDE)
    both = by_tables.withColumn("times", F.lit(1)).union(by_graph.withColumn("times", F.lit(-1)))
    differing = both.groupBy(*EDGE).agg(F.sum("times").alias("times")).where(F.col("times") != 0)
    return len(ids), differing.count()


def _saved_pins(spark: SparkSession, lake: Lake, inputs: Inputs, one_in: int) -> DataFrame:
    """The sample's pins in `saves`, whatever became of them."""
    table = lake.open(SAVES, inputs.versions[SAVES.name])
    schema = projected_schema(table, ["pin_id"])

    def read(file: DataFile) -> ArrowRows:
        yield from _sampled(one_in, scan_file(file, schema))

    return map_items(spark, data_files(table, inputs.counts), read, _PIN)


def _sampled(one_in: int, batches: ArrowRows) -> ArrowRows:
    for batch in batches:
        ids = np.unique(batch.column(0).to_numpy())
        yield pa.RecordBatch.from_arrays([pa.array(ids[_chosen(ids, one_in)])], schema=_PIN)


def _chosen(ids: Ids, one_in: int) -> NDArray[np.bool_]:
    """One id in so many, by its bits."""
    mixed = ids.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    chosen: NDArray[np.bool_] = mixed % np.uint64(one_in) == 0
    return chosen


def _unpruned(home: str, graph_id: str, max_degree: int, batches: ArrowRows) -> ArrowRows:
    pins = store.worker_graph(home, graph_id).pins
    for batch in batches:
        yield batch.filter(pa.array(pins.degrees(pins.numbers_of(batch.column(0).to_numpy())) < max_degree))
