"""Reads each user whose history or whose model changed as one vector, and writes it into the table `user_embeddings`.

    spark-submit jobs/embed_users.py --home .pinlake --run-id by-hand --encoder live

1. A history is a user's saves of current pins, the newest of them, as in jobs/build_interests.py; its hash is the same.
2. Users whose latest row is of that hash and of the live model (jobs/train_users.py) are left alone. Users whose last save is
   gone get a row without a vector.
3. The vectors of the others' pins meet in one row a user, bounded by the model; executors read them in batches.
4. The day's partition becomes visible in one commit. Done again for the same state, it ends in the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, USER_EMBEDDINGS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables.lake import DayChangedError, Lake
from embedding.taste.sequence import UserModelError
from embedding.taste.user_models import (
    UserModelManifest,
    histories_of,
    live_user_model,
    read_user_manifest,
    worker_user_model,
)
from jobs.current import CurrentState, described_pins
from jobs.histories import earlier_days, latest_only, replace_day, saves_in
from jobs.inputs import LATEST, day_or_latest
from jobs.resources import task_cores
from jobs.session import (
    ArrowRows,
    arguments,
    job_encoder,
    map_arrow,
    read_table,
    run_program,
    spark_session,
    until_settled,
)
from jobs.staged_histories import newest_saves, with_vectors

_FOUND = pa.schema([USER_EMBEDDINGS.schema.field(name) for name in ("user_id", "embedding", "size", "history_hash")])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    return parser.parse_args(argv)


def read_users(rows: DataFrame, lake: Lake, manifest: UserModelManifest) -> DataFrame:
    """_FOUND of each user's history, by the model."""
    home, embedding_version, version = lake.home, manifest.embedding_version, manifest.version

    def run(batches: ArrowRows) -> ArrowRows:
        encoder = worker_user_model(home, embedding_version, version, task_cores())
        for batch in batches:
            users = histories_of(batch)
            vectors_BD = encoder.encode(users, embedding_version)
            sizes = pa.array([len(history) for history in users], pa.int64())
            found = [batch.column("user_id"), pa.array(list(vectors_BD), pa.list_(pa.float32())), sizes]
            yield pa.RecordBatch.from_arrays([*found, batch.column("history_hash")], schema=_FOUND)

    return map_arrow(rows, run, _FOUND)


def changed_users(spark: SparkSession, lake: Lake, state: CurrentState, manifest: UserModelManifest) -> DataFrame:
    """The day's rows: of users whose history or model is another than their latest row's, and of those without a save left."""
    pins = described_pins(spark, lake, state, ("pin_id",))
    users = newest_saves(spark, lake, state, pins, int(manifest.setting["max_pins"])).persist()
    table, columns = lake.open(USER_EMBEDDINGS), ["user_id", "ds", "history_hash", "user_model", "size"]
    before = latest_only(read_table(spark, table, columns, earlier_days(state, state.days[-1])), order=["ds"]).persist()
    same = before.where(F.col("user_model") == manifest.version).select("user_id", "history_hash")
    changed = users.join(same, ["user_id", "history_hash"], "left_anti")
    found = read_users(with_vectors(spark, lake, state, saves_in(changed)), lake, manifest)
    had = before.where(F.col("size") > 0).select("user_id")
    nobody = had.join(users, "user_id", "left_anti").withColumns({"size": F.lit(0), "history_hash": F.lit(0)})
    return found.unionByName(nobody, allowMissingColumns=True).withColumn("user_model", F.lit(manifest.version))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    live = live_user_model(lake, encoder.version)
    if not lake.exists(NIGHTS) or live is None:
        raise ReleaseError(f"there is no model of users for {encoder.version} under {lake.home}: run jobs/train_users.py first")
    manifest = read_user_manifest(lake, encoder.version, live)
    spark = spark_session(f"users {live}")
    rows = partial(changed_users, manifest=manifest)
    until_settled(lambda: replace_day(spark, lake, USER_EMBEDDINGS, encoder.version, args.ds, args.run_id, rows))


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError, UserModelError)
