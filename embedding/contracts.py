"""What every part of pinlake agrees on: column names, table schemas, rejection reasons, content hashes.

Standard library and pyarrow only, so that DAG files, Spark executors and services can import it at no cost. Nothing here
reads or writes anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

import pyarrow as pa

EMBEDDING_DIM = 256

# `(?!\n)`: for Python `$` is also before a last line break, for JSON Schema it is not. `[0-9]`: `\d` is any script's digit.
DS_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$(?!\n)"
"""A day of data, as in an export's folder name. JSON-schema pattern for Airflow Params."""

FILE_OR_NAME_PATTERN = r"^(?!-)(?!.*://)[^\x00-\x1f\x7f]{1,500}$(?!\n)"
"""What names an encoder's config or a recipe: a name, or a path of this machine. No option, no address, no line breaks."""

MAX_ID = 2**63 - 1
"""Ids are int64."""

MAX_TEXT_CHARS = 20_000
"""Longest title, description or list of tags that is taken for text. No encoder reads more than a few hundred tokens;
a longer field is a fault of the export, and is quarantined rather than cut."""

SUCCESS_MARKER = "_SUCCESS"

LIVE_POINTER = "releases/pins/LIVE"
"""Below the lake's home: names the live release and its `embedding_version`. Its change moves index and encoder at once
(docs/decisions/0005-one-pointer-moves-everything.md)."""

ENCODERS_FOLDER = "encoders"
"""Below the lake's home: a folder an embedding version that the lake knows."""

FRESH_MARKER, RETIRED_MARKER = "FRESH", "RETIRED"
"""Files in an encoder's folder: nights embed each day under it beside the live one; its vectors and releases are deleted."""

FORGOTTEN_SOURCE = hashlib.sha256(b"forgotten").hexdigest()
"""`source_sha256` of a row of `pins` that was an export's and is a deletion now: its content was taken out, or never landed."""

IMPLIED_SOURCE = hashlib.sha256(b"implied by the deletion of a user").hexdigest()
"""`source_sha256` of a deletion of a pin that no export had: its maker was deleted on that day."""


class Reason(StrEnum):
    """Why a row is in `quarantine`. The value is what the table holds."""

    # found while landing the export
    NULL_ID = "null_id"
    DUPLICATE_ID = "duplicate_id"
    INVALID_TEXT = "invalid_text"
    TEXT_TOO_LONG = "text_too_long"
    EMPTY_PIN = "empty_pin"
    # found while fetching the image
    UNSUPPORTED_SCHEME = "unsupported_scheme"
    INVALID_URI = "invalid_uri"
    FORBIDDEN_ADDRESS = "forbidden_address"
    MISSING_IMAGE = "missing_image"
    EMPTY_IMAGE = "empty_image"
    TOO_MANY_BYTES = "too_many_bytes"
    FETCH_FAILED = "fetch_failed"
    # found while decoding it
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECODE_FAILED = "decode_failed"
    # found after encoding
    INVALID_VECTOR = "invalid_vector"


EMBED_REASONS = frozenset(
    set(Reason) - {Reason.NULL_ID, Reason.DUPLICATE_ID, Reason.INVALID_TEXT, Reason.TEXT_TOO_LONG, Reason.EMPTY_PIN}
)
"""Reasons of pins that landed: their picture or the machine may be mended, and they be tried again. The other rows are at fault
themselves, and come back with a corrected export."""


class Stage(StrEnum):
    """Which step of the night put a row into `quarantine`."""

    LAND = "land"
    EMBED = "embed"


@dataclass(frozen=True)
class EmbeddingVersion:
    """The name of everything that decides a vector: weights, architecture, preprocessing, precision.

    Written `<encoder name>-<12 hex digits>`, the digits being a SHA-256 fingerprint. Two vectors may be compared only
    when their versions are equal.
    """

    encoder: str
    fingerprint: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", self.encoder) or not re.fullmatch(r"[0-9a-f]{12}", self.fingerprint):
            raise ValueError(f"not an embedding version: {self.encoder}-{self.fingerprint}")

    def __str__(self) -> str:
        return f"{self.encoder}-{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> EmbeddingVersion:
        encoder, _, fingerprint = text.rpartition("-")
        return cls(encoder, fingerprint)


