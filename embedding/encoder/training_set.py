"""What the encoder is trained on and measured on: a training set's format, its files, and what would leak.

    training/<set_id>/manifest.json            what the set is, with each file's SHA-256; written last
    training/<set_id>/pins/part-00000.parquet  PINS_SCHEMA: a row a pin of every split
    training/<set_id>/train/part-00000.parquet BAGS_SCHEMA: a row a bag, in an order shuffled at rest

Words. A *bag* is up to `bag_size` pins of one board, a batch's source of pairs: image with text, and pin with neighbour.
A *duplicate group* holds the pins whose pictures are near-duplicates, directly or through others. A *split* is train,
validation, test or dropped; no creator, board or duplicate group is in two of the first three.

The pictures and their near-duplicates are made in pictures.py, the bags in bags.py; this file writes and reads the set, for
jobs/build_training_set.py and for whoever trains or measures. Nothing here needs an engine, or reads a table of the lake.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from embedding.contracts import pin_text
from embedding.encoder.limits import ImageLimits
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake

RECIPE_VERSION = 1
"""Part of every set's id: raise it with any change of what a set holds."""

FORMAT = 1
MANIFEST = "manifest.json"
TRAIN, VALIDATION, TEST, DROPPED = "train", "validation", "test", "dropped"
UNKNOWN_CATEGORY = "unknown"
MEASURED_SPLITS = (TRAIN, VALIDATION, TEST)
NEAR_DUPLICATE_OF_HELD_OUT, NEAR_DUPLICATE_OF_TEST = "near_duplicate_of_held_out", "near_duplicate_of_test"

Ints = npt.NDArray[np.int64]


class TrainingSetError(Exception):
    """A training set that cannot be made or read; the message says why, and what to do."""


# -- format -----------------------------------------------------------------------------------------------------------------

THUMBNAIL_SIDE, THUMBNAIL_BYTES = 8, 8 * 8 * 3

