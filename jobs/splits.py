"""Who is trained on and who is measured: pins, boards and edges by split, so that nothing of what is held out leaks.

Creators are split by a hash, boards go with their owners, an edge between two splits is dropped, and so is each training pin
whose duplicate group reaches into what is held out. Joins and aggregates alone: nothing here reads a table or writes.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from embedding.contracts import Reason
from embedding.encoder.training_set import (
    DROPPED,
    NEAR_DUPLICATE_OF_HELD_OUT,
    NEAR_DUPLICATE_OF_TEST,
    TEST,
    TRAIN,
    UNKNOWN_CATEGORY,
    VALIDATION,
    SetRecipe,
    TrainingSetError,
)


def describe_pins(texts: DataFrame, hashed: DataFrame, pictures: DataFrame, labels: DataFrame) -> DataFrame:
    """TEXTS with the `content` of a usable picture or the `reason` of an unusable one, and a `cluster` a duplicate group.

    `cluster` is null for a pin with nothing usable. Pins without a picture are near-duplicates if their texts are equal.
    """
    refused = pictures.where(F.col("reason").isNotNull())
    outcomes = labels.select("content", "label", F.lit(None).cast("string").alias("refusal")).union(
        refused.select("content", F.lit(None).cast("string"), "reason")
    )
    read = texts.join(hashed, "image_uri", "left").join(outcomes, "content", "left")
    text_alone = F.when(F.col("text") != "", F.concat(F.lit("text/"), F.sha2("text", 256)))
    usable = F.when(F.col("label").isNotNull(), F.col("content"))
    columns = {"content": usable, "reason": F.coalesce("reason", "refusal"), "cluster": F.coalesce("label", text_alone)}
    return read.withColumns(columns).drop("refusal", "label", "image_uri")


def big_creators(described: DataFrame, recipe: SetRecipe) -> DataFrame:
    """`user_id` of those with more than max_creator_pins usable pins, and `big`, true."""
    count = described.where(F.col("cluster").isNotNull()).groupBy("user_id").count()
    return count.where(F.col("count") > recipe.max_creator_pins).select("user_id", F.lit(True).alias("big"))


def split_of(user_id: str, recipe: SetRecipe) -> Column:
    """A creator's split: 52 bits of a SHA-256 as a number in [0, 1); a `big` creator is for training."""
    digest = F.sha2(F.concat(F.lit(f"{recipe.salt}/"), F.col(user_id).cast("string")), 256)
    share = F.conv(F.substring(digest, 1, 13), 16, 10).cast("double") / 2.0**52
    held_out = F.when(share < recipe.held_out_share, TEST)
    by_hash = held_out.when(share < recipe.held_out_share + recipe.validation_share, VALIDATION).otherwise(TRAIN)
    return F.when(F.col("big"), TRAIN).otherwise(by_hash)


def split_pins(described: DataFrame, big: DataFrame, recipe: SetRecipe) -> DataFrame:
    """`described` with duplicate_group, split and, where that is `dropped`, the reason in `dropped`."""
    pins = described.join(big, "user_id", "left").withColumn("split", split_of("user_id", recipe)).drop("big")
    held_out = [F.max(F.col("split") == split).alias(f"has_{split}") for split in (TEST, VALIDATION)]
    usable = F.col("cluster").isNotNull()
    groups = pins.where(usable).groupBy("cluster").agg(F.min("pin_id").alias("duplicate_group"), *held_out)
    of_test = (F.col("split") == VALIDATION) & F.col("has_test")
    of_held_out = (F.col("split") == TRAIN) & (F.col("has_test") | F.col("has_validation"))
    unusable = F.when(~usable, F.coalesce("reason", F.lit(Reason.EMPTY_PIN.value)))
    dropped = unusable.when(of_test, NEAR_DUPLICATE_OF_TEST).when(of_held_out, NEAR_DUPLICATE_OF_HELD_OUT)
    pins = pins.join(groups, "cluster", "left").withColumn("dropped", dropped)
    return pins.withColumn("split", F.when(F.col("dropped").isNotNull(), DROPPED).otherwise(F.col("split")))


