"""What benchmarks/taste.py compares: what others would use, and ours. Each gives scores (U, I) for a split."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, save_npz

from benchmarks.peers.environments import peer_environment
from benchmarks.spark import run
from benchmarks.taste_split import Split
from embedding.taste.foresight import Judged, LearningSetting, Pool, best_start, in_memory, learn
from embedding.taste.interests import Floats, medoid_of, ward_labels
from embedding.taste.sequence import History, UserSetting
from embedding.taste.vectors import GraphVectors, VectorSetting, graph_vectors, next_scores

PROGRAM = Path(__file__).parent / "peers" / "taste_program.py"
WINDOWS = ((10, 3.0, 0.2), (20, 5.0, 0.5), (50, 10.0, 0.5))
DIMS, DECAYS, POPULARITIES = (64, 128), (1.0, 3.0, 10.0), (0.0, 0.3, 1.0)
JOINED, WAYS = (0.0, 0.7, 1.0, 1.3), ("nearest", "turns", "sum 10", "sum 20")

Settings = Iterator[tuple[str, Floats]]


# -- others ----------------------------------------------------------------------------------------------------------------


def popularity(split: Split) -> Settings:
    yield "", np.tile(split.matrix.sum(axis=0), (len(split.histories), 1))


def last_by_users(split: Split) -> Settings:
    """The last item's neighbours by who has them."""
    cosines = column_cosines(split.matrix)
    yield "", cosines[[history[-1] for history in split.histories]]


def column_cosines(matrix_UI: Floats) -> Floats:
    """Cosines of items by who has them (I, I)."""
    unit = matrix_UI / np.maximum(1e-9, np.linalg.norm(matrix_UI, axis=0))
    found: Floats = unit.T @ unit
    return found


@lru_cache(maxsize=len(WINDOWS) * len(DIMS))
def vectors_of(split: Split, setting: VectorSetting) -> GraphVectors:
    """The graph's vectors from what a split knows; those of the last split are kept."""
    return graph_vectors(split.histories, split.items, setting)


def mean_of_graph_vectors(split: Split) -> Settings:
    """Of the same vectors as ours, all of a history alike."""
    for (window, decay, backwards), dim in itertools.product(WINDOWS, DIMS):
        vectors = vectors_of(split, VectorSetting(dim, window, decay, backwards))
        scores = np.stack([next_scores(history, vectors, 1e9) for history in split.histories])
        yield f"window {window}, {dim} dimensions", scores


def last_by_vectors(vectors_ID: Floats) -> Callable[[Split], Settings]:
    def settings(split: Split) -> Settings:
        yield "", vectors_ID[[history[-1] for history in split.histories]] @ vectors_ID.T

    return settings


def mean_of_vectors(vectors_ID: Floats) -> Callable[[Split], Settings]:
    def settings(split: Split) -> Settings:
        yield "", np.stack([vectors_ID[history].mean(axis=0) for history in split.histories]) @ vectors_ID.T

    return settings


class Implicit:
    """Models of the library `implicit`, in an environment of its own; all of them run once a split."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: tuple[Split, tempfile.TemporaryDirectory[str]] | None = None

    def model(self, name: str) -> Callable[[Split], Settings]:
        """`itemknn` or `als`."""

        def settings(split: Split) -> Settings:
            folder = self._run(split)
            said = json.loads((folder / "settings.json").read_text())[name]
            yield from zip(said, np.load(folder / f"scores-{name}.npy", mmap_mode="r"), strict=True)

        return settings

    def _run(self, split: Split) -> Path:
        if self._known is None or self._known[0] is not split:
            self._known = split, tempfile.TemporaryDirectory()
            folder = self._known[1].name
            save_npz(Path(folder) / "train.npz", csr_matrix(split.matrix))
            python = peer_environment("implicit", self._cache / "peers")
            run([str(python), str(PROGRAM), "--data", folder, "--out", folder], environment={"PYTHONPATH": ""})
        return Path(self._known[1].name)


# -- ours ------------------------------------------------------------------------------------------------------------------


def by_graph_vectors(split: Split) -> Settings:
    """embedding/taste/vectors.py."""
    seen = np.log1p(split.matrix.sum(axis=0))[None]
    for (window, decay, backwards), dim in itertools.product(WINDOWS, DIMS):
        vectors = vectors_of(split, VectorSetting(dim, window, decay, backwards))
        for forget in DECAYS:
            scores = np.stack([next_scores(history, vectors, forget) for history in split.histories])
            for weight in POPULARITIES:
                said = f"window {window}, {dim} dimensions, decay {forget:g}, popularity {weight:g}"
                yield said, scores + weight * float(scores.std()) * seen


def by_interests(vectors_ID: Floats, ways: Sequence[str] = WAYS) -> Callable[[Split], Settings]:
    """embedding/taste/interests.py: the medoids of Ward's clusters, each asking for more of its kind."""

    def settings(split: Split) -> Settings:
        for joined in JOINED:
            asking = [medoids(vectors_ID[history], joined) for history in split.histories]
            for way in ways:
                yield f"joined below {joined:g}, {way}", np.stack([many_scores(*one, vectors_ID, way) for one in asking])

    return settings