PINS_SCHEMA = pa.schema(
    [
        pa.field("pin_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64()),
        pa.field("board_id", pa.int64()),  # its own board; null where that board is deleted or of another split
        pa.field("board_ids", pa.list_(pa.int64()), nullable=False),  # of its own split, ascending; empty for `dropped`
        pa.field("category", pa.string(), nullable=False),  # its own board's, whatever that board's split
        pa.field("split", pa.string(), nullable=False),
        pa.field("duplicate_group", pa.int64(), nullable=False),  # the least pin_id of the group
        pa.field("text", pa.string(), nullable=False),  # pin_text's; "" for none
        pa.field("picture", pa.binary()),  # PNG, RGB, long side at most picture_side; null for none
        pa.field("thumbnail", pa.binary()),  # 8 x 8 x 3 bytes, row by row, RGB; null for none
    ]
)

MEMBER = pa.struct(
    [
        pa.field("pin_id", pa.int64(), nullable=False),
        pa.field("duplicate_group", pa.int64(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("picture", pa.binary()),
        pa.field("text", pa.string(), nullable=False),
    ]
)
BAGS_SCHEMA = pa.schema(
    [
        pa.field("board_id", pa.int64(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("pins", pa.list_(MEMBER), nullable=False),
        pa.field("negatives", pa.list_(MEMBER), nullable=False),
    ]
)
"""`weight` is 1 / boards of the pin. Summed over an epoch a pin counts as one anchor, however many boards it is on; and
since a bag gives each of its pins one neighbour or a fixed number, pairs grow with a board's n pins and not with n^2.
Without it popular pins would be most of the pairs; Pixie corrects its walks for popularity likewise (arXiv 1711.07601)."""

ROWS_A_GROUP = {"pins": 256, "train": 16}
"""Rows of a Parquet row group: what a reader holds at once."""


@dataclass(frozen=True)
class SetRecipe:
    """The parameters of a set. Raises TrainingSetError for one that cannot be."""

    picture_side: int = 256
    bag_size: int = 16
    negatives: int = 4
    bags_a_shard: int = 64
    held_out_share: float = 0.3
    validation_share: float = 0.15
    max_creator_pins: int = 250
    salt: str = "pinclip"

    def __post_init__(self) -> None:
        least = {"picture_side": 17, "bag_size": 2, "negatives": 0, "bags_a_shard": 1, "max_creator_pins": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise TrainingSetError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        shares = (self.held_out_share, self.validation_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise TrainingSetError(
                f"held_out_share and validation_share must leave something to train on, not {shares[0]} and {shares[1]}"
            )

    @property
    def seed(self) -> int:
        """48 bits of the salt, for every pseudo-random choice but the split."""
        return int.from_bytes(hashlib.sha256(self.salt.encode()).digest()[:6], "big")


@dataclass(frozen=True)
class SetFile:
    """One file of a set. `path` is relative to the set's folder: `pins/part-00000.parquet`."""

    path: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a set is. `counts` has pins, bags, boards, creators and duplicate_groups by split; `dropped` pins by reason.

    `unusable_pictures` counts by Reason the pins that keep their text alone. Pins dropped by a Reason have no row; those
    dropped as near-duplicates have one, of split `dropped`. `uncompared` counts what over-full buckets left out.
    """

    set_id: str
    ds: str
    days: list[str]
    table_versions: dict[str, int]
    parameters: dict[str, Any]
    recipe_version: int
    counts: dict[str, dict[str, int]]
    dropped: dict[str, int]
    unusable_pictures: dict[str, int]
    uncompared: int
    files: list[SetFile]
    built_by: str
    built_at: str
    seconds: float
    format: int = FORMAT

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        try:
            values: dict[str, Any] = json.loads(data)
            if values["format"] != FORMAT:
                raise TrainingSetError(f"{where}: format {values['format']}, this reader knows {FORMAT}; update pinlake")
            values["files"] = [SetFile(**file) for file in values["files"]]
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingSetError(f"{where}: not a training set's manifest ({error})") from error


def set_uri(lake: Lake, set_id: str) -> str:
    """Where a set lies. Refuses an id that is no plain folder name."""
    if not set_id or any(c in set_id for c in "/\\") or set_id.startswith("."):
        raise TrainingSetError(f"not a training set's id: {set_id!r}")
    return f"{lake.home}/training/{set_id}"


def make_set_id(ds: str, days: Sequence[str], table_versions: Mapping[str, int], recipe: SetRecipe, limits: ImageLimits) -> str:
    """`<ds>-<12 hex digits>` over everything that decides the set's content."""
    accepted = {**asdict(limits), "schemes": sorted(limits.schemes)}
    identity = [RECIPE_VERSION, ds, list(days), dict(table_versions), asdict(recipe), accepted, PIL.__version__]
    return f"{ds}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"


def is_finished(lake: Lake, set_id: str) -> bool:
    return storage.exists(f"{set_uri(lake, set_id)}/{MANIFEST}")


def read_manifest(lake: Lake, set_id: str) -> Manifest:
    uri = f"{set_uri(lake, set_id)}/{MANIFEST}"
    try:
        return Manifest.from_json(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        raise TrainingSetError(f"no training set {set_id}: {uri} does not exist") from None


def write_manifest(lake: Lake, manifest: Manifest) -> None:
    storage.write_atomic(f"{set_uri(lake, manifest.set_id)}/{MANIFEST}", manifest.to_json())


def clear_set(lake: Lake, set_id: str) -> None:
    """Removes what an unfinished attempt left."""
    filesystem, path = storage.filesystem_of(set_uri(lake, set_id))
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def write_training_set(lake: Lake, run_id: str, set_id: str) -> None:
    """Tells the later steps of a run which set it made or found."""
    storage.write_atomic(_training_set_uri(lake, run_id), json.dumps({"set_id": set_id}).encode())


def read_training_set(lake: Lake, run_id: str) -> str:
    uri = _training_set_uri(lake, run_id)
    if not storage.exists(uri):
        raise TrainingSetError(f"run {run_id} has made no training set: run build_training_set.py with the same --run-id first")
    return str(json.loads(storage.read_bytes(uri))["set_id"])


def _training_set_uri(lake: Lake, run_id: str) -> str:
    return f"{lake.run_uri('training', run_id)}/training_set.json"


TEXTS = pa.schema(
    [*[(n, pa.int64()) for n in ("pin_id", "user_id", "board_id")], *[(n, pa.string()) for n in ("image_uri", "text")]]
)
"""A current pin with its text."""


def add_texts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """From current rows of `pins` to TEXTS."""
    for batch in batches:
        parts = (batch.column(name).to_pylist() for name in ("title", "description", "tags"))
        text = pa.array([pin_text(*row) for row in zip(*parts, strict=True)], pa.string())
        yield pa.RecordBatch.from_arrays([*(batch.column(name) for name in TEXTS.names[:-1]), text], schema=TEXTS)


# -- files ------------------------------------------------------------------------------------------------------------------

FILES = pa.schema([("path", pa.string()), ("rows", pa.int64()), ("size_bytes", pa.int64()), ("sha256", pa.string())])
"""SetFile as an executor reports it."""


def write_shards(batches: Iterable[pa.RecordBatch], root: str, kind: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Writes rows of `schema`, sorted by their column `shard`, as `<root>/<kind>/part-<shard>.parquet`; yields FILES.

    A file gets its name when it is whole, so that a second attempt of a task replaces what the first one left. Equal rows
    give equal bytes. Memory: one row group and one batch.
    """
    filesystem, folder = storage.filesystem_of(f"{root}/{kind}")
    if isinstance(filesystem, pafs.LocalFileSystem):
        filesystem.create_dir(folder, recursive=True)
    for shard, rows in _by_shard(batches):
        path = f"{kind}/part-{shard:05d}.parquet"
        temporary = f"{folder}/_part-{shard:05d}.{uuid.uuid4().hex}.tmp"
        with filesystem.open_output_stream(temporary, compression=None) as sink:
            written = _write_rows(rows, sink, schema, ROWS_A_GROUP[kind])
        filesystem.move(temporary, f"{folder}/part-{shard:05d}.parquet")
        uri = f"{root}/{path}"
        size = filesystem.get_file_info(f"{folder}/part-{shard:05d}.parquet").size
        yield pa.RecordBatch.from_pylist([vars(SetFile(path, written, size, file_sha256(uri)))], schema=FILES)


def _write_rows(rows: Iterable[pa.Table], sink: Any, schema: pa.Schema, rows_a_group: int) -> int:
    pending: list[pa.Table] = []
    written = waiting = 0
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=["category", "split"]) as writer:
        for table in rows:
            pending.append(table.select(schema.names).cast(schema))
            waiting += table.num_rows
            while waiting >= rows_a_group:
                whole = pa.concat_tables(pending)
                writer.write_table(whole.slice(0, rows_a_group).combine_chunks())
                pending, waiting, written = [whole.slice(rows_a_group)], waiting - rows_a_group, written + rows_a_group
        if waiting:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
    return written + waiting


def _by_shard(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """Each shard with its rows, which must be read to their end before the next shard is asked for."""
    source = _split_at_shards(batches)
    ahead = next(source, None)

    def rows_of(shard: int) -> Iterator[pa.Table]:
        nonlocal ahead
        while ahead is not None and ahead[0] == shard:
            table, ahead = ahead[1], None
            yield table
            ahead = next(source, None)

    while ahead is not None:
        shard = ahead[0]
        yield shard, rows_of(shard)


def _split_at_shards(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    for batch in batches:
        if not batch.num_rows:
            continue
        shards = batch.column("shard").to_numpy(zero_copy_only=False)
        starts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(shards)], strict=True):
            yield int(shards[start]), pa.Table.from_batches([batch.slice(start, end - start)])


def read_pins(
    lake: Lake, manifest: Manifest, columns: Sequence[str] | None = None, splits: Sequence[str] = MEASURED_SPLITS
) -> pa.Table:
    """The pins of some splits, all at once: for splits that are measured, which are small by nature, or few columns."""
    wanted = None if columns is None else list(columns)
    pieces = [PINS_SCHEMA.empty_table() if wanted is None else PINS_SCHEMA.empty_table().select(wanted)]
    for file in files_of(manifest, "pins"):
        filesystem, path = storage.filesystem_of(f"{set_uri(lake, manifest.set_id)}/{file.path}")
        kept = pc.field("split").isin(list(splits))
        pieces.append(pq.read_table(path, filesystem=filesystem, columns=wanted, filters=kept, partitioning=None))
    return pa.concat_tables(pieces)


def stream_bags(lake: Lake, manifest: Manifest, shards: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    """The training bags (BAGS_SCHEMA), a row group at a time, in their order at rest; of all files or of those numbered."""
    files = files_of(manifest, "train")
    for number in range(len(files)) if shards is None else shards:
        filesystem, path = storage.filesystem_of(f"{set_uri(lake, manifest.set_id)}/{files[number].path}")
        with pq.ParquetFile(path, filesystem=filesystem) as parquet:
            yield from parquet.iter_batches(batch_size=ROWS_A_GROUP["train"])


def files_of(manifest: Manifest, kind: str) -> list[SetFile]:
    """The files of `pins` or `train`, in order."""
    return sorted((file for file in manifest.files if file.path.startswith(f"{kind}/")), key=lambda file: file.path)


def verify_files(lake: Lake, manifest: Manifest) -> list[str]:
    """Sentences for each file that is missing or differs from the manifest; empty where all is well."""
    root, faults = set_uri(lake, manifest.set_id), []
    for file in manifest.files:
        if not storage.exists(f"{root}/{file.path}"):
            faults.append(f"{file.path} is missing")
        elif (found := file_sha256(f"{root}/{file.path}")) != file.sha256:
            faults.append(f"{file.path} is damaged: SHA-256 {found[:12]}…, the manifest says {file.sha256[:12]}…")
    return faults


# -- leaks ------------------------------------------------------------------------------------------------------------------


def leaks(pins: pa.Table) -> list[str]:
    """A sentence for each creator, board, duplicate group, or equal picture and text in two of train, validation and test.

    Takes PINS_SCHEMA, at least its columns user_id, board_id, board_ids, duplicate_group, split, picture and text.
    """
    pins = pins.filter(pc.is_in(pins["split"], pa.array(MEASURED_SPLITS))).combine_chunks()
    split = pins["split"]
    listed = pins["board_ids"].combine_chunks()
    listed_split = split.take(pc.list_parent_indices(listed))
    boards = pa.chunked_array([*pins["board_id"].chunks, listed.flatten()], pa.int64())
    board_splits = pa.chunked_array([*split.chunks, *listed_split.chunks], pa.string())
    sha = [None if p is None else hashlib.sha256(p).hexdigest()[:12] for p in pins["picture"].to_pylist()]
    contents = [
        f"{picture or 'none'} with text {text!r}" if picture or text else None
        for picture, text in zip(sha, pins["text"].to_pylist(), strict=True)
    ]
    return [
        *_in_two_splits("creator", pins["user_id"], split),
        *_in_two_splits("board", boards, board_splits),
        *_in_two_splits("duplicate group", pins["duplicate_group"], split),
        *_in_two_splits("picture", pa.array(contents, pa.string()), split),
    ]


def _in_two_splits(what: str, ids: pa.Array | pa.ChunkedArray, splits: pa.ChunkedArray) -> list[str]:
    table = pa.table({"id": ids, "split": splits}).filter(pc.is_valid(ids))
    found = table.group_by("id").aggregate([("split", "distinct")]).sort_by("id")
    return [
        f"{what} {row['id']} is in {' and '.join(sorted(row['split_distinct']))}"
        for row in found.to_pylist()
        if len(row["split_distinct"]) > 1
    ]


def runs_of(batches: Iterable[pa.RecordBatch], key: Sequence[str], most: int) -> Iterator[tuple[pa.Table, int]]:
    """The runs of rows of equal `key`, with their number (0, 1, ...) within a run longer than `most` rows."""
    held: pa.Table | None = None
    part = 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = table if held is None else pa.concat_tables([held, table])
        if not table.num_rows:
            continue
        columns = [table[name].to_numpy() for name in key]
        changes = np.flatnonzero(np.any([column[1:] != column[:-1] for column in columns], axis=0)) + 1
        starts = [0, *changes.tolist()]
        for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True):
            while end - start > most:
                yield table.slice(start, most), part
                start, part = start + most, part + 1
            if end < table.num_rows:
                yield table.slice(start, end - start), part
                part = 0
        held = table.slice(start)
    if held is not None and held.num_rows:
        yield held, part
