"""The files of built graphs as Spark sees them: nodes, edges, and what changed between two graphs."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.taste import store
from embedding.taste.graph import BOARDS_SIDE, CHANGED, PINS_SIDE, GraphManifest, file_name
from jobs.graph_shards import KEYS
from jobs.session import ArrowRows, map_arrow, map_items

EDGE = pa.schema([("pin_id", pa.int64()), ("board_id", pa.int64())])
_NODES_AT_ONCE = 100_000


def graph_pins(spark: SparkSession, lake: Lake, manifest: GraphManifest) -> DataFrame:
    """pin_id of all pins of a graph."""

    def read(span: tuple[int, int]) -> ArrowRows:
        pins = store.worker_graph(lake.home, manifest.graph_id).pins
        nodes = np.arange(*span)
        there = nodes[pins.degrees(nodes) > 0]
        yield pa.RecordBatch.from_arrays([pa.array(pins.ids_of(there))], ["pin_id"])

    return map_items(spark, _spans(manifest, PINS_SIDE), read, pa.schema([EDGE.field("pin_id")]))


def graph_edges(spark: SparkSession, lake: Lake, manifest: GraphManifest) -> DataFrame:
    """pin_id, board_id of all edges that the boards of a graph have."""

    def read(span: tuple[int, int]) -> ArrowRows:
        graph = store.worker_graph(lake.home, manifest.graph_id)
        nodes = np.arange(*span)
        lists = graph.boards.lists(nodes)
        boards, pins = graph.boards.ids_of(nodes)[lists.rows], graph.pins.ids_of(lists.neighbours)
        yield pa.RecordBatch.from_arrays([pa.array(pins), pa.array(boards)], schema=EDGE)

    return map_items(spark, _spans(manifest, BOARDS_SIDE), read, EDGE)


def _spans(manifest: GraphManifest, side: str) -> list[tuple[int, int]]:
    """Numbers of a side's nodes in pieces that a task reads at once."""
    numbers = manifest.numbers(side)
    return [(first, min(first + _NODES_AT_ONCE, numbers)) for first in range(0, numbers, _NODES_AT_ONCE)]


def changed_edges(spark: SparkSession, lake: Lake, now: GraphManifest, before: GraphManifest) -> DataFrame:
    """pin_id, board_id of the edges that only one of two graphs has: as the later one's build found them, if it was made from
    the other; otherwise the edges of both are compared."""
    if now.increment is None or now.increment.since != before.graph_id:
        edges, old = (graph_edges(spark, lake, graph) for graph in (now, before))
        return edges.join(old, EDGE.names, "left_anti").union(old.join(edges, EDGE.names, "left_anti"))
    root = f"{store.graph_uri(lake, now.graph_id)}/{now.folder}"

    def read(item: tuple[str, int]) -> ArrowRows:
        side, shard = item
        data = storage.read_bytes(f"{root}/{file_name(side, shard, CHANGED)}")
        pairs = np.load(io.BytesIO(data), allow_pickle=False)
        pins, boards = (pairs if side == PINS_SIDE else pairs[:, ::-1]).T
        yield pa.RecordBatch.from_arrays([pa.array(pins), pa.array(boards)], schema=EDGE)

    shards = [(side, shard) for side, starts in now.starts.items() for shard in range(len(starts))]
    return map_items(spark, shards, read, EDGE).distinct()


def only_in_graph(frame: DataFrame, lake: Lake, manifest: GraphManifest, side: str, *, there: bool = True) -> DataFrame:
    """Those of the ids in a frame's one column that are nodes of a graph; with `there=False` the others."""
    return map_arrow(frame, partial(_kept, lake.home, manifest.graph_id, side, there), pa.schema([(KEYS[side], pa.int64())]))


def _kept(home: str, graph_id: str, side: str, there: bool, batches: ArrowRows) -> ArrowRows:
    nodes = store.worker_graph(home, graph_id).side(side)
    for batch in batches:
        yield batch.filter(pa.array((nodes.nodes_of(batch.column(0).to_numpy()) >= 0) == there))


def pins_on(boards: DataFrame, lake: Lake, manifest: GraphManifest) -> DataFrame:
    """pin_id of the pins that a graph has on boards (board_id); one that is on two of them twice."""

    def read(batches: ArrowRows) -> ArrowRows:
        graph = store.worker_graph(lake.home, manifest.graph_id)
        for batch in batches:
            nodes = np.unique(graph.boards.nodes_of(batch.column(0).to_numpy()))
            pins = np.unique(graph.boards.lists(nodes[nodes >= 0]).neighbours)
            yield pa.RecordBatch.from_arrays([pa.array(graph.pins.ids_of(pins))], ["pin_id"])

    return map_arrow(boards, read, pa.schema([EDGE.field("pin_id")]))
