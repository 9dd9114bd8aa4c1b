"""What to show a user: neighbours and walks from each of their interests, mixed, spread over these, and with a reason in words.

Lateral exploration: an interest's medoid asks the live release for pins that look and read alike, and its latest pins are
walked from to what others keep beside them. Either list ranks the pins; ranks are fused (reciprocal rank fusion, Cormack
et al., SIGIR 2009), pins that the user has and near-duplicates are left out, and interests take turns by importance (the
highest-averages method of D'Hondt), so that no interest takes all places.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.contracts import USER_INTERESTS
from embedding.index.live import Serving
from embedding.index.reader import Release
from embedding.tables.lake import Lake, data_files
from embedding.tables.scan import Wanted, column_keys, projected_schema, scan_file
from embedding.taste import store
from embedding.taste.graph import Graph, GraphError, UnknownUserError
from embedding.taste.interests import Floats, Ids
from embedding.taste.walks import walk

NEIGHBOURS, WALKED, WALKED_FROM = 100, 100, 10
"""Of an interest: pins that the release is asked for, pins that walks give, of its pins the latest that are walked from."""
INTERESTS_USED = 8
FUSION = 60
"""Constant of reciprocal rank fusion."""
DUPLICATE = 0.97
"""Cosine from which on two pins are one to a user."""


@dataclass(frozen=True)
class UserInterest:
    """A current row of `user_interests`: `embedding` (D,), `pins` saved last first."""

    cluster: int
    medoid_pin: int
    embedding: Floats
    importance: float
    size: int
    label: str | None
    pins: Ids


@dataclass(frozen=True)
class Recommendation:
    """A pin for a user. `cluster` is the interest that it comes from, `why` a sentence for the user."""

    pin_id: int
    score: float
    cluster: int
    why: str


def read_interests(lake: Lake, embedding_version: str, user_id: int) -> list[UserInterest]:
    """A user's current interests under an encoder, most important first.

    Files are looked up newest day first, by their ids; the first day that has the user is the current one, and of its rows
    those of the greatest revision. Raises UnknownUserError for a user without any.
    """
    if not lake.exists(USER_INTERESTS):
        raise UnknownUserError(f"nobody's interests are known under {embedding_version} yet: run jobs/build_interests.py")
    table = lake.snapshot(USER_INTERESTS)
    schema = projected_schema(
        table, ["cluster", "medoid_pin", "embedding", "importance", "size", "label", "pins", "user_id", "revision"]
    )
    wanted = Wanted("user_id", column_keys(pa.array([user_id], pa.int64())))
    files = data_files(table, lambda partition: partition["embedding_version"] == embedding_version)
    if not files:
        raise UnknownUserError(f"nobody's interests are known under {embedding_version} yet: run jobs/build_interests.py")
    for day in sorted({str(file.partition["ds"]) for file in files}, reverse=True):
        rows: list[dict[str, Any]] = []
        for file in (file for file in files if file.partition["ds"] == day):
            rows += [row for batch in scan_file(file, schema, wanted) for row in batch.to_pylist()]
        if rows:
            last = max(row["revision"] for row in rows)
            found = [_interest(row) for row in rows if row["size"] and row["revision"] == last]
            if found:
                return sorted(found, key=lambda interest: (-interest.importance, interest.cluster))
            break
    raise UnknownUserError(f"user {user_id} has no interests under {embedding_version}")


def _interest(row: dict[str, Any]) -> UserInterest:
    vector, pins = np.array(row["embedding"], np.float32), np.array(row["pins"], np.int64)
    return UserInterest(row["cluster"], row["medoid_pin"], vector, row["importance"], row["size"], row["label"], pins)


class Recommender:
    """Asks the live release and the live graph. Thread-safe; each call asks one release alone.

    with LiveRelease(lake) as live:
        found = Recommender(lake, live).recommend(user_id=100, k=20)
    """

    def __init__(self, lake: Lake, live: Serving):
        """Opens the live graph. Without one neighbours alone are shown."""
        self._lake, self._live = lake, live
        self.graph_id = store.live_graph_id(lake)
        self.graph: Graph | None = store.open_graph(lake, self.graph_id) if self.graph_id else None

    def asking(self, live: Serving) -> Recommender:
        """This recommender, its graph open as it is, over another release: one that stays for all that one turn asks, say."""
        other = copy.copy(self)
        other._live = live
        return other

    def recommend(self, user_id: int, k: int = 20) -> list[Recommendation]:
        """The k best pins for a user, best first; fewer where there are fewer.

        None of them is among the user's 500 latest saves, or nearly the same as one of these.

        Raises UnknownUserError for a user of whom nothing is known under the live release's encoder.
        """
        release = self._live.release
        interests = read_interests(self._lake, release.manifest.embedding_version, user_id)
        owned = np.unique(np.concatenate([interest.pins for interest in interests]))
        used = interests[:INTERESTS_USED]
        ranked = [self._candidates(release, interest, owned, 4 * k) for interest in used]
        return spread(used, ranked, owned, k, release)

    def related(self, pin_id: int, k: int = 10) -> tuple[Ids, Floats]:
        """Ids and scores of the pins that walks from one pin pass most often. Raises GraphError without a graph."""
        if self.graph is None:
            raise GraphError("there is no live graph: run jobs/build_graph.py and jobs/relate_pins.py")
        found = walk(self.graph, self.graph.pins.nodes_of(np.array([pin_id])), k=k)
        return self.graph.pins.ids_of(found.pins), found.scores

    def _candidates(self, release: Release, interest: UserInterest, owned: Ids, most: int) -> list[tuple[int, float, bool]]:
        """(pin, fused score, whether it was found by walking rather than by likeness), best first."""
        _, near = release.search(interest.embedding[None, :], NEIGHBOURS + min(len(owned), NEIGHBOURS))
        lists = [[int(pin) for pin in near[0] if pin >= 0]]
        if self.graph is not None:
            walked = walk(self.graph, self.graph.pins.nodes_of(interest.pins[:WALKED_FROM]), k=WALKED)
            lists.append(self.graph.pins.ids_of(walked.pins).tolist())
        has, scores, best_of = set(owned.tolist()), dict[int, float](), dict[int, tuple[int, bool]]()
        for walking, pins in enumerate(lists):
            for rank, pin in enumerate(pin for pin in pins if pin not in has):
                scores[pin] = scores.get(pin, 0.0) + 1 / (FUSION + rank)
                best_of[pin] = min(best_of.get(pin, (rank, bool(walking))), (rank, bool(walking)))
        best = sorted(scores, key=lambda pin: (-scores[pin], pin))[:most]
        return [(pin, scores[pin], best_of[pin][1]) for pin in best]


def spread(
    interests: Sequence[UserInterest],
    ranked: Sequence[Sequence[tuple[int, float, bool]]],
    owned: Ids,
    k: int,
    release: Release,
) -> list[Recommendation]:
    """k of the candidates: the next place goes to the interest with most importance a place so far, and one more.

    No pin is taken that is a near-duplicate of one of `owned`, or of one that was taken.
    """
    every = np.array(sorted({pin for candidates in ranked for pin, _, _ in candidates}), np.int64)
    every_ND, every = _vectors(release, every)
    owned_ND, _ = _vectors(release, owned)
    new = (every_ND @ owned_ND.T).max(axis=1, initial=-1.0) < DUPLICATE
    vectors = dict(zip(every[new].tolist(), every_ND[new], strict=True))
    taken: list[Recommendation] = []
    queues = [iter([c for c in candidates if c[0] in vectors]) for candidates in ranked]
    places = np.zeros(len(interests))
    open_to = np.ones(len(interests), bool)
    importance = np.array([interest.importance for interest in interests])
    while len(taken) < k and open_to.any():
        turn = int(np.argmax(np.where(open_to, importance / (places + 1), -1.0)))
        for pin, score, walking in queues[turn]:
            if any(t.pin_id == pin or float(vectors[t.pin_id] @ vectors[pin]) >= DUPLICATE for t in taken):
                continue
            taken.append(Recommendation(pin, score, interests[turn].cluster, _why(interests[turn], walking)))
            places[turn] += 1
            break
        else:
            open_to[turn] = False
    return taken


def _vectors(release: Release, pin_ids: Ids) -> tuple[Floats, Ids]:
    """Vectors (N, D) and ids of those pins that the release holds: a walk may pass one that it does not, or no longer."""
    known = release.describe(pin_ids.tolist())
    held = np.array([pin for pin in pin_ids.tolist() if pin in known], np.int64)
    return (release.vectors_of(held) if len(held) else np.empty((0, release.manifest.dim), np.float32)), held


def _why(interest: UserInterest, walking: bool) -> str:
    named = interest.label or "pins that you saved"
    return f"kept by others beside your pins: {named}" if walking else f"from your boards: {named}"


def diversity(vectors_KD: Floats) -> float:
    """Mean of 1 - cosine over all pairs of a list's vectors; 0 for fewer than two."""
    count = len(vectors_KD)
    if count < 2:
        return 0.0
    cosines = vectors_KD @ vectors_KD.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
