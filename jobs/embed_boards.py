"""Gives each board whose pins changed one vector, and writes it into the table `board_embeddings`.

    spark-submit jobs/embed_boards.py --home .pinlake --run-id by-hand --encoder live

A board's vector is the mean of the vectors of its newest pins, normalised (embedding/taste/interests.py); beside it are the
pin that is nearest to it, how alike the pins are, and a label of their tags. As jobs/build_interests.py does it with users:
boards whose hash of pins is that of their latest row are left alone, the day's partition becomes visible in one commit, and
done again for the same state it ends in the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARD_EMBEDDINGS, NIGHTS
from embedding.encoder.config import ConfigError
from embedding.index.release import ReleaseError
from embedding.tables.lake import DayChangedError, Lake
from embedding.taste.interests import centre_of, label_of
from jobs.current import ROW_KEY, CurrentState, batch_vectors, current_vectors, described_pins
from jobs.histories import earlier_days, histories, latest_only, replace_day, saves_in, tag_weights, tags_of
from jobs.inputs import LATEST, day_or_latest
from jobs.session import arguments, job_encoder, read_table, run_program, spark_schema, spark_session, until_settled

BOARD = "board_id"
_FOUND = pa.schema([f for f in BOARD_EMBEDDINGS.schema if f.name not in (*BOARD_EMBEDDINGS.partition_by, "run_id")])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    return parser.parse_args(argv)


def board_row(pins: pa.Table) -> pa.Table:
    """A row of `_FOUND`, from a board's pins with vectors and tags."""
    pins = pins.sort_by([("saved", "descending"), ("pin_id", "ascending")])
    vectors_ND, ids = batch_vectors(pins)
    centre_D, cohesion, medoid = centre_of(vectors_ND)
    row = {
        BOARD: pins[BOARD][0].as_py(),
        "embedding": centre_D,
        "medoid_pin": int(ids[medoid]),
        "size": len(ids),
        "cohesion": cohesion,
        "label": label_of([{tag["tag"]: tag["weight"] for tag in of_pin or ()} for of_pin in pins["tags"].to_pylist()]),
        "history_hash": pins["history_hash"][0].as_py(),
    }
    return pa.Table.from_pylist([row], _FOUND)


def changed_boards(spark: SparkSession, lake: Lake, state: CurrentState) -> DataFrame:
    """The day's rows: of boards with other pins than before, and of those that have none any more."""
    pins = described_pins(spark, lake, state, ("pin_id", "tags")).persist()
    boards = histories(spark, lake, state, pins, BOARD)
    columns, earlier = [BOARD, "ds", "history_hash", "size"], earlier_days(state, state.days[-1])
    before = latest_only(read_table(spark, lake.open(BOARD_EMBEDDINGS), columns, earlier), BOARD, ["ds"]).persist()
    changed = boards.join(before.select(BOARD, "history_hash"), [BOARD, "history_hash"], "left_anti")
    saves = saves_in(changed, BOARD).persist()
    # Tags first, so that vectors are shuffled by one join less.
    full = saves.join(tags_of(pins, tag_weights(pins), saves), "pin_id", "left")
    full = full.join(current_vectors(spark, lake, state), ROW_KEY, "inner")
    found = full.groupBy(BOARD).applyInArrow(board_row, spark_schema(_FOUND))
    had = before.where(F.col("size") > 0).select(BOARD)
    empty = had.join(boards, BOARD, "left_anti").withColumns({"size": F.lit(0), "history_hash": F.lit(0)})
    return found.unionByName(empty, allowMissingColumns=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    if not lake.exists(NIGHTS):
        raise ReleaseError(f"no night has run under {lake.home}: no board has a vector yet")
    spark = spark_session(f"boards {encoder.version}")
    until_settled(lambda: replace_day(spark, lake, BOARD_EMBEDDINGS, encoder.version, args.ds, args.run_id, changed_boards))


if __name__ == "__main__":
    run_program(main, ConfigError, DayChangedError, ReleaseError)
