"""Checks the graph, the related pins and the interests of a run; only then is the graph live. Exits with 3 where it is not.

    spark-submit jobs/check_taste.py --home .pinlake --run-id by-hand --encoder live

Users are counted by the tables, pins by the graph's files. Of a sample of pins the graph has the very edges that the tables
have. No user who has saved something may be without interests of that history, no pin of the graph without a row, and no row
may name a pin that has left; interests are of the live release's encoder; and edges and interests a user are about as many as
before. `--most-change 10` lets through what is meant to change. (embedding/quality/taste.py)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, RELATED_PINS, USER_INTERESTS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError, live_version
from embedding.quality.taste import MOST_CHANGE, TasteCounts, check_taste
from embedding.tables.lake import Lake
from embedding.taste import store
from embedding.taste.checks import TasteCheck, write_check
from embedding.taste.graph import GraphError, GraphManifest
from jobs.current import CurrentState, described_pins
from jobs.graph_check import differing_edges
from jobs.graph_reads import graph_pins
from jobs.histories import CURRENT, days_until, earlier_days, histories, latest_only, state_until
from jobs.inputs import LATEST
from jobs.session import EXIT_GATE_FAILED, arguments, job_encoder, log, read_table, run_program, spark_session


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--most-change", type=float, default=MOST_CHANGE, help="share by which counts may change (default 0.5)")
    return parser.parse_args(argv)


def current_related(spark: SparkSession, lake: Lake) -> DataFrame:
    """pin_id and `related` of each pin's latest row."""
    rows = read_table(spark, lake.open(RELATED_PINS), ["pin_id", "ds", "related"])
    return rows.groupBy("pin_id").agg(F.max_by("related", "ds").alias("related"))


def interests_a_user(rows: DataFrame) -> float | None:
    """Of the users who have any; None where nobody has."""
    row = rows.where(F.col("size") > 0).agg(F.count("*").alias("rows"), F.count_distinct("user_id").alias("users")).collect()[0]
    return row.rows / row.users if row.users else None


def count_taste(spark: SparkSession, lake: Lake, manifest: GraphManifest, state: CurrentState) -> TasteCounts:
    alive = graph_pins(spark, lake, manifest).persist()
    related = current_related(spark, lake).persist()
    named = related.select(F.explode("related").alias("pin_id"))
    users = histories(spark, lake, state, described_pins(spark, lake, state, ("pin_id",))).persist()
    table, columns = lake.open(USER_INTERESTS), ["user_id", *CURRENT, "history_hash", "size"]
    now = latest_only(read_table(spark, table, columns, days_until(state))).persist()
    before = latest_only(read_table(spark, table, columns, earlier_days(state, state.days[-1])))
    made_of = users.join(now.where(F.col("size") > 0), ["user_id", "history_hash"], "left_semi")
    live = store.live_graph_id(lake)
    sampled, other_edges = differing_edges(spark, lake, manifest)
    return TasteCounts(
        embedding_version=state.embedding_version,
        live_version=live_version(lake),
        edges=manifest.sides["pins"].edges,
        edges_before=store.read_manifest(lake, live).sides["pins"].edges if live else None,
        sampled=sampled,
        other_edges=other_edges,
        no_row=alive.join(related, "pin_id", "left_anti").count(),
        naming_gone=named.join(alive, "pin_id", "left_anti").count(),
        users=users.count(),
        up_to_date=made_of.count(),
        interests=now.where(F.col("size") > 0).count(),
        interests_a_user_before=interests_a_user(before),
    )


def publish(lake: Lake, manifest: GraphManifest) -> None:
    """Makes the graph live, and deletes those that nothing needs any more."""
    live, before = store.live_graph_id(lake), store.graph_before(lake, manifest.days[-1])
    store.publish_graph(lake, manifest.graph_id)
    kept = {manifest.graph_id, live, before and before.graph_id}
    for graph_id in store.delete_graphs(lake, [graph_id for graph_id in kept if graph_id]):
        log.info("graph %s is deleted: nothing needs it any more", graph_id)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    manifest = store.read_manifest(lake, store.graph_of_run(lake, args.run_id))
    if newer := store.newer_live_graph(lake, manifest):
        log.info("graph %s is live, and newer than %s: nothing is done", newer, manifest.graph_id)
        return 0
    version = job_encoder(lake, args.encoder).version
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: there is nothing to check")
    spark = spark_session(f"check taste {manifest.days[-1]}")
    counts = count_taste(spark, lake, manifest, state_until(lake, version, LATEST))
    failures = check_taste(counts, args.most_change)
    log.info("%s", counts)
    checked_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    day, graph_id = manifest.days[-1], manifest.graph_id
    write_check(lake, TasteCheck(day, args.run_id, graph_id, counts, args.most_change, failures, checked_at))
    for failure in failures:
        log.error("%s", failure)
    if failures:
        return EXIT_GATE_FAILED
    publish(lake, manifest)
    return 0


if __name__ == "__main__":
    run_program(main, ConfigError, GraphError, ReleaseError)
