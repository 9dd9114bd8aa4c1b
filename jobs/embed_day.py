"""A landed day under one encoder, shared by the programs that embed: every pin ends with a vector or with a reason.

1. Rows of the day that an earlier run settled are kept as they are. A rerun ends here, and writes nothing.
2. The other pins' bytes are fetched and hashed, not decoded: the content hash says what is known already.
3. Known contents give their vector. Each unknown one is decoded and encoded once, however many pins show it.
   (docs/decisions/0004-hash-before-decode.md)
4. Executors stage both tables' files; the driver commits `quarantine`, then `pin_embeddings`, whose commit is the night.

Step 3's encoding is a stage of its own, the only one that asks for GPUs (jobs/resources.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from embedding.contracts import PIN_EMBEDDINGS, PINS, QUARANTINE, Stage, pin_text
from embedding.encoder.batches import HASHED, SETTLED, encode_batches, hash_batches
from embedding.encoder.limits import ImageLimits
from embedding.encoder.store import worker_encoder
from embedding.tables.exports import cut_detail
from embedding.tables.lake import Lake, Replacement, partition_is, partition_version, replace_in_order
from embedding.tables.staging import StagedFile, Stager
from jobs.lookups import find_rows, wanted_rows
from jobs.resources import encode_profile, task_cores, task_device
from jobs.retries import Retry
from jobs.session import ArrowRows, contract_partition, log, map_arrow, read_table, stage, with_columns
from jobs.settled import KEY, read_settled, split_settled

CONTENTS_A_TASK = 20_000
"""A task's share of a large night: some minutes of a GPU, so that a lost executor costs little."""


@dataclass(frozen=True)
class DayJob:
    """What is to be embedded, under which version of the lake's encoders, and which run asks.

    retry: Which of the wanted pins are encoded again though they are in quarantine.
    only: The pins (`pin_id`, `source_sha256`) of the day that are wanted; None for all. Of the others, what is settled stays.
    """

    ds: str
    version: str
    run_id: str
    batch_size: int = 32
    retry: Retry = field(default_factory=Retry)
    only: DataFrame | None = None


def read_day(spark: SparkSession, lake: Lake, ds: str) -> DataFrame:
    """The day's pins that are to be embedded, with the text that the encoder reads."""
    columns = ["pin_id", "source_sha256", "image_uri", "title", "description", "tags", "deleted"]
    schema = pa.schema([HASHED.field(n) for n in ("pin_id", "source_sha256", "image_uri", "text")])

    def add_text(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            fields = (batch.column(n).to_pylist() for n in ("title", "description", "tags"))
            text = pa.array([pin_text(*row) for row in zip(*fields, strict=True)], pa.string())
            kept = [batch.column(n) for n in ("pin_id", "source_sha256", "image_uri")]
            yield pa.RecordBatch.from_arrays([*kept, text], schema=schema)

    return map_arrow(
        read_table(spark, lake.open(PINS), columns, partition_is(ds=ds)).where(~F.col("deleted")), add_text, schema
    )


def hash_contents(pins: DataFrame, limits: ImageLimits) -> DataFrame:
    """Fetches each picture's bytes and names its content; a picture that cannot be fetched gets its reason."""
    return map_arrow(pins, partial(hash_batches, limits=limits), HASHED)


def encode_contents(
    unknown: DataFrame, lake: Lake, job: DayJob, limits: ImageLimits, profile: ResourceProfile | None
) -> DataFrame:
    """Encodes each content once; returns an outcome for every pin that shows it."""
    version, run_id, batch_size = job.version, job.run_id, job.batch_size

    def run(batches: ArrowRows) -> ArrowRows:
        config, device, cores = worker_encoder(lake, version), task_device(), task_cores()
        log.info("%s: encodes on %s with %d cores", version, device, cores)
        return encode_batches(batches, config, run_id, batch_size=batch_size, device=device, cores=cores, limits=limits)

    return map_arrow(unknown, run, SETTLED, profile)


def reuse_vectors(spark: SparkSession, lake: Lake, version: str, hashed: DataFrame, run_id: str) -> DataFrame:
    """Outcomes of the pins whose content has a vector under this version already, whichever pin and day it came from."""
    columns = ["content_sha256", "embedding", "has_image", "has_text", "encoded_by"]
    # The history is looked through for hashes; vectors are read where one is found, and only found rows leave a task.
    wanted = wanted_rows(hashed.where(F.col("reason").isNull()), "content_sha256", once=True)
    known = find_rows(spark, lake.open(PIN_EMBEDDINGS), columns, partition_is(embedding_version=version), wanted)
    one_each = known.groupBy("content_sha256").agg(*[F.first(name).alias(name) for name in columns[1:]])
    outcomes = hashed.where(F.col("reason").isNull()).join(one_each, "content_sha256", "inner")
    return outcomes.withColumn("run_id", F.lit(run_id)).select(SETTLED.names)


def group_unknown(hashed: DataFrame, reused: DataFrame) -> DataFrame:
    """One row a content without a vector, with all the pins that show it.

    In one order, whichever came first: where an executor is lost, Spark computes its rows again, and gives the program up if
    they are others than before.
    """
    unknown = hashed.where(F.col("reason").isNull()).join(reused.select("pin_id"), "pin_id", "left_anti")
    in_order = unknown.repartition("content_sha256").sortWithinPartitions("content_sha256", "pin_id")
    pin = F.struct("pin_id", "source_sha256", "image_uri")
    firsts = [F.first(name).alias(name) for name in ("image_uri", "text")]
    return in_order.groupBy("content_sha256").agg(F.collect_list(pin).alias("pins"), *firsts)


def stage_outcomes(lake: Lake, ds: str, version: str, batches: ArrowRows) -> Iterable[StagedFile]:
    """Writes vectors as files of `pin_embeddings`, the others as files of `quarantine`."""
    partition = contract_partition(PIN_EMBEDDINGS, ds=ds, embedding_version=version)
    quarantine = contract_partition(QUARANTINE, ds=ds, stage=Stage.EMBED, embedding_version=version)
    with (
        Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, partition) as embedded,
        Stager(lake.table_uri(QUARANTINE), QUARANTINE, quarantine) as rejected,
    ):
        for batch in batches:
            good = pc.is_null(batch.column("reason"))
            embedded.add(batch.filter(good))
            rejected.add(cut_detail(with_columns(batch.filter(pc.invert(good)), {"entity": "pin"})))
        embedded.flush()
        rejected.flush()
    return [*embedded.files, *rejected.files]


