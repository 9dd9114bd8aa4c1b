"""What an index is trained, tuned and checked with: a sample of the vectors, and queries as users make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from embedding.contracts import EMBEDDING_DIM
from embedding.encoder.cache import shared_encoder
from embedding.encoder.config import EncoderConfig
from embedding.index.factory import family_of
from embedding.index.recall import Floats, Ids, Truth, exact_top_k
from embedding.index.release import ReleaseError
from embedding.index.tuning import TOP, Choice, Wanted, candidates, choose, try_recipe
from jobs.current import ROW_KEY, TIES_KNOWN, sample_vectors, sampled

QUERIES, TEXTS = 500, 200
"""Pins and titles that a build measures with."""
TRIAL_ROWS = 50_000
NO_PIN = -1


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


def try_on_sample(sample: Sample, rows: int, release_id: str, wanted: Wanted) -> Choice:
    """Tries what is plausible for so many rows on a sample of them. Memory: the sample, once a recipe."""
    vectors_ND, ids_N, queries = sample.vectors[:TRIAL_ROWS], sample.ids[:TRIAL_ROWS], sample.queries
    near = exact_top_k(queries.vectors, [(vectors_ND, ids_N)], min(TIES_KNOWN, len(ids_N)))
    truth = Truth.of(*near, queries.pin_ids, TOP)
    factories = candidates(rows, EMBEDDING_DIM, wanted.bytes_budget)
    # A sample has fewer lists than the whole: what is compared is the families.
    scaled = candidates(min(rows, len(ids_N)), EMBEDDING_DIM, wanted.bytes_budget) if len(ids_N) < rows / 2 else factories
    by_family = dict(zip(map(family_of, scaled), scaled, strict=True))
    tried = [by_family[family_of(name)] for name in factories if family_of(name) in by_family]
    try:
        trials = [try_recipe(name, vectors_ND, ids_N, queries.vectors, truth, wanted) for name in tried]
        choice = choose(trials, rows, wanted, release_id)
    except ValueError as error:
        raise ReleaseError(str(error)) from error
    whole = next(name for name in factories if family_of(name) == family_of(choice.factory))
    return replace(choice, factory=whole)
