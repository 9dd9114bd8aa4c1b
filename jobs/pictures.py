"""The pins' pictures as Spark reads them: each content once, made small, and in groups of near-duplicates.

Pictures of equal bytes or equal signature are one from the start, so that a popular picture costs nothing. The others meet in
buckets (embedding/encoder/pictures.py): a bucket of look-alikes costs its size squared, bounded by MAX_BUCKET, and what is
left uncompared above that is counted. A group of pictures that are near-duplicates through others in a chain takes a round
for each doubling of the chain's length.
"""

from __future__ import annotations

from functools import partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from embedding.encoder.limits import ImageLimits
from embedding.encoder.pictures import (
    BUCKETED,
    HASHED_PICTURES,
    LINKS,
    MAX_BUCKET,
    PICTURES,
    hash_pictures,
    link_near_duplicates,
    read_pictures,
    spread_over_buckets,
)
from embedding.encoder.training_set import TrainingSetError
from jobs.session import log, map_arrow

MAX_ROUNDS = 40


def cut(frame: DataFrame) -> DataFrame:
    """The frame without the plan behind it, computed once by the first action that needs it.

    Planning grows with a plan's depth, persisted or not: of a program of thirty joins it was half the time. The price is that
    an executor's loss ends the program, which is then run again.
    """
    return frame.localCheckpoint(eager=False)


def distinct_pictures(pins: DataFrame, tasks: int, side: int, limits: ImageLimits) -> tuple[DataFrame, DataFrame]:
    """HASHED_PICTURES, a row an address of `pins`, and PICTURES, a row a content, read by so many tasks."""
    addresses = pins.where(F.col("image_uri").isNotNull()).select("image_uri").distinct()
    hashed = cut(map_arrow(addresses, partial(hash_pictures, limits=limits), HASHED_PICTURES))
    contents = hashed.where(F.col("content").isNotNull()).groupBy("content").agg(F.min("image_uri").alias("image_uri"))
    return hashed, map_arrow(contents.repartition(tasks), partial(read_pictures, side=side, limits=limits), PICTURES).persist()


def label_pictures(pictures: DataFrame) -> tuple[DataFrame, int]:
    """From PICTURES to `content` and `label`, the least content of its group; and how many pictures were left uncompared."""
    by_signature = pictures.where(F.col("reason").isNull()).groupBy("gradient", "thumbnail")
    alike = cut(by_signature.agg(F.min("content").alias("content"), F.collect_list("content").alias("same")))
    buckets = map_arrow(alike.select("content", "gradient", "thumbnail"), spread_over_buckets, BUCKETED)
    # Look-alikes side by side: where a bucket is too full, what is compared are the most similar ones.
    in_order = buckets.repartition("bucket").sortWithinPartitions("bucket", "thumbnail", "content")
    links = cut(map_arrow(in_order, link_near_duplicates, LINKS))
    uncompared = links.agg(F.coalesce(F.sum("uncompared"), F.lit(0)).alias("pictures")).collect()[0].pictures
    if uncompared:
        log.warning("%d pictures were left uncompared in buckets of more than %d", uncompared, MAX_BUCKET)
    labels = follow(links.where(F.col("content").isNotNull()).select("content", "other"))
    label = F.coalesce("label", "content").alias("label")
    each = alike.join(labels, "content", "left").select(F.explode("same").alias("one"), label)
    return each.withColumnRenamed("one", "content"), uncompared


def follow(links: DataFrame) -> DataFrame:
    """Each `content` in links (`content`, `other`) with its `label`: the least one that links lead to.

    A round takes the least label among a content and its neighbours, then that one's own label, until none changes.
    """
    edges = cut(links.union(links.select("other", "content")).distinct())
    labels = edges.groupBy("content").agg(F.least("content", F.min("other")).alias("label"))
    for _ in range(MAX_ROUNDS):
        theirs = labels.select(F.col("content").alias("other"), F.col("label").alias("seen"))
        nearest = edges.join(theirs, "other", "inner").groupBy("content").agg(F.min("seen").alias("seen"))
        hooked = labels.join(nearest, "content", "inner").select("content", "label", F.least("label", "seen").alias("next"))
        parents = hooked.select(F.col("content").alias("next"), F.col("next").alias("further"))
        moved = cut(hooked.join(parents, "next", "inner").select("content", "label", "further"))
        labels = moved.select("content", F.col("further").alias("label"))
        if not moved.where(F.col("label") != F.col("further")).count():
            return labels
    raise TrainingSetError(f"the near-duplicates were not followed to their end in {MAX_ROUNDS} rounds")