@contextmanager
def kept_frames() -> Iterator[Any]:
    """Gives a function that keeps a DataFrame in memory or on disk until the end of the block."""
    frames: list[DataFrame] = []

    def keep(frame: DataFrame) -> DataFrame:
        frames.append(frame.persist(StorageLevel.MEMORY_AND_DISK))
        return frames[-1]

    try:
        yield keep
    finally:
        for frame in frames:
            frame.unpersist()


def embed_day(spark: SparkSession, lake: Lake, job: DayJob) -> dict[str, float]:
    """Settles the day's pins in one commit a table. Returns counts and seconds; empty where there was nothing to do.

    Raises DayChangedError if another run has settled the day meanwhile: look again; and ResourcesError before anything is read.
    """
    contracts = (QUARANTINE, PIN_EMBEDDINGS)
    partitions = {c.name: contract_partition(c, ds=job.ds, embedding_version=job.version, stage=Stage.EMBED) for c in contracts}
    seen = {c.name: partition_version(lake.open(c), partitions[c.name]) for c in contracts}
    profile = encode_profile(spark)
    with kept_frames() as keep:
        day = keep(read_day(spark, lake, job.ds))
        wanted = day if job.only is None else day.join(job.only, KEY, "left_semi")
        settled = split_settled(read_settled(spark, lake, job.version, job.ds), day, wanted, job.retry)
        kept = settled.kept
        work = keep(wanted.join(kept.select("pin_id"), "pin_id", "left_anti"))
        if work.select("pin_id").unionByName(settled.stale.select("pin_id")).isEmpty():
            log.info("every pin of %s is settled under %s: nothing to do", job.ds, job.version)
            return {}
        limits = ImageLimits.from_environment()
        tasks = spark.sparkContext.defaultParallelism
        hashed = keep(hash_contents(work.repartition(tasks, "pin_id"), limits))
        reused = keep(reuse_vectors(spark, lake, job.version, hashed, job.run_id))
        unknown = keep(group_unknown(hashed, reused))
        contents = unknown.count()
        # By key: rows dealt out in turn would go elsewhere when a lost executor's are computed again, and be lost or doubled.
        shared_out = unknown.repartition(max(tasks, contents // CONTENTS_A_TASK), "content_sha256")
        unreadable = hashed.where(F.col("reason").isNotNull()).withColumn("run_id", F.lit(job.run_id))
        others = reused.unionByName(kept).unionByName(unreadable.drop("text"), allowMissingColumns=True)
        write = partial(stage_outcomes, lake, job.ds, job.version)
        started = time.monotonic()
        staged = stage(encode_contents(shared_out, lake, job, limits, profile), write) if contents else {}
        encode_s = round(time.monotonic() - started, 3)
        for table, files in stage(others.select(SETTLED.names).coalesce(tasks), write).items():
            staged.setdefault(table, []).extend(files)
        found, expected = sum(f.num_rows for files in staged.values() for f in files), kept.count() + work.count()
        if found != expected:
            raise RuntimeError(f"{job.ds}: {expected} pins went in and {found} came out; nothing was committed")
        changes = [Replacement(c, partitions[c.name], staged.get(c.name, []), seen[c.name]) for c in contracts]
        replace_in_order(lake, changes, run_id=job.run_id)
        return {"contents": contents, "encode_s": encode_s}
