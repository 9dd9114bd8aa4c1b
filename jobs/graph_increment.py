"""Tonight's graph from the one before and the edges that may have changed: a patch a shard, written by executors.

New pins and boards get the next numbers, in the order of their ids. Each shard of either side is a task: it reads the lists
that were touched, and writes heads of new ones (embedding/taste/patches.py). A shard of which nothing was touched carries its
patch on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.tables.lake import Lake
from embedding.taste import store
from embedding.taste.graph import (
    CHANGED,
    MOST_NODES,
    PINS_SIDE,
    Graph,
    GraphError,
    GraphManifest,
    Ids,
    Increment,
    degree_counts,
    degree_pairs,
    degree_statistics,
    summed_degrees,
    write_arrays,
)
from embedding.taste.patches import GONE, OTHER, Fresh, Touched, Updated, update_shard
from jobs.graph_changes import Feed, touched_edges
from jobs.graph_shards import KEYS, Files, Made
from jobs.lookups import wanted_rows
from jobs.release_files import WRITTEN, uploaded
from jobs.session import ArrowRows, log, map_arrow, map_items, spark_schema

_EDGE = pa.schema([("side", pa.string()), *((name, pa.int64()) for name in ("shard", "of", "to", "saved"))])
"""An edge as one side has it: numbers, and minutes or GONE."""
_DONE = pa.schema([*WRITTEN, ("side", pa.string()), ("said", pa.string())])
"""A file, and with one of a shard's what is to tell of it, as JSON."""


@dataclass(frozen=True)
class Plan:
    """What the tasks of a night know: the graph before, the new nodes, and each side's first node of each shard."""

    home: str
    before: GraphManifest
    fresh: Fresh
    starts: Mapping[str, list[int]]
    totals: Mapping[str, int]

    @property
    def graph(self) -> Graph:
        return store.worker_graph(self.home, self.before.graph_id)

    def nodes(self, side: str, shard: int) -> tuple[int, int]:
        """The first node of a shard, and the first behind it."""
        return self.starts[side][shard], [*self.starts[side], self.totals[side]][shard + 1]


def add_changes(spark: SparkSession, lake: Lake, before: GraphManifest, feed: Feed, root: str) -> Made:
    """Writes below `root` what a graph of the new state has beside the base of the one before."""
    asked = {side: np.empty(0, np.int64) for side in KEYS}
    while True:
        edges = touched_edges(spark, lake, before, feed, asked).persist()
        plan = _plan(lake, before, edges)
        rows = _update_all(spark, plan, edges, asked, root).collect()
        said = {side: [json.loads(row.said) for row in rows if row.side == side and row.said] for side in KEYS}
        short = {side: np.unique(np.array([i for one in said[side] for i in one["short"]], np.int64)) for side in KEYS}
        if not any(map(len, short.values())):
            files = {row.name: {"size_bytes": row.size, "sha256": row.sha} for row in rows}
            return _made(plan, said, dict(sorted(files.items())))
        # Of a list that was pruned something fell away: what was pruned is only in the tables.
        log.info("%s lists that were pruned lost edges: all of theirs are looked up", {s: len(i) for s, i in short.items()})
        asked = {side: np.union1d(asked[side], short[side]) for side in KEYS}


def _plan(lake: Lake, before: GraphManifest, edges: DataFrame) -> Plan:
    """Numbers for the nodes that are new. Their ids pass through the driver, 8 bytes each."""
    found, starts, totals = {}, {}, {}
    base = before.as_base
    for side, key in KEYS.items():
        ids = edges.where(F.col("saved").isNotNull()).select(key).distinct()
        new = map_arrow(ids, partial(_not_numbered, lake.home, before.graph_id, side), pa.schema([(key, pa.int64())]))
        found[side] = np.sort(wanted_rows(new, key).keys.view(np.int64))
        totals[side] = before.numbers(side) + len(found[side])
        if totals[side] > MOST_NODES:
            raise GraphError(f"{totals[side]} {side}: nodes are numbered with 32 bits, up to {MOST_NODES}")
        width = -(-base.nodes[side] // len(base.starts[side]))  # later nodes are in shards as large as the base's
        starts[side] = [*base.starts[side], *range(base.nodes[side], totals[side], width)]
    return Plan(lake.home, before, Fresh(found), starts, totals)


def _not_numbered(home: str, graph_id: str, side: str, batches: ArrowRows) -> ArrowRows:
    nodes = store.worker_graph(home, graph_id).side(side)
    for batch in batches:
        yield batch.filter(pa.array(nodes.numbers_of(batch.column(0).to_numpy()) < 0))


def _directed(plan: Plan, batches: ArrowRows) -> ArrowRows:
    """Each edge as either side has it. One that is not there, of a node that no graph had, is none of anybody's."""
    for batch in batches:
        graph, saved = plan.graph, pc.fill_null(batch.column("saved"), GONE).to_numpy()
        numbers = {s: plan.fresh.numbers_of(graph, s, batch.column(key).to_numpy()) for s, key in KEYS.items()}
        known = np.logical_and.reduce([found >= 0 for found in numbers.values()])
        for side in KEYS:
            of, to = numbers[side][known], numbers[OTHER[side]][known]
            shard = np.searchsorted(plan.starts[side], of, "right") - 1
            columns = [pa.repeat(pa.scalar(side), len(of)), *map(pa.array, (shard, of, to, saved[known]))]
            yield pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(columns, _EDGE, strict=True)], schema=_EDGE)


