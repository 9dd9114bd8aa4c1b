"""The examples that a projector is trained and judged on: their form, and the files that hold them.

    training/conversations/<id>/part-00000.parquet   CONVERSATIONS, every split
    training/conversations/<id>/manifest.json        what they are made of, with each file's SHA-256; written last

An example is a question about pins, and one answer or several of which one is right. Its pins are given by their vectors, and
by their titles only where the question says so: what is judged can't be read off.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding.index.recall import Floats
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake

FORMAT = 1
MANIFEST = "manifest.json"

WORD, TITLE, DESCRIPTION, TAGS = "word", "title", "description", "tags"
"""Stage 1: what a single word is called (words.py); what a pin is called, what is said of it, how it is tagged."""
TAG, SAME_BOARD, FITS, ANSWER, TOOL = "tag", "same_board", "fits", "answer", "tool"
"""Stage 2: which one of some tags; whether two pins are on one board; whether a pin fits a request; a request over several
pins, answered as the assistant does; and which tool a request needs, with no pin at all."""

KINDS = (WORD, TITLE, DESCRIPTION, TAGS, TAG, SAME_BOARD, FITS, ANSWER, TOOL)

SHOWN_PIN = pa.struct(
    [
        pa.field("pin_id", pa.int64(), nullable=False),
        pa.field("vector", pa.binary(), nullable=False),  # float32, L2-normalised
        pa.field("title", pa.string(), nullable=False),  # "" where the question does not tell it
    ]
)
CONVERSATIONS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("about", pa.int64(), nullable=False),  # the pin that it was made for: what intervals are drawn over
        pa.field("alone", pa.bool_(), nullable=False),  # vectors of the pictures alone, without the pins' texts
        pa.field("pins", pa.list_(SHOWN_PIN), nullable=False),
        pa.field("words", pa.string(), nullable=False),  # the request; "" for none
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("right", pa.int32(), nullable=False),  # which of the choices
        pa.field("place", pa.int64(), nullable=False),  # a pseudo-random number: their order at rest
    ]
)


class ConversationsError(Exception):
    """Examples that cannot be made or read; the message says why, and what to do."""


@dataclass(frozen=True)
class Example:
    """A row of CONVERSATIONS. pins: their ids; vectors_ND: their vectors, L2-normalised; (0, 0) for none."""

    kind: str
    about: int
    alone: bool
    pins: tuple[int, ...]
    vectors_ND: Floats  # noqa: N815
    titles: tuple[str, ...]
    words: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class ConversationsManifest:
    """What a folder of examples is. counts: by split and kind."""

    conversations_id: str
    embedding_version: str
    training_set: str
    seed: int
    counts: dict[str, dict[str, int]]
    files: dict[str, str]
    built_by: str
    format: int = FORMAT


def conversations_uri(lake: Lake, conversations_id: str) -> str:
    return f"{lake.home}/training/conversations/{conversations_id}"


def write_manifest(lake: Lake, manifest: ConversationsManifest) -> None:
    uri = f"{conversations_uri(lake, manifest.conversations_id)}/{MANIFEST}"
    storage.write_atomic(uri, (json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n").encode())


def read_manifest(lake: Lake, conversations_id: str) -> ConversationsManifest:
    """Raises ConversationsError where the folder is not there, of another format, or a file is missing or damaged."""
    root = conversations_uri(lake, conversations_id)
    try:
        said: dict[str, Any] = json.loads(storage.read_bytes(f"{root}/{MANIFEST}"))
        if said["format"] != FORMAT:
            raise ConversationsError(f"{root} is of format {said['format']}, this reader knows {FORMAT}: build it again")
        manifest = ConversationsManifest(**said)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ConversationsError(f"no finished examples in {root} ({error}): run build_conversations.py") from None
    for name, sha256 in manifest.files.items():
        if not storage.exists(f"{root}/{name}") or file_sha256(f"{root}/{name}") != sha256:
            raise ConversationsError(f"{root}/{name} is missing or damaged: build the examples again")
    return manifest


def read_examples(lake: Lake, manifest: ConversationsManifest, split: str, kinds: Sequence[str]) -> list[Example]:
    """The examples of a split, of some kinds, in their order at rest."""
    wanted = (pc.field("split") == split) & pc.field("kind").isin(list(kinds))
    pieces = []
    for name in sorted(manifest.files):
        filesystem, path = storage.filesystem_of(f"{conversations_uri(lake, manifest.conversations_id)}/{name}")
        pieces.append(pq.read_table(path, filesystem=filesystem, filters=wanted, partitioning=None))
    return list(examples_of(pa.concat_tables(pieces).sort_by("place")))


def examples_of(table: pa.Table) -> Iterable[Example]:
    for row in table.to_pylist():
        vectors = [np.frombuffer(pin["vector"], np.float32) for pin in row["pins"]]
        yield Example(
            kind=row["kind"],
            about=row["about"],
            alone=row["alone"],
            pins=tuple(pin["pin_id"] for pin in row["pins"]),
            vectors_ND=np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
            titles=tuple(pin["title"] for pin in row["pins"]),
            words=row["words"],
            choices=tuple(row["choices"]),
            right=row["right"],
        )


WRITTEN_FILES = pa.schema([("name", pa.string()), ("sha256", pa.string()), ("split", pa.string()), ("counts", pa.string())])
"""A file as an executor reports it; counts: by kind, as JSON."""


def write_part(table: pa.Table, root: str, name: str) -> pa.Table:
    """Writes a file of examples of one split, which appears whole; its row of WRITTEN_FILES."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.select(CONVERSATIONS.names).cast(CONVERSATIONS), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    storage.write_atomic(f"{root}/{name}", data)
    counts = json.dumps(Counter(table["kind"].to_pylist()))
    row = {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "split": table["split"][0].as_py(), "counts": counts}
    return pa.Table.from_pylist([row], schema=WRITTEN_FILES)
