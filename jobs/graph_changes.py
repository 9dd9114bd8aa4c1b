"""Which edges of the pin-board graph may have changed since a graph that there is, and what has become of them.

The rows of `saves`, `pins` and `boards` that changed are read from the days that changed (embedding/tables/feed.py); then the
tables are asked about just these: `saves` in one scan for the touched pairs, and for all saves of the pins and boards that the
graph does not have. Edges of a pin or board that was deleted are in the graph. What is shuffled is what was touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, PINS, SAVES, TableContract
from embedding.tables.feed import ChangedFiles, TableState, changed_files
from embedding.tables.lake import Lake, data_files
from embedding.tables.scan import Keys, WantedPairs, column_keys, pair_keys, projected_schema, scan_file
from embedding.taste import store
from embedding.taste.graph import BOARDS_SIDE, PINS_SIDE, GraphManifest, Ids
from jobs.graph_shards import KEYS
from jobs.inputs import Inputs, saved_minutes
from jobs.lookups import find_rows, wanted_rows
from jobs.session import ArrowRows, map_arrow, map_items

TABLE_OF = {PINS_SIDE: PINS, BOARDS_SIDE: BOARDS}
SAVE = ["user_id", "pin_id", "board_id"]
EDGE = ["pin_id", "board_id"]
_PAIR = pa.schema([(name, pa.int64()) for name in EDGE])
_KEY = pa.schema([("pair", pa.int64())])


@dataclass(frozen=True)
class Feed:
    """Two states of the tables, the files that they differ in by table, and how many rows of `saves` count now."""

    inputs: Inputs
    files: Mapping[str, ChangedFiles]
    saves: int

    @property
    def share(self) -> float:
        """Rows of `saves` in changed files, of all."""
        return self.files[SAVES.name].rows / max(1, self.saves)


def read_feed(lake: Lake, before: GraphManifest, inputs: Inputs) -> Feed:
    """What the logs say has changed since a graph. Raises FeedBrokenError."""
    files = {
        contract.name: changed_files(
            lake,
            contract,
            TableState(before.versions[contract.name], before.days),
            TableState(inputs.versions[contract.name], inputs.days),
        )
        for contract in (SAVES, PINS, BOARDS)
    }
    table = lake.open(SAVES, inputs.versions[SAVES.name])
    return Feed(inputs, files, sum(file.num_rows for file in data_files(table, inputs.counts)))


def touched_edges(spark: SparkSession, lake: Lake, before: GraphManifest, feed: Feed, asked: Mapping[str, Ids]) -> DataFrame:
    """pin_id, board_id and `saved`, null where there is no edge (any more): a row a pair that may have changed.

    asked: Ids by side of pins and boards all of whose edges are wanted.
    """
    saves = _differing_rows(spark, lake, SAVES, feed, [*SAVE, "saved_at"]).select(*SAVE).distinct().persist()
    changed = {
        side: _differing_rows(spark, lake, contract, feed, [KEYS[side]]).select(KEYS[side]).distinct().persist()
        for side, contract in TABLE_OF.items()
    }
    keys = wanted_rows(map_arrow(saves.select(*EDGE), _pairs_as_keys, _KEY), "pair").keys
    unknown = _unknown(lake, before, changed, asked)
    wanted = WantedPairs((EDGE[0], EDGE[1]), keys, unknown[PINS_SIDE], unknown[BOARDS_SIDE])
    # A row that is in no file any more leaves its pair without one: it is put before all others, as a deletion.
    marks = saves.select(*SAVE, F.lit("").alias("ds"), F.lit(None).cast("long").alias("saved"), F.lit(True).alias("deleted"))
    pairs = _edges_of_saves(_find_saves(spark, lake, feed.inputs, wanted).union(marks)).persist()
    gone = []
    for side, key in KEYS.items():
        ids = pairs.where(F.col("saved").isNotNull()).select(key).union(changed[side]).distinct()
        alive = _alive(spark, lake, feed.inputs, side, ids).persist()
        gone.append(edges_in_graph(changed[side].join(alive, key, "left_anti"), lake, before, side))
        pairs = pairs.join(alive.withColumn(side, F.lit(True)), key, "left")
    there = F.when(F.col(PINS_SIDE) & F.col(BOARDS_SIDE), F.col("saved")).alias("saved")
    no_more = gone[0].union(gone[1]).withColumn("saved", F.lit(None).cast("long"))
    return pairs.select(*EDGE, there).union(no_more).groupBy(*EDGE).agg(F.max("saved").alias("saved"))


def _differing_rows(spark: SparkSession, lake: Lake, contract: TableContract, feed: Feed, columns: list[str]) -> DataFrame:
    """The rows (`columns`, ds, deleted) that only one of the two states has."""
    names = [*columns, "ds", "deleted"]
    schema = projected_schema(lake.open(contract, feed.inputs.versions[contract.name]), names)
    files = feed.files[contract.name]
    now, before = (
        map_items(spark, some, partial(scan_file, schema=schema), schema).withColumn("times", F.lit(times))
        for some, times in ((files.now, 1), (files.before, -1))
    )
    if not files.before:
        return now.select(*names)
    # A day that was corrected, or of which somebody was forgotten, is there twice: what is equal is no change.
    both = now.union(before).groupBy(*names).agg(F.sum("times").alias("times"))
    return both.where(F.col("times") != 0).select(*names)


def _unknown(lake: Lake, before: GraphManifest, changed: Mapping[str, DataFrame], asked: Mapping[str, Ids]) -> dict[str, Keys]:
    """Keys of the pins and boards all of whose saves are to be looked up: that have edges which the graph does not know."""
    found = {}
    for side, key in KEYS.items():
        schema = pa.schema([(key, pa.int64())])
        unknown = map_arrow(changed[side], partial(_not_in, lake, before, side), schema)
        keys: list[Keys] = [wanted_rows(unknown, key).keys, column_keys(pa.array(asked[side], pa.int64()))]
        found[side] = np.unique(np.concatenate(keys))
    return found


def _not_in(lake: Lake, before: GraphManifest, side: str, batches: ArrowRows) -> ArrowRows:
    """Of ids those that have no list in a graph, or one that may have been pruned."""
    nodes = store.worker_graph(lake.home, before.graph_id).side(side)
    for batch in batches:
        degrees = nodes.degrees(nodes.numbers_of(batch.column(0).to_numpy()))
        yield batch.filter(pa.array((degrees == 0) | (degrees >= before.max_degree)))


def edges_in_graph(ids: DataFrame, lake: Lake, manifest: GraphManifest, side: str) -> DataFrame:
    """pin_id, board_id of all edges that some pins or boards, a frame's one column, have in a graph's lists."""
    return map_arrow(ids, partial(_edges_in, lake.home, manifest.graph_id, side), _PAIR)


def _edges_in(home: str, graph_id: str, side: str, batches: ArrowRows) -> ArrowRows:
    graph = store.worker_graph(home, graph_id)
    here, there = (graph.pins, graph.boards) if side == PINS_SIDE else (graph.boards, graph.pins)
    for batch in batches:
        nodes = np.unique(here.nodes_of(batch.column(0).to_numpy()))
        nodes = nodes[nodes >= 0]
        lists = here.lists(nodes)
        ids = [pa.array(here.ids_of(nodes)[lists.rows]), pa.array(there.ids_of(lists.neighbours))]
        yield pa.RecordBatch.from_arrays(ids if side == PINS_SIDE else ids[::-1], schema=_PAIR)


def edges_of_pins(spark: SparkSession, lake: Lake, inputs: Inputs, pins: Keys) -> DataFrame:
    """pin_id, board_id and `saved` of all edges of some pins, by the tables."""
    none = np.empty(0, np.uint64)
    edges = _edges_of_saves(_find_saves(spark, lake, inputs, WantedPairs((EDGE[0], EDGE[1]), none, pins, none)))
    edges = edges.where(F.col("saved").isNotNull()).persist()
    for side, key in KEYS.items():
        edges = edges.join(_alive(spark, lake, inputs, side, edges.select(key).distinct()), key, "left_semi")
    return edges.select(*EDGE, "saved")


def _find_saves(spark: SparkSession, lake: Lake, inputs: Inputs, wanted: WantedPairs) -> DataFrame:
    """SAVE, ds, `saved`, deleted of the wanted rows."""
    table = lake.open(SAVES, inputs.versions[SAVES.name])
    schema = projected_schema(table, [*SAVE, "ds", "saved_at", "deleted"])
    found = map_items(spark, data_files(table, inputs.counts), partial(scan_file, schema=schema, wanted=wanted), schema)
    return found.select(*SAVE, "ds", saved_minutes(), "deleted")


def _edges_of_saves(rows: DataFrame) -> DataFrame:
    """EDGE and `saved` of each pair in rows of `saves`, null where nobody has the pin on the board."""
    latest = rows.groupBy(*SAVE).agg(F.max_by(F.struct("deleted", "saved"), "ds").alias("row"))
    return latest.groupBy(*EDGE).agg(F.max(F.when(~F.col("row.deleted"), F.col("row.saved"))).alias("saved"))


def _pairs_as_keys(batches: ArrowRows) -> ArrowRows:
    for batch in batches:
        keys = pair_keys(batch.column(0), batch.column(1)).view(np.int64)
        yield pa.RecordBatch.from_arrays([pa.array(keys)], schema=_KEY)


def _alive(spark: SparkSession, lake: Lake, inputs: Inputs, side: str, ids: DataFrame) -> DataFrame:
    """Those of the ids whose latest row is no deletion."""
    key, contract = KEYS[side], TABLE_OF[side]
    table = lake.open(contract, inputs.versions[contract.name])
    rows = find_rows(spark, table, [key, "ds", "deleted"], inputs.counts, wanted_rows(ids, key))
    latest = rows.groupBy(key).agg(F.max_by("deleted", "ds").alias("deleted"))
    return latest.where(~F.col("deleted")).select(key)
