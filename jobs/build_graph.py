"""Builds the pin-board graph of all current saves: compact adjacency shards, written by executors, and a manifest.

    spark-submit jobs/build_graph.py --home .pinlake --run-id by-hand

1. The current saves of living pins to living boards, of the days whose latest night passed; a pin on a board is one edge,
   whoever saved it, at its latest time.
2. Pins and boards are numbered in the order of their ids, a range of ids a task.
3. Each direction is written as adjacency lists, a range of nodes a task (embedding/taste/graph.py, which has the format).

Narrow rows are shuffled a few times; the driver sees a row a file. Memory of a task: the edges of one shard. A graph of
the very state exists only once, and is taken as it is.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, PINS
from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.taste import store
from embedding.taste.graph import BOARDS_SIDE, EDGES_A_SHARD, MAX_DEGREE, PINS_SIDE, GraphError, GraphManifest
from jobs.graph_shards import KEYS, Files, bounds_of, deal, number_nodes, place, write_side
from jobs.inputs import LATEST, Inputs, NothingPassedError, choose_inputs, day_or_latest, latest_saves, read_latest
from jobs.session import arguments, log, run_program, spark_session, whole_number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    at_least_one = partial(whole_number, least=1)
    parser.add_argument("--max-degree", type=at_least_one, default=MAX_DEGREE, help="edges that a pin or board keeps")
    parser.add_argument("--edges-a-shard", type=at_least_one, default=EDGES_A_SHARD, help="about so many edges a task")
    return parser.parse_args(argv)


def live_edges(spark: SparkSession, lake: Lake, inputs: Inputs) -> DataFrame:
    """pin_id, board_id, saved: one row a pin on a board."""
    saves = latest_saves(spark, lake, inputs)
    for contract, key in ((PINS, "pin_id"), (BOARDS, "board_id")):
        saves = saves.join(read_latest(spark, lake, inputs, contract).select(key), key, "left_semi")
    return saves.groupBy("pin_id", "board_id").agg(F.max("saved").alias("saved"))


def build(spark: SparkSession, lake: Lake, inputs: Inputs, graph_id: str, args: argparse.Namespace) -> GraphManifest:
    """Writes all files of the graph into a folder of this attempt, the manifest last; another one's that is there stays."""
    attempt = uuid.uuid4().hex
    root = f"{store.graph_uri(lake, graph_id)}/{attempt}"
    edges = live_edges(spark, lake, inputs).persist()
    count = edges.count()
    if not count:
        raise GraphError("no living pin is on a living board: there is no graph to build")
    shards = -(-count // args.edges_a_shard)
    dealt = deal(edges, {side: bounds_of(edges, key, count, shards) for side, key in KEYS.items()})
    starts = {side: np.cumsum([0, *number_nodes(dealt, side, root)]).tolist()[:-1] for side in KEYS}
    placed = place(place(dealt, PINS_SIDE, starts[PINS_SIDE], root), BOARDS_SIDE, starts[BOARDS_SIDE], root).persist()
    files: Files = {}
    sides = {}
    for side in KEYS:
        of_side, sides[side] = write_side(placed, side, starts[side], root, args.max_degree)
        files |= of_side
    manifest = GraphManifest(
        graph_id=graph_id,
        folder=attempt,
        days=inputs.days,
        versions=inputs.versions,
        max_degree=args.max_degree,
        starts=starts,
        sides=sides,
        files=dict(sorted(files.items())),
        built_by=args.run_id,
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    if store.is_finished(lake, graph_id):  # by a run beside this one
        storage.delete_folder(root)
        return store.read_manifest(lake, graph_id)
    store.write_manifest(lake, manifest)
    return manifest


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    inputs = choose_inputs(lake, args.ds)
    graph_id = store.make_graph_id(inputs.days, inputs.versions, args.max_degree)
    if store.is_finished(lake, graph_id):
        log.info("graph %s of this state exists already", graph_id)
    else:
        manifest = build(spark_session(f"graph {inputs.days[-1]}"), lake, inputs, graph_id, args)
        for side, said in manifest.sides.items():
            log.info("%s: %s", side, said)
    store.write_graph_of_run(lake, args.run_id, graph_id)


if __name__ == "__main__":
    run_program(main, GraphError, NothingPassedError)
