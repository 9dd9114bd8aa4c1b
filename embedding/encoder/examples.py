"""The stream of training examples: batches of pins, each with a neighbour from its board and hard negatives.

Read shard by shard from a training set; nothing larger than a buffer of bags is held. A stream depends on the set, the seed,
the process's rank and nothing else, so that a training which was killed goes on with the very batches that it would have had.

Shape suffixes: N examples of a batch, H hard negatives an example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from embedding.encoder.training_set import Manifest, TrainingSetError, files_of, set_uri
from embedding.tables import storage
from embedding.tables.lake import Lake

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BUFFERED_BAGS = 128
"""Bags that are mixed with each other before they are cut into batches; the shards' own order is random already."""

_LIGHT = [
    "board_id",
    *(f"{part}.list.element.{name}" for part in ("pins", "negatives") for name in ("pin_id", "duplicate_group")),
]
_LIGHT += ["pins.list.element.weight", "pins.list.element.text"]


@dataclass(frozen=True)
class Contents:
    """Pictures (encoded, or None) and texts of some pins, for towers that are trained."""

    pictures: list[bytes | None]
    texts: list[str]


@dataclass(frozen=True)
class Batch:
    """N examples. A pin without a neighbour on its board has itself in the neighbour's place, and is marked so.

    anchor_N, positive_N: pin ids. board_N and the groups say which examples are no negatives of each other, as does text_N, a
    hash of the anchor's text. negative_NH are pin ids, 0 where has_negative_NH is False.
    contents: of anchors, then positives; None where only ids were asked for.
    """

    anchor_N: Ints  # noqa: N815
    positive_N: Ints  # noqa: N815
    has_positive_N: Flags  # noqa: N815
    board_N: Ints  # noqa: N815
    anchor_group_N: Ints  # noqa: N815
    positive_group_N: Ints  # noqa: N815
    text_N: Ints  # noqa: N815
    negative_NH: Ints  # noqa: N815
    has_negative_NH: Flags  # noqa: N815
    contents: Contents | None


class ExampleStream:
    """Batches without end: epoch after epoch over this process's shards, in an order of its own each time."""

    def __init__(
        self,
        lake: Lake,
        manifest: Manifest,
        *,
        batch_size: int,
        seed: int,
        hard_negatives: int = 1,
        rank: int = 0,
        world_size: int = 1,
        with_contents: bool = False,
    ) -> None:
        self._lake, self._manifest = lake, manifest
        self._batch_size, self._seed, self._rank = batch_size, seed, rank
        self._with_contents = with_contents
        self._shards = list(range(len(files_of(manifest, "train"))))[rank::world_size]
        self._negatives = hard_negatives
        if not self._shards:
            raise TrainingSetError(
                f"{manifest.set_id}: {len(files_of(manifest, 'train'))} shards are too few for {world_size} processes; "
                "build the set with fewer --bags-a-shard"
            )

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """The batches after the first `skip`."""
        pending: list[dict[str, Any]] = []
        number = 0
        for example in self._examples():
            pending.append(example)
            if len(pending) == self._batch_size:
                if number >= skip:
                    yield self._batch(pending)
                pending, number = [], number + 1

    def _examples(self) -> Iterator[dict[str, Any]]:
        epoch = 0
        while True:
            rng = np.random.default_rng([self._seed, epoch, self._rank])
            found = False
            for bag in _mixed(self._bags([self._shards[i] for i in rng.permutation(len(self._shards))]), rng):
                for example in _examples_of(bag, self._negatives, rng):
                    found = True
                    yield example
            if not found:
                raise TrainingSetError(f"{self._manifest.set_id}: no pin to train on in {len(self._shards)} shards")
            epoch += 1

    def _bags(self, shards: list[int]) -> Iterator[dict[str, Any]]:
        for batch in read_shards(self._lake, self._manifest, shards, None if self._with_contents else _LIGHT):
            yield from batch.to_pylist()

    def _batch(self, examples: list[dict[str, Any]]) -> Batch:
        n, h = len(examples), self._negatives
        negatives, has = np.zeros((n, h), np.int64), np.zeros((n, h), np.bool_)
        for row, example in enumerate(examples):
            ids = [pin["pin_id"] for pin in example["negatives"]]
            negatives[row, : len(ids)], has[row, : len(ids)] = ids, True
        anchors, positives = [e["anchor"] for e in examples], [e["positive"] or e["anchor"] for e in examples]
        contents = None
        if self._with_contents:
            pins = [*anchors, *positives]
            contents = Contents([pin["picture"] for pin in pins], [pin["text"] for pin in pins])
        return Batch(
            anchor_N=_ids(anchors, "pin_id"),
            positive_N=_ids(positives, "pin_id"),
            has_positive_N=np.array([e["positive"] is not None for e in examples]),
            board_N=np.array([e["board_id"] for e in examples], np.int64),
            anchor_group_N=_ids(anchors, "duplicate_group"),
            positive_group_N=_ids(positives, "duplicate_group"),
            text_N=np.array([_hash(pin["text"]) for pin in anchors], np.int64),
            negative_NH=negatives,
            has_negative_NH=has,
            contents=contents,
        )


def read_shards(lake: Lake, manifest: Manifest, shards: list[int], columns: list[str] | None) -> Iterator[Any]:
    """Record batches of bags, a row group at a time; of the named columns, or all."""
    files = files_of(manifest, "train")
    for shard in shards:
        filesystem, path = storage.filesystem_of(f"{set_uri(lake, manifest.set_id)}/{files[shard].path}")
        with pq.ParquetFile(path, filesystem=filesystem) as parquet:
            yield from parquet.iter_batches(batch_size=16, columns=columns)


def examples_an_epoch(lake: Lake, manifest: Manifest) -> float:
    """How many anchors an epoch has on average, over all processes: the sum of the weights."""
    shards = list(range(len(files_of(manifest, "train"))))
    batches = read_shards(lake, manifest, shards, ["pins.list.element.weight"])
    return float(sum(pin["weight"] for batch in batches for bag in batch.column("pins").to_pylist() for pin in bag))


def _mixed(bags: Iterator[dict[str, Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The bags in another order: each leaves a full buffer at random."""
    buffer: list[dict[str, Any]] = []
    for bag in bags:
        buffer.append(bag)
        if len(buffer) == BUFFERED_BAGS:
            yield buffer.pop(int(rng.integers(len(buffer))))
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


def _examples_of(bag: dict[str, Any], hard_negatives: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A bag's pins as anchors, each as often as its weight says, with a neighbour that is no near-duplicate of it."""
    pins = bag["pins"]
    weights = np.array([pin["weight"] for pin in pins])
    groups = np.array([pin["duplicate_group"] for pin in pins])
    for anchor, pin in enumerate(pins):
        if rng.random() >= weights[anchor]:
            continue
        chances = weights * (groups != groups[anchor])
        total = chances.sum()
        positive = pins[int(rng.choice(len(pins), p=chances / total))] if total > 0 else None
        shown = rng.permutation(len(bag["negatives"]))[:hard_negatives]
        negatives = [bag["negatives"][place] for place in shown]
        yield {"anchor": pin, "positive": positive, "board_id": bag["board_id"], "negatives": negatives}


def _ids(pins: list[dict[str, Any]], name: str) -> Ints:
    return np.array([pin[name] for pin in pins], np.int64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
