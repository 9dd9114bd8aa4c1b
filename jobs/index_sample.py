"""What an index is trained, tuned and checked with: a sample of the vectors, and queries as users make them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from embedding.contracts import EMBEDDING_DIM
from embedding.encoder.cache import shared_encoder
from embedding.encoder.config import EncoderConfig
from embedding.index.factory import family_of, is_mergeable
from embedding.index.recall import Floats, Ids, Truth, exact_top_k
from embedding.index.release import ReleaseError
from embedding.index.tuning import (
    FINAL_ROWS,
    TOP,
    Choice,
    Trial,
    Wanted,
    candidates,
    choose,
    finalists,
    training_rows,
    try_recipe,
)
from embedding.tables import storage
from jobs.current import ROW_KEY, TIES_KNOWN, batch_vectors, task_number
from jobs.session import ArrowRows, map_arrow

QUERIES, TEXTS = 500, 200
"""Pins and titles that a build measures with."""
TRIAL_ROWS = 50_000
NO_PIN = -1


_NUMBER = pa.schema([("number", pa.int64())])


@dataclass(frozen=True)
class Queries:
    """Unit vectors (Q, D), and the pin of each (Q,); NO_PIN for a text's."""

    vectors: Floats
    pin_ids: Ids

    def __len__(self) -> int:
        return len(self.pin_ids)

    @property
    def by_text(self) -> NDArray[np.bool_]:
        by_text: NDArray[np.bool_] = self.pin_ids == NO_PIN
        return by_text


def sampled(pins: DataFrame, rows: int, count: int, seed: int) -> DataFrame:
    """About `count` of `rows` pins, chosen by a hash of the id: the same ones however the rows are laid out.

    A condition on the join's key alone, which Spark applies before it joins: only what is chosen is shuffled.
    """
    share = min(1.0, count / max(rows, 1))
    chosen = F.pmod(F.xxhash64("pin_id", F.lit(seed)), F.lit(1_000_000)) < math.ceil(share * 1_000_000)
    return pins.where(chosen)


def sample_vectors(vectors: DataFrame, uri: str) -> tuple[Floats, Ids]:
    """The vectors (N, D) of a sample and their pins' ids, ascending. Raises ReleaseError where the sample is empty.

    Executors write them to files below `uri`, which the driver reads: they never pass through the JVM's memory.
    """

    def write(batches: ArrowRows) -> ArrowRows:
        pieces = [batch_vectors(batch) for batch in batches if batch.num_rows]
        if pieces:
            for kind, arrays in zip(("vectors", "ids"), zip(*pieces, strict=True), strict=True):
                storage.write_atomic(f"{uri}/{kind}-{task_number():05d}.npy", npy_bytes(np.concatenate(arrays)))
            yield pa.RecordBatch.from_pydict({"number": [task_number()]}, _NUMBER)

    numbers = [row.number for row in map_arrow(vectors.select("pin_id", "embedding"), write, _NUMBER).collect()]
    if not numbers:
        raise ReleaseError("the sample is empty")
    read = [[_read_npy(f"{uri}/{kind}-{number:05d}.npy") for number in numbers] for kind in ("vectors", "ids")]
    vectors_ND, ids_N = (np.concatenate(arrays) for arrays in read)
    storage.delete_folder(uri)
    order = np.argsort(ids_N)
    return vectors_ND[order], ids_N[order]


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as a file of NumPy's own format."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _read_npy(uri: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    return array


def with_texts(pins_QD: Floats, pin_ids: Ids, titles: Sequence[str], config: EncoderConfig) -> Queries:
    """Queries by pins and by titles; the encoder reads these as it reads what somebody types."""
    if not titles:
        return Queries(pins_QD, pin_ids)
    texts_QD = shared_encoder(config).encode_texts(titles)
    return Queries(np.concatenate([pins_QD, texts_QD]), np.concatenate([pin_ids, np.full(len(titles), NO_PIN, np.int64)]))


