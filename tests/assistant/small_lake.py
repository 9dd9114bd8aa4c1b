"""A lake with one live release of a few pins, by the shipped encoder, and one user with interests; made without Spark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.contracts import USER_INTERESTS
from embedding.encoder.cache import shared_encoder
from embedding.encoder.config import embedding_version, load_config
from embedding.index.recall import Floats, Ids
from embedding.index.release import LivePointer
from embedding.tables.lake import Lake, partition_version, replace_partition
from embedding.tables.staging import Stager
from tests.small_release import build_release, point_at

ENCODER = "pinclip-base"
USER, FIRST_PIN = 77, 4_000_000_000_000_000_000


@dataclass(frozen=True)
class Pin:
    """A pin of the lake: what its vector is made of unless `reads` says something else, and what describes it."""

    title: str
    tags: tuple[str, ...] = ()
    board: int = 1
    reads: str | None = None
    image_uri: str | None = None


THINGS = ("bicycle", "teapot", "owl", "castle", "violin", "tulip", "lighthouse", "penguin", "ladder", "pumpkin")
COLOURS = ("red", "blue", "green", "yellow")
PINS = tuple(Pin(f"{colour} {thing}", (thing, colour), THINGS.index(thing) + 1) for thing in THINGS for colour in COLOURS)


def version() -> str:
    return str(embedding_version(load_config(ENCODER)))


def encoded(texts: Sequence[str]) -> Floats:
    vectors: Floats = shared_encoder(load_config(ENCODER)).encode_texts(texts)
    return vectors


def pin_ids(pins: Sequence[Pin]) -> Ids:
    return FIRST_PIN + np.arange(len(pins), dtype=np.int64)


def add_release(lake: Lake, release_id: str, pins: Sequence[Pin], *, live: bool = True) -> Ids:
    """A release of the pins; their ids."""
    ids = pin_ids(pins)
    described: dict[str, list[Any]] = {
        "title": [pin.title for pin in pins],
        "tags": [list(pin.tags) for pin in pins],
        "board_id": [pin.board for pin in pins],
        "image_uri": [pin.image_uri for pin in pins],
    }
    vectors = encoded([pin.reads or f"{pin.title}. {', '.join(pin.tags)}" for pin in pins])
    build_release(
        lake, release_id, vectors, ids, embedding_version=version(), encoder=ENCODER, pins=described, factory="Flat", goal=0.0
    )
    if live:
        point_at(lake, LivePointer(release_id, embedding_version=version()))
    return ids


def add_interests(lake: Lake, labels: Sequence[tuple[str, float]]) -> None:
    """The interests of USER: label and importance; each looks like its label reads."""
    rows = [
        {
            "user_id": USER,
            "cluster": cluster,
            "revision": 0,
            "medoid_pin": FIRST_PIN,
            "embedding": vector.tolist(),
            "importance": importance,
            "size": 1,
            "label": label,
            "pins": [FIRST_PIN],
            "saved_at": [datetime(2026, 11, 1, tzinfo=UTC)],
            "history_hash": 1,
            "run_id": "test",
        }
        for cluster, ((label, importance), vector) in enumerate(
            zip(labels, encoded([label for label, _ in labels]), strict=True)
        )
    ]
    partition = {"embedding_version": version(), "ds": "2026-11-18"}
    seen = partition_version(lake.open(USER_INTERESTS), partition)
    with Stager(lake.table_uri(USER_INTERESTS), USER_INTERESTS, partition) as stager:
        stager.add(pa.Table.from_pylist(rows, USER_INTERESTS.file_schema))
        stager.flush()
        replace_partition(lake, USER_INTERESTS, partition, stager.files, expected_version=seen, run_id="test")
