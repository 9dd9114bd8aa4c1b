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
from collections.abc import Iterable, Sequence

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import NIGHTS, USER_EMBEDDINGS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables.lake import DayChangedError, Lake, partition_version, replace_partition
from embedding.tables.staging import StagedFile, Stager
from embedding.taste.sequence import UserModelError
from embedding.taste.user_models import (
    UserModelManifest,
    histories_of,
    live_user_model,
    read_user_manifest,
    worker_user_model,
)
from jobs.build_interests import earlier_days, latest_only, state_until
from jobs.current import CurrentState, described_pins
from jobs.inputs import LATEST, day_or_latest
from jobs.resources import task_cores
from jobs.session import (
    ArrowRows,
    arguments,
    job_encoder,
    log,
    map_arrow,
    read_table,
    run_program,
    spark_session,
    stage,
    until_settled,
)
from jobs.staged_histories import exploded, newest_saves, with_vectors

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
    before = latest_only(read_table(spark, table, columns, earlier_days(state, state.days[-1]))).persist()
    same = before.where(F.col("user_model") == manifest.version).select("user_id", "history_hash")
    changed = users.join(same, ["user_id", "history_hash"], "left_anti")
    found = read_users(with_vectors(spark, lake, state, exploded(changed)), lake, manifest)
    had = before.where(F.col("size") > 0).select("user_id")
    nobody = had.join(users, "user_id", "left_anti").withColumns({"size": F.lit(0), "history_hash": F.lit(0)})
    return found.unionByName(nobody, allowMissingColumns=True).withColumn("user_model", F.lit(manifest.version))


def write_day(spark: SparkSession, lake: Lake, manifest: UserModelManifest, ds: str, run_id: str) -> None:
    """Replaces the partition of the last day up to `ds` that passed."""
    version = manifest.embedding_version
    day = state_until(lake, version, ds).days[-1]
    partition: dict[str, str | None] = {"embedding_version": version, "ds": day}
    expected = partition_version(lake.open(USER_EMBEDDINGS), partition)
    state = state_until(lake, version, day)  # after the number: what another run commits from now on is no older than this
    rows = changed_users(spark, lake, state, manifest).withColumn("run_id", F.lit(run_id))

    def write(batches: ArrowRows) -> Iterable[StagedFile]:
        with Stager(lake.table_uri(USER_EMBEDDINGS), USER_EMBEDDINGS, partition) as staged:
            for batch in batches:
                staged.add(batch)
            staged.flush()
        return staged.files

    files = stage(rows, write).get(USER_EMBEDDINGS.name, [])
    replace_partition(lake, USER_EMBEDDINGS, partition, files, expected_version=expected, run_id=run_id)
    log.info("%s: %d users read by %s", day, sum(file.num_rows for file in files), manifest.version)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    live = live_user_model(lake, encoder.version)
    if not lake.exists(NIGHTS) or live is None:
        raise ReleaseError(f"there is no model of users for {encoder.version} under {lake.home}: run jobs/train_users.py first")
    manifest = read_user_manifest(lake, encoder.version, live)
    spark = spark_session(f"users {live}")
    until_settled(lambda: write_day(spark, lake, manifest, args.ds, args.run_id))


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError, UserModelError)