def split_boards(boards: DataFrame, big: DataFrame, recipe: SetRecipe) -> DataFrame:
    """From current rows of `boards` to `board_id`, `owner`, `category` (the title up to " / ") and `split`."""
    first = F.lower(F.trim(F.split("title", " / ", 2)[0]))
    category = F.when(first != "", first).otherwise(UNKNOWN_CATEGORY).alias("category")
    owned = boards.join(big, "user_id", "left")
    return owned.select("board_id", F.col("user_id").alias("owner"), category, split_of("user_id", recipe).alias("split"))


def keep_edges(pins: DataFrame, saves: DataFrame, boards: DataFrame) -> DataFrame:
    """Which pin is on which board, its own or one that it was saved to, both alive and of one split: `pin_id`, `board_id`."""
    edges = pins.select("pin_id", "board_id").union(saves.select("pin_id", "board_id")).distinct()
    of_pin = edges.join(pins.select("pin_id", "split"), "pin_id", "inner")
    return of_pin.join(boards, ["board_id", "split"], "inner").select("pin_id", "board_id")


def settle_pins(pins: DataFrame, edges: DataFrame, boards: DataFrame) -> DataFrame:
    """`split_pins` with `board_ids`, `category` and `weight`; `board_id` is null where its edge was dropped."""
    of_pin = edges.groupBy("pin_id").agg(F.array_sort(F.collect_list("board_id")).alias("board_ids"))
    settled = pins.join(of_pin, "pin_id", "left").join(boards.select("board_id", "category"), "board_id", "left")
    board_ids = F.coalesce("board_ids", F.array().cast("array<bigint>"))
    own_board = F.when(F.array_contains(board_ids, F.col("board_id")), F.col("board_id"))
    weight = (1 / F.greatest(F.size(board_ids), F.lit(1))).cast("float")
    category = F.coalesce("category", F.lit(UNKNOWN_CATEGORY))
    return settled.withColumns({"board_ids": board_ids, "board_id": own_board, "weight": weight, "category": category})


def count_splits(pins: DataFrame) -> dict[str, dict[str, int]]:
    """Pins, creators, boards and duplicate groups by split. Raises TrainingSetError where one of them is in two splits."""
    ids = {"pins": F.array("pin_id"), "creators": F.array("user_id"), "boards": F.col("board_ids")}
    ids |= {"duplicate_groups": F.array("duplicate_group")}
    kinds = F.explode(F.create_map(*[part for kind, column in ids.items() for part in (F.lit(kind), column)]))
    listed = pins.where(F.col("split") != DROPPED).select("split", kinds.alias("kind", "ids"))
    one_each = listed.select("split", "kind", F.explode("ids").alias("id")).groupBy("kind", "id")
    splits = one_each.agg(F.min("split").alias("split"), F.max("split").alias("last"))
    leaking = F.sum((F.col("split") != F.col("last")).cast("int")).alias("leaking")
    rows = splits.groupBy("kind", "split").agg(F.count("*").alias("number"), leaking).collect()
    if leaks := [f"{row.leaking} {row.kind}" for row in rows if row.leaking]:
        raise TrainingSetError(f"in two of train, validation and test: {', '.join(leaks)}; nothing was written")
    return {kind: {row.split: row.number for row in rows if row.kind == kind} for kind in ids}


def count_dropped(pins: DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """Dropped pins by reason; and by reason the pins that lost their picture alone."""
    outcomes = pins.groupBy("dropped", "reason", F.col("cluster").isNull().alias("empty")).count().collect()
    dropped: dict[str, int] = {}
    unusable: dict[str, int] = {}
    for row in outcomes:
        if row.dropped:
            dropped[row.dropped] = dropped.get(row.dropped, 0) + row["count"]
        if row.reason and not row.empty:
            unusable[row.reason] = unusable.get(row.reason, 0) + row["count"]
    return dropped, unusable
