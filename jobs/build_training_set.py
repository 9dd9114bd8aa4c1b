"""Makes the encoder's training set: pins with their pictures, split by creator, and bags of neighbours on a board.

    spark-submit jobs/build_training_set.py --home .pinlake --run-id by-hand --ds 2026-11-20

1. The current pins, boards and saves of the days up to `--ds` whose latest night passed, under whichever encoder.
2. Each distinct picture is decoded once and made small; one that cannot be used leaves its pin with the text alone.
3. Near-duplicate pictures are found and put into groups (jobs/pictures.py, which says what that costs).
4. Creators, boards and duplicate groups are split so that none is on both sides (jobs/splits.py).
5. Executors write the files; the manifest comes last. A finished set of the same state and parameters is taken as it is.

Joins and aggregates of narrow rows; pictures are moved twice, to their pins and to their bags. The driver sees counts and
descriptions of files. Two runs that build the same set at once are not kept apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from embedding.contracts import BOARDS, PINS, SAVES
from embedding.encoder import bags as dealing
from embedding.encoder import training_set as ts
from embedding.encoder.limits import ImageLimits
from embedding.encoder.training_set import DROPPED, TRAIN, Manifest, SetFile, SetRecipe, TrainingSetError
from embedding.tables.lake import Lake, data_files
from jobs.inputs import LATEST, Inputs, NothingPassedError, choose_inputs, day_or_latest, read_latest
from jobs.pictures import cut, distinct_pictures, label_pictures
from jobs.session import (
    ArrowRows,
    arguments,
    log,
    map_arrow,
    run_program,
    spark_schema,
    spark_session,
)
from jobs.splits import (
    big_creators,
    count_dropped,
    count_splits,
    describe_pins,
    keep_edges,
    settle_pins,
    split_boards,
    split_pins,
)

PICTURES_A_TASK, PINS_A_PART, CANDIDATES_A_BUCKET = 5_000, 2_000, 4_096
PICTURES_A_BATCH = 128  # rows with pictures between the JVM and Python: some 10 MB


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--ds", default=LATEST, type=day_or_latest, help="last day of data, YYYY-MM-DD (default: latest)")
    for field in fields(SetRecipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return parser.parse_args(argv)


def make_bags(pins: DataFrame, edges: DataFrame, boards: DataFrame, recipe: SetRecipe) -> tuple[DataFrame, int]:
    """CHOSEN, the bags of the training boards with their negatives, and each one's `shard`; and how many bags there are."""
    light = [field.name for field in dealing.LIGHT_MEMBER]
    candidates = pins.where(F.col("split") == TRAIN).select(*light, "category", "user_id", "board_ids")
    members = edges.join(candidates.select(*light), "pin_id", "inner").join(boards, "board_id", "inner")
    filled = members.groupBy("board_id", "owner", "category").agg(F.collect_list(F.struct(*light)).alias("pins"))
    dealt = cut(map_arrow(filled, partial(dealing.deal_bags, bag_size=recipe.bag_size, seed=recipe.seed), dealing.DEALT))
    count = dealt.count()
    # A category's candidates go to buckets of a bounded size, and its bags are dealt to these: none sees a whole category.
    sizes = candidates.groupBy("category").agg(F.ceil(F.count("*") / CANDIDATES_A_BUCKET).alias("buckets"))
    sizes = F.broadcast(sizes)  # a row a category
    bucket = F.pmod(F.xxhash64("pin_id"), "buckets").alias("bucket")
    found = candidates.join(sizes, "category", "inner").select(*dealing.CANDIDATES.names, "category", bucket)
    bucket = F.pmod("place", F.coalesce("buckets", F.lit(1))).alias("bucket")
    seeking = dealt.join(sizes, "category", "left").select(*dealing.DEALT.names, bucket)
    choose = partial(dealing.choose_negatives, count=recipe.negatives, seed=recipe.seed)
    cogroups = seeking.groupBy("category", "bucket").cogroup(found.groupBy("category", "bucket"))
    shard = F.shiftright(F.col("place") * -(-count // recipe.bags_a_shard), dealing.PLACE_BITS)
    return cogroups.applyInArrow(choose, spark_schema(dealing.CHOSEN)).withColumn("shard", shard), count


def fill_bags(bags: DataFrame, pins: DataFrame, pictures: DataFrame) -> DataFrame:
    """ITEMS: a row a pin of a bag, with its text and its picture."""
    every = F.posexplode(F.concat("pins", "negatives")).alias("position", "pin")
    items = bags.select(*dealing.BAG_KEY, "category", F.size("pins").alias("own"), every).select("*", "pin.*")
    full = items.join(pins.select("pin_id", "text", "content"), "pin_id", "inner")
    full = full.join(pictures.select("content", "picture"), "content", "left")
    return full.withColumn("negative", F.col("position") >= F.col("own")).select(dealing.ITEMS.names)


def fill_pins(pins: DataFrame, pictures: DataFrame, parts: int) -> DataFrame:
    """PINS_SCHEMA and `shard`: the pins with their pictures, in `parts`."""
    shard = F.pmod(F.xxhash64("pin_id"), F.lit(parts)).alias("shard")
    usable = pins.where(F.col("cluster").isNotNull())
    return usable.join(pictures.drop("reason"), "content", "left").select(*ts.PINS_SCHEMA.names, shard)


def write_files(rows: DataFrame, order: Sequence[str], root: str, kind: str, schema: pa.Schema) -> list[SetFile]:
    """Writes a file a `shard`, its rows in `order`; returns the files."""

    def run(batches: ArrowRows) -> ArrowRows:
        return ts.write_shards(dealing.assemble_bags(batches) if kind == "train" else batches, root, kind, schema)

    in_order = rows.repartition("shard").sortWithinPartitions("shard", *order)
    return [SetFile(**row.asDict()) for row in map_arrow(in_order, run, ts.FILES).collect()]


def build(spark: SparkSession, lake: Lake, inputs: Inputs, recipe: SetRecipe, limits: ImageLimits, root: str) -> dict[str, Any]:
    """Writes all files of the set below `root` and returns what the manifest says of them."""
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(PICTURES_A_BATCH))
    current = read_latest(spark, lake, inputs, PINS, "user_id", "board_id", "image_uri", "title", "description", "tags")
    texts = cut(map_arrow(current, ts.add_texts, ts.TEXTS))
    rows = sum(file.num_rows for file in data_files(lake.open(PINS, inputs.versions[PINS.name])))
    tasks = max(4 * spark.sparkContext.defaultParallelism, rows // PICTURES_A_TASK)
    hashed, pictures = distinct_pictures(texts, tasks, recipe.picture_side, limits)
    labels, uncompared = label_pictures(pictures)
    described = cut(describe_pins(texts, hashed, pictures, labels))
    big = cut(big_creators(described, recipe))
    boards = cut(split_boards(read_latest(spark, lake, inputs, BOARDS, "user_id", "title"), big, recipe))
    split = cut(split_pins(described, big, recipe))
    edges = cut(keep_edges(split, read_latest(spark, lake, inputs, SAVES), boards))
    pins = cut(settle_pins(split, edges, boards))
    counts, (dropped, unusable) = count_splits(pins), count_dropped(pins)
    bags, bag_count = make_bags(pins, edges, boards, recipe)
    if not bag_count:
        raise TrainingSetError(f"no board is left to train on; counted by split: {counts}, dropped: {dropped}")
    parts = -(-sum(counts["pins"].values()) // PINS_A_PART)
    files = write_files(fill_pins(pins, pictures, parts), ["pin_id"], root, "pins", ts.PINS_SCHEMA)
    files += write_files(fill_bags(bags, pins, pictures), [*dealing.BAG_KEY, "position"], root, "train", ts.BAGS_SCHEMA)
    near = dropped.get(ts.NEAR_DUPLICATE_OF_HELD_OUT, 0) + dropped.get(ts.NEAR_DUPLICATE_OF_TEST, 0)
    counts["pins"][DROPPED], counts["bags"] = near, {TRAIN: bag_count}
    written = {kind: sum(file.rows for file in files if file.path.startswith(kind)) for kind in ("pins", "train")}
    if written != {"pins": sum(counts["pins"].values()), "train": bag_count}:
        raise TrainingSetError(f"the files hold {written} rows, which is not what was counted: {counts}")
    files.sort(key=lambda file: file.path)
    return {"counts": counts, "dropped": dropped, "unusable_pictures": unusable, "uncompared": uncompared, "files": files}


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    args = parse_args(argv)
    lake, limits = Lake(args.home), ImageLimits.from_environment()
    recipe = SetRecipe(**{field.name: getattr(args, field.name) for field in fields(SetRecipe)})
    inputs = choose_inputs(lake, args.ds)
    args.ds = inputs.days[-1]
    set_id = ts.make_set_id(args.ds, inputs.days, inputs.versions, recipe, limits)
    if ts.is_finished(lake, set_id):
        log.info("training set %s of this state exists already", set_id)
    else:
        ts.clear_set(lake, set_id)
        spark = spark_session(f"training set {args.ds}").newSession()  # for settings of its own
        content = build(spark, lake, inputs, recipe, limits, ts.set_uri(lake, set_id))
        manifest = Manifest(
            set_id=set_id,
            ds=args.ds,
            days=inputs.days,
            table_versions=inputs.versions,
            parameters=asdict(recipe),
            recipe_version=ts.RECIPE_VERSION,
            built_by=args.run_id,
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            **content,
        )
        ts.write_manifest(lake, manifest)
        log.info("training set %s: %s, dropped: %s", set_id, manifest.counts, manifest.dropped)
    ts.write_training_set(lake, args.run_id, set_id)


if __name__ == "__main__":
    run_program(main, NothingPassedError, TrainingSetError)
