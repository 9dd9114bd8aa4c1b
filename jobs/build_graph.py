"""Builds the pin-board graph of all current saves: compact adjacency shards, written by executors, and a manifest.

    spark-submit jobs/build_graph.py --home .pinlake --run-id by-hand

1. The current saves of living pins to living boards, of the days whose latest night passed; a pin on a board is one edge,
   whoever saved it, at its latest time.
2. A night's graph is the one before it and what changed since, by the tables' logs: only rows of changed days are read, and the
   tables are asked about the edges in these alone (jobs/graph_changes.py, jobs/graph_increment.py).
3. Where there is no graph before, or too much has changed since its base, it is built whole: pins and boards are numbered in
   the order of their ids, and each direction is written as adjacency lists, a range of nodes a task (jobs/graph_shards.py).

Either way the lists are the same (embedding/taste/graph.py has the format). The driver sees a row a file, and 8 bytes of each
pair that was touched. A graph of the very state exists only once, and is taken as it is.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, PINS
from embedding.tables import storage
from embedding.tables.feed import FeedBrokenError
from embedding.tables.lake import Lake
from embedding.taste import store
from embedding.taste.graph import EDGES_A_SHARD, FORMAT, MAX_DEGREE, Base, GraphError, GraphManifest
from jobs.argument_types import whole_number
from jobs.graph_changes import read_feed
from jobs.graph_increment import add_changes
from jobs.graph_shards import Made, write_graph
from jobs.inputs import LATEST, Inputs, NothingPassedError, choose_inputs, day_or_latest, latest_saves, read_latest
from jobs.session import arguments, log, run_program, spark_session

MOST_PATCHED, MOST_CHANGED = 0.3, 0.2
"""What a graph may have beside its base, as a share of it: it is written every night. What a night may change: beyond that,
one pass over everything costs less."""
BASE_HOURS = 168
"""As long as tables keep what was deleted (jobs/maintain_tables.py): a base has it as well."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    at_least_one = partial(whole_number, least=1)
    parser.add_argument("--max-degree", type=at_least_one, default=MAX_DEGREE, help="edges that a pin or board keeps")
    parser.add_argument("--edges-a-shard", type=at_least_one, default=EDGES_A_SHARD, help="about so many edges a task")
    parser.add_argument("--whole", action="store_true", help="build it anew, not from the graph before")
    at_least_zero = partial(whole_number, least=0)
    parser.add_argument(
        "--base-hours",
        type=at_least_zero,
        default=BASE_HOURS,
        help="age from which on the base is built anew (default %(default)s)",
    )
    share = "share of {} from which on it is built anew (default %(default)s)"
    parser.add_argument(
        "--most-patched", type=float, default=MOST_PATCHED, help=share.format("the base's edges that others replaced")
    )
    parser.add_argument("--most-changed", type=float, default=MOST_CHANGED, help=share.format("all saves' rows that changed"))
    return parser.parse_args(argv)


def live_edges(spark: SparkSession, lake: Lake, inputs: Inputs) -> DataFrame:
    """pin_id, board_id, saved: one row a pin on a board."""
    saves = latest_saves(spark, lake, inputs)
    for contract, key in ((PINS, "pin_id"), (BOARDS, "board_id")):
        saves = saves.join(read_latest(spark, lake, inputs, contract).select(key), key, "left_semi")
    return saves.groupBy("pin_id", "board_id").agg(F.max("saved").alias("saved"))


def graph_before(lake: Lake, inputs: Inputs, args: argparse.Namespace) -> tuple[GraphManifest | None, str]:
    """The graph to make tonight's from; or none, and why. It is the one that `related_pins` was walked over last: the pins to
    be walked from now are those near what changed since."""
    if args.whole:
        return None, "as it was asked for"
    live = store.live_graph_id(lake)
    before = store.graph_before(lake, inputs.days[-1]) or (store.read_manifest(lake, live) if live else None)
    if before is None or not store.is_readable(lake, before):
        return None, "there is no graph before it, or no longer what it was made of"
    if before.format != FORMAT or before.max_degree != args.max_degree:
        return None, f"{before.graph_id} has format {before.format} and {before.max_degree} edges a node at most"
    age = datetime.now(UTC) - datetime.fromisoformat(before.as_base.built_at)
    if age > timedelta(hours=args.base_hours):
        return None, f"the base of {before.graph_id} is {age.days} days old"
    patched = before.increment.patched if before.increment else {}
    share = max((edges / before.as_base.edges[side] for side, edges in patched.items()), default=0.0)
    if share > args.most_patched:
        return None, f"{before.graph_id} has {share:.0%} beside its base, more than {args.most_patched:.0%}"
    return before, ""


def make(spark: SparkSession, lake: Lake, inputs: Inputs, root: str, args: argparse.Namespace) -> tuple[Made, Base | None, str]:
    """Writes the files of the graph. Returns what is told of them, what it stands on, and why it was built whole."""
    before, why = graph_before(lake, inputs, args)
    if before:
        try:
            feed = read_feed(lake, before, inputs)
        except FeedBrokenError as error:
            before, why = None, str(error)
        else:
            if feed.share <= args.most_changed:
                return add_changes(spark, lake, before, feed, root), before.as_base, ""
            why = f"{feed.share:.0%} of the saves' rows changed since {before.graph_id}, more than {args.most_changed:.0%}"
    edges = live_edges(spark, lake, inputs).persist()
    count = edges.count()
    if not count:
        raise GraphError("no living pin is on a living board: there is no graph to build")
    return write_graph(edges, count, args.edges_a_shard, root, args.max_degree), None, why


def build(spark: SparkSession, lake: Lake, inputs: Inputs, graph_id: str, args: argparse.Namespace) -> GraphManifest:
    """Writes all files of the graph into a folder of this attempt, the manifest last; another one's that is there stays."""
    attempt = uuid.uuid4().hex
    root = f"{store.graph_uri(lake, graph_id)}/{attempt}"
    made, base, why = make(spark, lake, inputs, root, args)
    manifest = GraphManifest(
        graph_id=graph_id,
        folder=attempt,
        days=inputs.days,
        versions=inputs.versions,
        max_degree=args.max_degree,
        starts=made.starts,
        sides=made.sides,
        files=made.files,
        built_by=args.run_id,
        built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        degrees=made.degrees,
        base=base,
        increment=made.increment,
        why_whole=why,
    )
    if store.is_finished(lake, graph_id):  # by a run beside this one
        storage.delete_folder(root)
        return store.read_manifest(lake, graph_id)
    store.write_manifest(lake, manifest)
    return manifest


def tell(manifest: GraphManifest) -> None:
    """The graph's sizes, and what the night did to it, in the log."""
    for side, said in manifest.sides.items():
        log.info("%s: %s", side, said)
    if manifest.increment and manifest.base:
        log.info("made from %s, on the base %s: %s", manifest.increment.since, manifest.base.graph_id, manifest.increment)
    else:
        log.info("built whole: %s", manifest.why_whole)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    inputs = choose_inputs(lake, args.ds)
    graph_id = store.make_graph_id(inputs.days, inputs.versions, args.max_degree)
    if store.is_finished(lake, graph_id):
        log.info("graph %s of this state exists already", graph_id)
    else:
        tell(build(spark_session(f"graph {inputs.days[-1]}"), lake, inputs, graph_id, args))
    store.write_graph_of_run(lake, args.run_id, graph_id)


if __name__ == "__main__":
    run_program(main, GraphError, NothingPassedError)