def medoids(vectors_ND: Floats, joined: float) -> tuple[Floats, Floats]:
    """Vectors of a history's medoids (C, D), and the share of its pins that each stands for (C,)."""
    labels = ward_labels(vectors_ND, joined) if joined else np.arange(len(vectors_ND))
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(group) for group in groups], np.float32)
    return vectors_ND[[medoid_of(vectors_ND, group) for group in groups]], sizes / sizes.sum()


def many_scores(medoids_CD: Floats, shares_C: Floats, vectors_ID: Floats, way: str) -> Floats:
    """Scores (I,) of several questions together.

    nearest: By the question that is nearest. turns: Each question's list takes places by its share (d'Hondt). sum B: By the sum
    of share * exp(B * cosine), between these two and the mean.
    """
    cosines_CI = medoids_CD @ vectors_ID.T
    if way == "nearest":
        return np.asarray(cosines_CI.max(axis=0))
    if way == "turns":
        ranks = np.argsort(np.argsort(-cosines_CI, axis=1, kind="stable"), axis=1)
        return np.asarray((shares_C[:, None] / (ranks + 1)).max(axis=0), np.float32)
    sharpness = float(way.removeprefix("sum "))
    return np.asarray((shares_C[:, None] * np.exp(sharpness * (cosines_CI - 1))).sum(axis=0), np.float32)


class LearnedUsers:
    """embedding/taste/sequence.py: one vector a user, learned on what is known in a split; each split learned from once."""

    def __init__(self, vectors: Callable[[Split], GraphVectors], setting: UserSetting, learning: LearningSetting) -> None:
        self._vectors, self._setting, self._learning = vectors, setting, learning
        self._known: dict[int, tuple[Split, str, Floats]] = {}

    def __call__(self, split: Split) -> Settings:
        yield self._of(split)[1:]

    def scores(self, split: Split) -> Floats:
        return self._of(split)[2]

    def _of(self, split: Split) -> tuple[Split, str, Floats]:
        if id(split) not in self._known:
            self._known[id(split)] = split, *self._learn(split)
        return self._known[id(split)]

    def _learn(self, split: Split) -> tuple[str, Floats]:
        vectors = self._vectors(split)
        share_I = split.matrix.sum(axis=0) / sum(map(len, split.histories))
        pool = Pool(np.arange(split.items), vectors.target, share_I, split.items)
        users = []
        for number, (history, minutes) in enumerate(zip(split.histories, split.minutes, strict=True)):
            pins = history[::-1]
            users.append(History(number, pins, minutes[::-1], vectors.source[pins], vectors.target[pins], share_I[pins]))
        judging = Judged.of(users, pool)
        start = best_start(self._setting, judging, pool)
        by_user = dict(zip((history.user_id for history in judging.known), judging.known, strict=True))
        learned = learn(
            in_memory([by_user.get(history.user_id, history) for history in users]), pool, judging, start, self._learning
        )
        said = f"round {learned.round} of learning, held-out gain {learned.gains[0]:.3f} to {max(learned.gains):.3f}"
        return said, np.asarray(learned.model.encode(users) @ vectors.target.T, np.float32)


def fused(one: Callable[[Split], Floats], others: Callable[[Split], Settings]) -> Callable[[Split], Settings]:
    """The sum of both, each brought to mean 0 and deviation 1 over all items."""

    def settings(split: Split) -> Settings:
        own = _standardised(one(split))
        for name, scores in others(split):
            yield name, own + _standardised(scores)

    return settings


def _standardised(scores_UI: Floats) -> Floats:
    centred = scores_UI - scores_UI.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(1e-9, centred.std(axis=1, keepdims=True)), np.float32)