def _update_all(spark: SparkSession, plan: Plan, edges: DataFrame, asked: Mapping[str, Ids], root: str) -> DataFrame:
    """Writes all shards."""

    def one_each(item: tuple[str, int]) -> ArrowRows:
        yield pa.RecordBatch.from_pylist([dict(zip(_EDGE.names, (*item, -1, -1, GONE), strict=True))], schema=_EDGE)

    def write(table: pa.Table) -> pa.Table:
        side, shard = table["side"][0].as_py(), table["shard"][0].as_py()
        of, to, saved = (table[name].to_numpy()[table["of"].to_numpy() >= 0] for name in ("of", "to", "saved"))
        graph = plan.graph
        touched = Touched(of, to, saved, plan.fresh.numbers_of(graph, side, asked[side]))
        done = update_shard(graph, side, shard, plan.nodes(side, shard), plan.fresh, touched, plan.before.max_degree)
        with tempfile.TemporaryDirectory() as folder:
            paths = write_arrays(Path(folder), side, shard, done.arrays | {CHANGED: done.changed})
            files = uploaded(shard, len(done.changed), paths, root).to_pylist()
        told = [_said(plan, side, done), *([""] * (len(files) - 1))]
        rows = [file | {"side": side, "said": said} for file, said in zip(files, told, strict=True)]
        return pa.Table.from_pylist(rows, schema=_DONE)

    shards = [(side, shard) for side, starts in plan.starts.items() for shard in range(len(starts))]
    every = map_arrow(edges, partial(_directed, plan), _EDGE).union(map_items(spark, shards, one_each, _EDGE))
    return every.groupBy("side", "shard").applyInArrow(write, spark_schema(_DONE))


def _said(plan: Plan, side: str, done: Updated) -> str:
    """What a shard tells the driver."""
    short = plan.fresh.ids_of(plan.graph, side, done.short).tolist()
    told = {name: getattr(done, name) for name in ("lists", "patched", "added", "removed")}
    return json.dumps(told | {"short": short, "degrees": done.degrees.tolist()})


def _made(plan: Plan, said: Mapping[str, list[dict[str, Any]]], files: Files) -> Made:
    """Sizes and degrees from what they were before and what each shard told."""
    before = plan.before
    added, removed = (sum(one[name] for one in said[PINS_SIDE]) for name in ("added", "removed"))
    edges = before.sides[PINS_SIDE].edges + before.sides[PINS_SIDE].pruned + added - removed
    sides, degrees = {}, {}
    for side in KEYS:
        of_degree = summed_degrees([degree_counts(before.degrees[side]), *(one["degrees"] for one in said[side])])
        sides[side], degrees[side] = degree_statistics(of_degree, edges), degree_pairs(of_degree)
    if not sides[PINS_SIDE].edges:
        raise GraphError("no living pin is on a living board any more: there is no graph to build")
    counts = {kind: {side: sum(one[kind] for one in said[side]) for side in KEYS} for kind in ("lists", "patched")}
    fresh = {side: len(ids) for side, ids in plan.fresh.ids.items()}
    numbered = {side: plan.totals[side] - before.as_base.nodes[side] for side in KEYS}
    increment = Increment(before.graph_id, added, removed, counts["lists"], fresh, numbered, counts["patched"])
    return Made({side: list(starts) for side, starts in plan.starts.items()}, sides, degrees, files, increment)
