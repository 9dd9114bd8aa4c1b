"""Makes the examples that a projector is trained and judged on, from a training set of the encoder and the pins' vectors.

    spark-submit jobs/build_conversations.py --home .pinlake --run-id by-hand

1. The training set that this run made (jobs/build_training_set.py) says which pin is trained on and which is held out, by
   creator, board and group of near-duplicates; pins that it dropped are left out.
2. Each pin's title, description, tags and vector are those of the newest days that passed under `--encoder`; its picture is
   encoded once more by itself, without the pin's words.
3. Each word that the language model has a token for becomes an example too, by what the encoder's text tower makes of it.
4. Pins go to buckets by split and creator; each bucket makes its examples (assistant/training/examples.py) and writes a file.
5. The manifest comes last. A finished folder of the same set, encoder and seed is taken as it is.

The driver sees counts and names of files. Pictures move once, to be encoded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import assistant.training.examples as making
from assistant.brains import smollm2
from assistant.training.conversations import MANIFEST as WRITTEN
from assistant.training.conversations import (
    WRITTEN_FILES,
    ConversationsError,
    ConversationsManifest,
    conversations_uri,
    write_manifest,
    write_part,
)
from assistant.training.pictures import PICTURE_VECTORS, encode_pictures
from assistant.training.words import WORDS, WORDS_A_PASS, encode_words, known_words
from embedding.encoder.config import ConfigError
from embedding.encoder.training_set import (
    MEASURED_SPLITS,
    PINS_SCHEMA,
    Manifest,
    TrainingSetError,
    files_of,
    read_manifest,
    read_training_set,
    set_uri,
)
from embedding.index.release import ReleaseError
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.argument_types import whole_number
from jobs.current import current_pins, current_state
from jobs.inputs import NothingPassedError
from jobs.session import (
    ArrowRows,
    arguments,
    job_encoder,
    log,
    map_arrow,
    map_items,
    run_program,
    spark_schema,
    spark_session,
)

PINS_A_BUCKET = 4_096
PICTURES_A_BATCH, WORDS_A_FILE = 64, 4_096


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False, encoder=True)
    parser.add_argument("--training-set", metavar="ID", help="default: the one that this run made")
    parser.add_argument("--words", type=lambda text: whole_number(text, 0), help="of the language model's at most (all)")
    parser.add_argument("--seed", type=lambda text: whole_number(text, 0), default=0)
    return parser.parse_args(argv)


def read_set(spark: SparkSession, lake: Lake, manifest: Manifest, columns: Sequence[str]) -> DataFrame:
    """Columns of a training set's pins, but for those that it dropped."""
    schema = pa.schema([PINS_SCHEMA.field(name) for name in columns])

    def read(path: str) -> ArrowRows:
        filesystem, place = storage.filesystem_of(f"{set_uri(lake, manifest.set_id)}/{path}")
        with pa.parquet.ParquetFile(place, filesystem=filesystem) as file:
            for batch in file.iter_batches(PICTURES_A_BATCH, columns=list(columns)):
                yield batch.select(schema.names)

    rows = map_items(spark, [file.path for file in files_of(manifest, "pins")], read, schema)
    return rows.where(F.col("split").isin(list(MEASURED_SPLITS)))


def tell(spark: SparkSession, lake: Lake, manifest: Manifest, version: str) -> DataFrame:
    """TOLD and `bucket`: the pins of a training set that are current under an encoder."""
    known = read_set(spark, lake, manifest, ["pin_id", "user_id", "board_id", "duplicate_group", "split"])
    pictures = read_set(spark, lake, manifest, ["pin_id", "split", "picture"]).where(F.col("picture").isNotNull())
    encoded = map_arrow(pictures.drop("split"), partial(encode_pictures, lake=lake, version=version), PICTURE_VECTORS)
    columns = ("pin_id", "title", "description", "tags")
    current = current_pins(spark, lake, current_state(lake, version), columns)
    pins = known.join(current, "pin_id", "inner").join(encoded, "pin_id", "left")
    buckets = {row["split"]: -(-row["count"] // PINS_A_BUCKET) for row in known.groupBy("split").count().collect()}
    count = F.create_map(*[F.lit(part) for pair in buckets.items() for part in pair])[F.col("split")]
    # By creator: a board's pins are together, and other creators' are there to be wrong answers.
    return pins.select(*making.TOLD.names, F.pmod(F.xxhash64("user_id"), count).alias("bucket"))


def make(pins: DataFrame, root: str, seed: int) -> DataFrame:
    """Writes a file a bucket below `root`: WRITTEN_FILES."""

    def write(rows: pa.Table) -> pa.Table:
        name = f"{rows['split'][0]}-{rows['bucket'][0].as_py():05d}.parquet"
        table = making.make_examples(rows.select(making.TOLD.names).cast(making.TOLD), seed, 2 * PINS_A_BUCKET)
        return write_part(table, root, name)

    return pins.groupBy("split", "bucket").applyInArrow(write, spark_schema(WRITTEN_FILES))


def make_words(spark: SparkSession, lake: Lake, version: str, root: str, most: int | None) -> DataFrame:
    """Writes files of the language model's own words below `root`: WRITTEN_FILES."""
    words = known_words(smollm2.load_tokenizer())[:most]

    def write(start: int) -> ArrowRows:
        some = words[start : start + WORDS_A_FILE]
        table = pa.table([range(start, start + len(some)), some], schema=WORDS)
        encoded = pa.Table.from_batches(encode_words(table.to_batches(WORDS_A_PASS), lake, version))
        yield from write_part(encoded, root, f"words-{start // WORDS_A_FILE:05d}.parquet").to_batches()

    return map_items(spark, range(0, len(words), WORDS_A_FILE), write, WRITTEN_FILES)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    encoder = job_encoder(lake, args.encoder)
    manifest = read_manifest(lake, args.training_set or read_training_set(lake, args.run_id))
    identity = json.dumps([manifest.set_id, str(encoder.version), args.seed, args.words, making.RECIPE_VERSION]).encode()
    conversations_id = f"{manifest.ds}-{hashlib.sha256(identity).hexdigest()[:12]}"
    root = conversations_uri(lake, conversations_id)
    if storage.exists(f"{root}/{WRITTEN}"):
        log.info("the examples %s of this state exist already", conversations_id)
    else:
        spark = spark_session(f"conversations {manifest.ds}")
        found = make(tell(spark, lake, manifest, encoder.version), root, args.seed)
        files = found.union(make_words(spark, lake, encoder.version, root, args.words)).collect()
        counts: dict[str, dict[str, int]] = {}
        for file in files:
            known = counts.setdefault(file["split"], {})
            for kind, number in json.loads(file["counts"]).items():
                known[kind] = known.get(kind, 0) + number
        shas = {file["name"]: file["sha256"] for file in files}
        said = ConversationsManifest(
            conversations_id, encoder.version, manifest.set_id, args.seed, counts, shas, built_by=args.run_id
        )
        write_manifest(lake, said)
        log.info("examples %s: %s", conversations_id, counts)
    storage.write_atomic(made_uri(lake, args.run_id), json.dumps({"conversations_id": conversations_id}).encode())


def made_uri(lake: Lake, run_id: str) -> str:
    """Where a run says which examples it made or found."""
    return f"{lake.run_uri('training', run_id)}/conversations.json"


if __name__ == "__main__":
    run_program(main, ConfigError, ConversationsError, NothingPassedError, ReleaseError, TrainingSetError)