@dataclass(frozen=True)
class TableContract:
    """One Delta table: its schema, partition columns, key, and what its columns mean.

    `constraints` are Delta CHECK constraints, by name. `meanings` has a sentence for every column; docs/tables.md is made
    from it.
    """

    name: str
    about: str
    schema: pa.Schema
    partition_by: tuple[str, ...]
    key: tuple[str, ...]
    meanings: dict[str, str]
    constraints: dict[str, str]

    def __post_init__(self) -> None:
        assert set(self.meanings) == set(self.schema.names), set(self.meanings) ^ set(self.schema.names)
        assert set(self.partition_by) | set(self.key) <= set(self.schema.names)

    @property
    def file_schema(self) -> pa.Schema:
        """The schema of a data file: the columns without those that the folder names carry."""
        return pa.schema([field for field in self.schema if field.name not in self.partition_by])


TIMESTAMP = pa.timestamp("us", tz="UTC")
_DAY_CHECK = {"ds_is_a_day": "ds LIKE '____-__-__'"}
_DS = "The data's day, YYYY-MM-DD (the export's, never the day of the run)."
_RUN_ID = "The run that wrote the row."
_EXPORT = "SHA-256 of the export's files that the row came from."

PINS = TableContract(
    name="pins",
    about="Every change of a pin, one row a pin and day on which the export had it. The latest day's row is the current state.",
    schema=pa.schema(
        [
            pa.field("pin_id", pa.int64(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("board_id", pa.int64()),
            pa.field("user_id", pa.int64()),
            pa.field("title", pa.string()),
            pa.field("description", pa.string()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("image_uri", pa.string()),
            pa.field("created_at", TIMESTAMP),
            pa.field("updated_at", TIMESTAMP),
            pa.field("deleted", pa.bool_(), nullable=False),
            pa.field("source_sha256", pa.string(), nullable=False),
            pa.field("export_sha256", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds",),
    key=("pin_id", "ds"),
    meanings={
        "pin_id": "The pin.",
        "ds": _DS,
        "board_id": "The board that the pin is on; null on a deletion.",
        "user_id": "The user who made the pin; null on a deletion.",
        "title": "Title, or null.",
        "description": "Description, or null.",
        "tags": "Tags in the platform's order, or null.",
        "image_uri": "Where the picture is: absolute, or null for a pin without one.",
        "created_at": "When the pin was made (UTC).",
        "updated_at": "When it was last changed (UTC).",
        "deleted": "True on the day the pin was deleted, or where its row was forgotten; such a row carries the id alone.",
        "source_sha256": (
            "SHA-256 of what the export says of the content: image URI, text, time of change; a fixed one in a row that was "
            "forgotten or that a user's deletion implies."
        ),
        "export_sha256": _EXPORT,
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

BOARDS = TableContract(
    name="boards",
    about="Every change of a board, one row a board and day.",
    schema=pa.schema(
        [
            pa.field("board_id", pa.int64(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("user_id", pa.int64()),
            pa.field("title", pa.string()),
            pa.field("created_at", TIMESTAMP),
            pa.field("deleted", pa.bool_(), nullable=False),
            pa.field("export_sha256", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds",),
    key=("board_id", "ds"),
    meanings={
        "board_id": "The board.",
        "ds": _DS,
        "user_id": "Its owner.",
        "title": "Its title, or null.",
        "created_at": "When it was made (UTC).",
        "deleted": "True on the day the board was deleted, or where its row was forgotten; such a row carries the id alone.",
        "export_sha256": _EXPORT,
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

SAVES = TableContract(
    name="saves",
    about="Who put which pin on which board, and when: the edges of the pin-board graph. A repin is a save of an existing pin.",
    schema=pa.schema(
        [
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("pin_id", pa.int64(), nullable=False),
            pa.field("board_id", pa.int64(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("saved_at", TIMESTAMP),
            pa.field("deleted", pa.bool_(), nullable=False),
            pa.field("export_sha256", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds",),
    key=("user_id", "pin_id", "board_id", "ds"),
    meanings={
        "user_id": "The user who saved.",
        "pin_id": "The pin saved.",
        "board_id": "The board it was saved to.",
        "ds": _DS,
        "saved_at": "When (UTC).",
        "deleted": "True on the day the save was taken back.",
        "export_sha256": _EXPORT,
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

USERS = TableContract(
    name="users",
    about=(
        "Who was deleted, and when: what a user had made and saved until the end of that day counts for nothing. Rows of later "
        "days count again. Nothing else is kept of a user, so most users have no row."
    ),
    schema=pa.schema(
        [
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("deleted", pa.bool_(), nullable=False),
            pa.field("export_sha256", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds",),
    key=("user_id", "ds"),
    meanings={
        "user_id": "The user.",
        "ds": _DS,
        "deleted": "True on the day the user was deleted; a row with false says that they are there, and changes nothing.",
        "export_sha256": _EXPORT,
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

PIN_EMBEDDINGS = TableContract(
    name="pin_embeddings",
    about=(
        "One vector a pin, day and encoder. A pin's current vector is the one of its latest day in `pins`. While a migration "
        "runs, and for a week after it, there are two encoders' vectors: `pinlake encoders` says which version is live."
    ),
    schema=pa.schema(
        [
            pa.field("pin_id", pa.int64(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("content_sha256", pa.string(), nullable=False),
            pa.field("source_sha256", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32()), nullable=False),
            pa.field("has_image", pa.bool_(), nullable=False),
            pa.field("has_text", pa.bool_(), nullable=False),
            pa.field("encoded_by", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("embedding_version", "ds"),
    key=("pin_id", "embedding_version", "ds"),
    meanings={
        "pin_id": "The pin.",
        "embedding_version": "The encoder that made the vector. Vectors of two versions must never be compared.",
        "ds": _DS,
        "content_sha256": "SHA-256 of the image's bytes and of the text that the encoder read: equal content, equal vector.",
        "source_sha256": "As in `pins`.",
        "embedding": f"{EMBEDDING_DIM} float32 values, L2-normalised: an inner product is a cosine.",
        "has_image": "Whether a picture went into the vector.",
        "has_text": "Whether text went into it.",
        "encoded_by": "The run that computed the vector; another one than `run_id` where it was reused.",
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

QUARANTINE = TableContract(
    name="quarantine",
    about="Every row of an export that got no further, with the reason. Landed pins = embedded + quarantined, on every day.",
    schema=pa.schema(
        [
            pa.field("ds", pa.string(), nullable=False),
            pa.field("stage", pa.string(), nullable=False),
            pa.field("entity", pa.string(), nullable=False),
            pa.field("pin_id", pa.int64()),
            pa.field("embedding_version", pa.string()),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("detail", pa.string()),
            pa.field("image_uri", pa.string()),
            pa.field("content_sha256", pa.string()),
            pa.field("source_sha256", pa.string()),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds", "stage", "embedding_version"),
    key=(),
    meanings={
        "ds": _DS,
        "stage": "`land` (the row itself was unusable) or `embed` (its picture or its vector was).",
        "entity": "`pin`, `board`, `save` or `user`.",
        "pin_id": "The pin, where the row had one.",
        "embedding_version": "The encoder that could not read it; null for `land`.",
        "reason": "One of: " + ", ".join(f"`{reason}`" for reason in Reason) + ".",
        "detail": "The error's text, or the offending value, cut to 500 characters.",
        "image_uri": "The picture's address, where the row had one; of stage `land` for some days only.",
        "content_sha256": "As in `pin_embeddings`, where the bytes could be read.",
        "source_sha256": "As in `pins`, where the row had one.",
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK | {"stage_is_known": "stage = 'land' OR stage = 'embed'"},
)

_COUNTS = {
    "landed": "Rows of pins in the export that were no deletions; in a migration's row those that are their pin's latest.",
    "new": "Of the usable ones: pins not alive before this day; 0 in a migration's row.",
    "changed": "Of the usable ones: pins alive before this day; 0 in a migration's row.",
    "deleted": "Deletions, with those that a user's deletion implies; 0 in a migration's row.",
    "embedded": "Pins with a vector.",
    "encoded": "Contents that went through the encoder in this run.",
    "reused": "Pins whose vector was already known: `embedded - encoded`.",
    "quarantined": "Rows of pins in `quarantine`: `landed - embedded`.",
}
_SECONDS = {
    "land_s": "Seconds of the landing job; null in a migration's row.",
    "embed_s": "Seconds of the embedding job.",
    "encode_s": "Seconds of its encoding stage alone; null where nothing was encoded.",
}

NIGHTS = TableContract(
    name="nights",
    about=(
        "One row a night and encoder: what it counted, how long it took, what it found wrong. A migration to another encoder "
        "writes a row a day as well; it counts only the pins whose latest row is of that day, and has no `land_s`."
    ),
    schema=pa.schema(
        [
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("failures", pa.list_(pa.string())),
            *[pa.field(name, pa.int64(), nullable=False) for name in _COUNTS],
            pa.field("coverage", pa.float64()),
            pa.field("images_per_s", pa.float64()),
            *[pa.field(name, pa.float64()) for name in _SECONDS],
            pa.field("pins_version", pa.int64(), nullable=False),
            pa.field("pin_embeddings_version", pa.int64(), nullable=False),
            pa.field("checked_at", TIMESTAMP, nullable=False),
        ]
    ),
    partition_by=(),
    key=("run_id", "ds", "embedding_version"),
    meanings={
        "run_id": "The run.",
        "ds": _DS,
        "embedding_version": "The encoder.",
        "status": "`passed` or `failed`: an encoder's releases are built from the days whose latest row under it passed.",
        "failures": "What the gate found, a sentence each; empty where it passed.",
        **_COUNTS,
        "coverage": "`embedded / landed`; null on a day without pins.",
        "images_per_s": "`encoded / encode_s`.",
        **_SECONDS,
        "pins_version": "Version of the Delta table `pins` that was checked.",
        "pin_embeddings_version": "Version of the Delta table `pin_embeddings` that was checked.",
        "checked_at": "When (UTC).",
    },
    constraints=_DAY_CHECK | {"nothing_lost": "status = 'failed' OR landed = embedded + quarantined"},
)

_RELEASE_FILE = pa.struct([("name", pa.string()), ("size_bytes", pa.int64()), ("sha256", pa.string())])

RELEASES = TableContract(
    name="releases",
    about=(
        "One row an index release that was checked, live or not: its figures, and what it was made of. Releases of a version "
        "that is retired are deleted; their rows stay."
    ),
    schema=pa.schema(
        [
            pa.field("release_id", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("failures", pa.list_(pa.string())),
            pa.field("rows", pa.int64(), nullable=False),
            pa.field("factory", pa.string(), nullable=False),
            pa.field("setting", pa.string(), nullable=False),
            pa.field("recall_goal", pa.float64()),
            pa.field("recall_at_10", pa.float64(), nullable=False),
            pa.field("recall_low", pa.float64()),
            pa.field("recall_high", pa.float64()),
            pa.field("overlap_at_10", pa.float64()),
            pa.field("qps", pa.float64()),
            pa.field("p50_ms", pa.float64()),
            pa.field("p99_ms", pa.float64()),
            pa.field("bytes_a_vector", pa.float64(), nullable=False),
            pa.field("size_bytes", pa.int64(), nullable=False),
            pa.field("files", pa.list_(_RELEASE_FILE)),
            pa.field("pins_version", pa.int64(), nullable=False),
            pa.field("pin_embeddings_version", pa.int64(), nullable=False),
            pa.field("built_by", pa.string(), nullable=False),
            pa.field("built_at", TIMESTAMP, nullable=False),
            pa.field("checked_at", TIMESTAMP, nullable=False),
            pa.field("published_by", pa.string()),
            pa.field("published_at", TIMESTAMP),
        ]
    ),
    partition_by=(),
    key=("release_id",),
    meanings={
        "release_id": "The release: its folder under `releases/pins`.",
        "ds": "The last day whose pins it holds.",
        "embedding_version": "The encoder of its vectors.",
        "status": "`passed` or `failed`: the verdict of its latest check.",
        "failures": "What the check found, a sentence each; empty where it passed.",
        "rows": "Pins.",
        "factory": "The recipe of its index, in FAISS's language.",
        "setting": "How it is searched: the fastest setting that reached the goal.",
        "recall_goal": "The recall@10 that it was tuned for.",
        "recall_at_10": "What the check found, against exact search.",
        "recall_low": "Lower end of its 95% interval over the queries.",
        "recall_high": "Upper end.",
        "overlap_at_10": "Share of neighbours in common with the release that was live when it was checked; null without one.",
        "qps": "Queries a second of a batch, as the build measured them.",
        "p50_ms": "Median milliseconds of a single query on one thread, as the check measured them.",
        "p99_ms": "Their 99th percentile.",
        "bytes_a_vector": "Of index and pin id.",
        "size_bytes": "Of all its files.",
        "files": "Name, size and SHA-256 of each.",
        "pins_version": "Version of the Delta table `pins` that it was built from.",
        "pin_embeddings_version": "Version of the Delta table `pin_embeddings` that it was built from.",
        "built_by": "The run that built it.",
        "built_at": "When (UTC).",
        "checked_at": "When it was last checked (UTC).",
        "published_by": "The run that last made it live; null where none did. A rollback is no run.",
        "published_at": "When (UTC).",
    },
    constraints=_DAY_CHECK | {"status_is_known": "status = 'passed' OR status = 'failed'"},
)

RELATED_PINS = TableContract(
    name="related_pins",
    about=(
        "What random walks over the pin-board graph pass most often from a pin: one row a pin and day on which its boards "
        "changed. The latest day's row is the current one; of a pin that left the graph it is empty."
    ),
    schema=pa.schema(
        [
            pa.field("pin_id", pa.int64(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("related", pa.list_(pa.int64()), nullable=False),
            pa.field("scores", pa.list_(pa.float32()), nullable=False),
            pa.field("graph_id", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds",),
    key=("pin_id", "ds"),
    meanings={
        "pin_id": "The pin.",
        "ds": "The last day of saves that the graph has, YYYY-MM-DD.",
        "related": "Pins, most related first, the pin itself not among them.",
        "scores": "Of each of them the share of the walks' steps that ended there.",
        "graph_id": "The graph that was walked: its folder under `graphs`.",
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

USER_INTERESTS = TableContract(
    name="user_interests",
    about=(
        "What a user saves, as clusters of pins: one row an interest, on the days on which the user's history had changed. "
        "Of a user's latest day under an encoder the rows of the greatest revision are the current ones; who has no save left "
        "has one row there, of size 0."
    ),
    schema=pa.schema(
        [
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("cluster", pa.int64(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("revision", pa.int64(), nullable=False),
            pa.field("medoid_pin", pa.int64()),
            pa.field("embedding", pa.list_(pa.float32())),
            pa.field("importance", pa.float64(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("pins", pa.list_(pa.int64())),
            pa.field("saved_at", pa.list_(TIMESTAMP)),
            pa.field("history_hash", pa.int64(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("embedding_version", "ds"),
    key=("user_id", "cluster", "embedding_version", "ds", "revision"),
    meanings={
        "user_id": "The user.",
        "cluster": "The interest's number among the user's, kept from day to day while its medoid stays near; -1 for none.",
        "embedding_version": "The encoder whose vectors were clustered.",
        "ds": _DS,
        "revision": "0 of a night's rows; greater, and growing, of rows written within the day, until its night replaces them.",
        "medoid_pin": "The pin of the interest that is nearest to its others; null for none.",
        "embedding": "The medoid's vector: a query for more of the kind.",
        "importance": (
            "Sum over its pins of exp(-0.01 * days from the save to the end of `ds`); a user's rows are of one day, "
            "so that they compare."
        ),
        "size": "Pins in it, of the user's 500 latest saves.",
        "label": "The tags of its pins that say most, or null.",
        "pins": "The pins in it, saved last first; null for none.",
        "saved_at": "When each of them was saved last (UTC), to the minute; null for none.",
        "history_hash": "xxHash64 of the history that was clustered: while it is the same, the user is not clustered again.",
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

BOARD_EMBEDDINGS = TableContract(
    name="board_embeddings",
    about=(
        "What a board is about, as one vector: one row a board and day on which its pins had changed. The row of a board's "
        "latest day under an encoder is the current one; a board that is deleted, or has no pin left, has one of size 0 there."
    ),
    schema=pa.schema(
        [
            pa.field("board_id", pa.int64(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32())),
            pa.field("medoid_pin", pa.int64()),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("cohesion", pa.float32()),
            pa.field("label", pa.string()),
            pa.field("history_hash", pa.int64(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("embedding_version", "ds"),
    key=("board_id", "embedding_version", "ds"),
    meanings={
        "board_id": "The board.",
        "embedding_version": "The encoder whose vectors were averaged.",
        "ds": _DS,
        "embedding": f"Mean of its pins' vectors, {EMBEDDING_DIM} float32 values, L2-normalised; null for none.",
        "medoid_pin": "The pin that is nearest to that mean: its cover; null for none.",
        "size": "Pins on it, of its 500 latest.",
        "cohesion": "Length of the mean before it was normalised: 1 where all its pins are alike, near 0 without any likeness.",
        "label": "The tags of its pins that say most, or null.",
        "history_hash": "xxHash64 of the pins that were averaged: while it is the same, the board is left alone.",
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

USER_EMBEDDINGS = TableContract(
    name="user_embeddings",
    about=(
        "A user as one vector that foresees what they save next: one row a user, on the days on which the user's history or "
        "the model had changed. The row of a user's latest day under an encoder is the current one."
    ),
    schema=pa.schema(
        [
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("user_model", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32())),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("history_hash", pa.int64(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("embedding_version", "ds"),
    key=("user_id", "embedding_version", "ds"),
    meanings={
        "user_id": "The user.",
        "embedding_version": "The encoder in whose space the vector lies: its product with a pin's vector is the score.",
        "ds": _DS,
        "user_model": "The model that made it: its folder under `user_models/<embedding_version>`.",
        "embedding": "L2-normalised float32; null for a user who has no save left.",
        "size": "Saves that were read, of the user's 128 latest; 0 where none is left.",
        "history_hash": "As in `user_interests`: while it and the live model are the same, the user is not read again.",
        "run_id": _RUN_ID,
    },
    constraints=_DAY_CHECK,
)

_BRAINS_FIGURES = {
    "brain": "The {} brain's name.",
    "first_token_ms": "{} brain: milliseconds to its first word; null where it said nothing.",
    "total_ms": "{} brain: milliseconds to the end of its answer.",
    "prompt_tokens": "{} brain: tokens that it read, cached ones among them.",
    "cached_tokens": "{} brain: those that it need not compute anew.",
    "thinking_tokens": "{} brain: tokens thought before the answer.",
    "answer_tokens": "{} brain: tokens of the answer.",
    "cost": "{} brain: what these tokens cost at the prices that the service was given; null without prices.",
    "cited": "{} brain: pins that its answer names.",
    "removed": "{} brain: citations of what was not retrieved, taken out of its answer.",
}


def _brain_fields(which: str) -> list[pa.Field]:
    whole = ("prompt_tokens", "cached_tokens", "thinking_tokens", "answer_tokens", "cited", "removed")
    types = {"brain": pa.string()} | dict.fromkeys(whole, pa.int64())
    return [pa.field(f"{which}_{name}", types.get(name, pa.float64())) for name in _BRAINS_FIGURES]


SHADOW_TURNS = TableContract(
    name="shadow_turns",
    about=(
        "Turns of the assistant that two brains answered over the same pins: the one that the user saw, and a shadow that "
        "nobody saw. One row a turn of the share that was chosen; written by the assistant's service. Nothing in it says who "
        "asked, what was asked, or what was answered."
    ),
    schema=pa.schema(
        [
            pa.field("turn_id", pa.string(), nullable=False),
            pa.field("ds", pa.string(), nullable=False),
            pa.field("asked_at", TIMESTAMP, nullable=False),
            pa.field("mode", pa.string(), nullable=False),
            pa.field("release_id", pa.string(), nullable=False),
            pa.field("embedding_version", pa.string(), nullable=False),
            pa.field("candidates", pa.int64(), nullable=False),
            pa.field("tool", pa.string(), nullable=False),
            pa.field("same_tool", pa.bool_()),
            pa.field("cited_jaccard", pa.float64()),
            pa.field("answers_cosine", pa.float64()),
            *_brain_fields("served"),
            *_brain_fields("shadow"),
            pa.field("shadow_decide_ms", pa.float64()),
            pa.field("shadow_error", pa.string()),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    ),
    partition_by=("ds",),
    key=("turn_id",),
    meanings={
        "turn_id": "The request's id, drawn at random.",
        "ds": "The day on which it was asked (UTC), YYYY-MM-DD.",
        "asked_at": "When (UTC).",
        "mode": "`quick` or `thinking`.",
        "release_id": "The index release that was searched.",
        "embedding_version": "The encoder of its vectors.",
        "candidates": "Pins that were found, and given to both.",
        "tool": "The retrieval tool that was asked.",
        "same_tool": "Whether the shadow would have asked the same one; null where a picture or a pin chose it.",
        "cited_jaccard": "Pins that both answers name, by pins that either names; 1 if neither names any; null for no answer.",
        "answers_cosine": "Cosine of the two answers as the release's encoder reads them; null where one is empty.",
        **{f"served_{name}": said.format("Served") for name, said in _BRAINS_FIGURES.items()},
        **{f"shadow_{name}": said.format("Shadow") for name, said in _BRAINS_FIGURES.items()},
        "served_first_token_ms": "Milliseconds from the request to the first word that the user saw, retrieval among them.",
        "served_total_ms": "Milliseconds from the request to the end of the answer.",
        "shadow_decide_ms": "Shadow brain: milliseconds to its choice of a tool, left out of its other times; null without.",
        "shadow_error": "Why the shadow has no answer, in a sentence; null where it has one.",
        "run_id": "The process of the service that wrote the row.",
    },
    constraints=_DAY_CHECK | {"mode_is_known": "mode = 'quick' OR mode = 'thinking'"},
)

TABLES: dict[str, TableContract] = {
    t.name: t
    for t in (
        PINS,
        BOARDS,
        SAVES,
        USERS,
        PIN_EMBEDDINGS,
        QUARANTINE,
        NIGHTS,
        RELEASES,
        RELATED_PINS,
        USER_INTERESTS,
        BOARD_EMBEDDINGS,
        USER_EMBEDDINGS,
        SHADOW_TURNS,
    )
}

EXPORT_SCHEMAS: dict[str, pa.Schema] = {
    "pins": pa.schema(
        [
            pa.field("pin_id", pa.int64(), nullable=False),
            pa.field("board_id", pa.int64(), nullable=False),
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("image_uri", pa.string()),
            pa.field("title", pa.string()),
            pa.field("description", pa.string()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("created_at", TIMESTAMP),
            pa.field("updated_at", TIMESTAMP),
            pa.field("deleted", pa.bool_()),
        ]
    ),
    "boards": pa.schema(
        [
            pa.field("board_id", pa.int64(), nullable=False),
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("title", pa.string()),
            pa.field("created_at", TIMESTAMP),
            pa.field("deleted", pa.bool_()),
        ]
    ),
    "saves": pa.schema(
        [
            pa.field("user_id", pa.int64(), nullable=False),
            pa.field("pin_id", pa.int64(), nullable=False),
            pa.field("board_id", pa.int64(), nullable=False),
            pa.field("saved_at", TIMESTAMP),
            pa.field("deleted", pa.bool_()),
        ]
    ),
    "users": pa.schema([pa.field("user_id", pa.int64(), nullable=False), pa.field("deleted", pa.bool_())]),
}
"""A day's export: folders `pins`, `boards`, `saves` and `users` of Parquet. The ids are required (`nullable=False`), and so is
`image_uri` as a column; a missing other column reads as null, `deleted` as false. Columns not named here are ignored."""

REQUIRED_EXPORT_COLUMNS: dict[str, tuple[str, ...]] = {
    "pins": ("pin_id", "board_id", "user_id", "image_uri"),
    "boards": ("board_id", "user_id"),
    "saves": ("user_id", "pin_id", "board_id"),
    "users": ("user_id", "deleted"),
}


def parse_ds(text: str) -> str:
    """Returns `text` if it is a day written YYYY-MM-DD; raises ValueError with a sentence for people if not."""
    try:
        if not re.fullmatch(DS_PATTERN, text):
            raise ValueError
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"not a day: {text!r} (a day is written YYYY-MM-DD, for example 2026-11-18)") from None


def export_day_folder(exports_uri: str, ds: str) -> str:
    """Where the export of day `ds` lies: `<exports_uri>/ds=<ds>`."""
    return f"{exports_uri.rstrip('/')}/ds={parse_ds(ds)}"


def pin_text(title: str | None, description: str | None, tags: Sequence[str | None] | None) -> str:
    """The text that the encoder reads of a pin: title, description and tags as sentences; empty where there is none.

    White space is folded, so that a change of it alone encodes nothing. Part of the content hash: a change of this
    function is a change of every pin's content.

    >>> pin_text("Red  bicycle ", None, ["bike", "transport"])
    'Red bicycle. bike, transport'
    """
    joined_tags = ", ".join(tag for tag in (tags or ()) if tag)
    parts = (" ".join(part.split()) for part in (title or "", description or "", joined_tags))
    return ". ".join(part for part in parts if part)


def content_sha256(image_sha256: bytes | None, text: str) -> str:
    """The content hash: SHA-256 over the image's own SHA-256 (32 bytes, absent for a pin without one) and the UTF-8 text.

    A marker byte keeps "no image, text t" apart from every "image, text".
    """
    image_part = b"\x00" if image_sha256 is None else b"\x01" + image_sha256
    return hashlib.sha256(image_part + text.encode("utf-8")).hexdigest()