def sample_titles(described: DataFrame, rows: int, seed: int) -> list[str]:
    """About TEXTS different titles of pins: the nearest thing to a search log that the lake has."""
    chosen = sampled(described.where(F.length(F.trim("title")) > 0), rows, 2 * TEXTS, seed).select("title").distinct()
    return sorted(row.title for row in chosen.limit(2 * TEXTS).collect())[:TEXTS]


@dataclass(frozen=True)
class Sample:
    """What a build looks at before it builds: vectors (N, D) to train and to try on, in no order, and queries to measure with.

    Where the lake is larger than the sample, no query's pin is among the vectors: what was trained on is found too easily.
    """

    vectors: Floats
    ids: Ids
    queries: Queries


def take_sample(described: DataFrame, vectors: DataFrame, rows: int, most: int, config: EncoderConfig, work_uri: str) -> Sample:
    """About `most` of `rows` pins in no order, and QUERIES more; one pass over the vectors. Memory: the sample."""
    count = most + QUERIES
    chosen = [sampled(frame, rows, count, seed=1) for frame in (described.select(*ROW_KEY), vectors)]
    vectors_ND, ids = sample_vectors(chosen[0].join(chosen[1], ROW_KEY, "inner"), work_uri)
    order = np.random.default_rng(1).permutation(len(ids))
    asked, rest = order[:QUERIES], order[QUERIES if len(ids) < rows else 0 :]
    queries = with_texts(vectors_ND[asked], ids[asked], sample_titles(described, rows, seed=2), config)
    return Sample(vectors_ND[rest], ids[rest], queries)


def sample_rows(rows: int, kept: Choice | None) -> int:
    """How many of `rows` pins a build looks at: enough to train what is plausible and, where no choice is kept, to try it."""
    plausible = candidates(rows, EMBEDDING_DIM)
    tried_again = kept is None and rows > 2 * TRIAL_ROWS and not all(map(is_mergeable, plausible))
    return max(TRIAL_ROWS, FINAL_ROWS if tried_again else 0, *map(training_rows, plausible))


def try_on_sample(sample: Sample, rows: int, release_id: str, wanted: Wanted) -> Choice:
    """Tries what is plausible for so many rows on a few of them, and on many what a few don't decide.

    Memory: the sample, once a recipe.
    """
    factories = {family_of(name): name for name in candidates(rows, EMBEDDING_DIM, wanted.bytes_budget)}
    few = min(TRIAL_ROWS, len(sample.ids))
    # A sample has fewer lists than the whole: what is compared is the families.
    scaled = candidates(few, EMBEDDING_DIM, wanted.bytes_budget) if few < rows / 2 else list(factories.values())
    try:
        trials = _tried(sample, few, [name for name in scaled if family_of(name) in factories], wanted)
        choice = choose(trials, rows, wanted, release_id)
        if again := finalists(trials, rows):
            finals = _tried(sample, FINAL_ROWS, [factories[family_of(name)] for name in again], wanted)
            choice = choose(finals, rows, wanted, release_id)
            why = f"{choice.why}; on {few:,} vectors they were the graphs and the best lists of {len(trials)} recipes"
            choice = replace(choice, why=why, trials=[*finals, *trials])
    except ValueError as error:
        raise ReleaseError(str(error)) from error
    return replace(choice, factory=factories[family_of(choice.factory)])


def _tried(sample: Sample, rows: int, factories: Sequence[str], wanted: Wanted) -> list[Trial]:
    """The factories on the first `rows` of a sample."""
    vectors_ND, ids_N, queries = sample.vectors[:rows], sample.ids[:rows], sample.queries
    near = exact_top_k(queries.vectors, [(vectors_ND, ids_N)], min(TIES_KNOWN, len(ids_N)))
    truth = Truth.of(*near, queries.pin_ids, TOP)
    return [try_recipe(name, vectors_ND, ids_N, queries.vectors, truth, wanted) for name in factories]
