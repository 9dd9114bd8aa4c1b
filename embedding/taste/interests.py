"""A person's interests: clusters of the pins that they saved, each with a medoid and an importance, as PinnerSage has them.

(arXiv 2007.03634.) Ward's method joins the pins of one user bottom-up and stops at a distance, so that a user has as many
interests as the pins show; each is represented by its medoid, a real pin whose vector is a query that finds more of the
kind; and importance is the sum of the saves, each weighted by exp(-rate * days ago). From night to night a cluster keeps
its number while its medoid stays near.

Symbols: N pins of one user, D dimensions, C clusters. Vectors are L2-normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

MAX_PINS = 500
"""Of a user the newest saves that are looked at: Ward's method takes the square of their number in time and memory."""
DAY_MINUTES = 1_440


@dataclass(frozen=True)
class InterestSetting:
    """How a history becomes interests.

    join_below: Ward's distance up to which clusters are joined; of two single pins it is the Euclidean distance of their
        vectors: 1 is a cosine of 0.5.
    decay_per_day: Rate at which a save loses weight.
    same_above: Cosine of two nights' medoids from which on they may be one interest.
    words: Tags in a label.
    """

    join_below: float = 1.3
    decay_per_day: float = 0.01
    same_above: float = 0.8
    words: int = 3


DEFAULT_SETTING = InterestSetting()


@dataclass(frozen=True)
class Interest:
    """One of a user's interests. `members` are rows of the history, `medoid` one of them."""

    cluster: int
    medoid: int
    members: NDArray[np.intp]
    importance: float

    @property
    def size(self) -> int:
        return len(self.members)


def find_interests(
    vectors_ND: Floats,
    saved_N: Ids,
    now: int,
    before: tuple[Ids, Floats] | None = None,
    setting: InterestSetting = DEFAULT_SETTING,
) -> list[Interest]:
    """A user's interests, most important first.

    The order of the rows changes nothing but the numbers in `medoid` and `members`, as long as the vectors differ.

    Args:
        vectors_ND: Of the saved pins, each once; at most MAX_PINS, or ValueError.
        saved_N, now: Minutes since 1970 (UTC). A save of the future counts as of now.
        before: Numbers (C,) of the interests of the night before and their medoids' vectors (C, D).
    """
    if len(vectors_ND) > MAX_PINS:
        raise ValueError(f"{len(vectors_ND)} pins of one user, at most {MAX_PINS} are looked at")
    if not len(vectors_ND):
        return []
    labels = ward_labels(vectors_ND, setting.join_below)
    days_ago = np.maximum(0, now - saved_N) / DAY_MINUTES
    weights = np.exp(-setting.decay_per_day * days_ago)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    medoids = np.array([medoid_of(vectors_ND, group) for group in groups])
    numbers = keep_numbers(vectors_ND[medoids], before, setting.same_above)
    found = [
        Interest(int(number), int(medoid), group, float(weights[group].sum()))
        for number, medoid, group in zip(numbers, medoids, groups, strict=True)
    ]
    return sorted(found, key=lambda interest: (-interest.importance, interest.cluster))


def ward_labels(vectors_ND: Floats, join_below: float) -> NDArray[np.int32]:
    """A cluster's number for each vector (N,), from 1 on."""
    if len(vectors_ND) == 1:
        return np.ones(1, np.int32)
    tree = linkage(vectors_ND.astype(np.float64), method="ward")
    labels: NDArray[np.int32] = fcluster(tree, join_below, criterion="distance")
    return labels


def medoid_of(vectors_ND: Floats, members: NDArray[np.intp]) -> int:
    """The member that is nearest to the others in the mean. Of equal ones the first."""
    own = vectors_ND[members]
    return int(members[np.argmax(np.round(own @ own.sum(axis=0), 6))])


def centre_of(vectors_ND: Floats) -> tuple[Floats, float, int]:
    """What many pins are about: their mean (D,), L2-normalised, its length before, and the pin that is nearest to it.

    Where the pins cancel each other out the mean says nothing, and the first pin stands for them.
    """
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean_D))
    if length < 1e-6:
        return vectors_ND[0], length, 0
    centre_D = (mean_D / length).astype(np.float32)
    return centre_D, length, int(np.argmax(np.round(vectors_ND @ centre_D, 6)))


def keep_numbers(medoids_CD: Floats, before: tuple[Ids, Floats] | None, same_above: float) -> Ids:
    """Numbers of today's interests (C,): those of the night before where the medoids are near, new ones otherwise.

    The matching is the one whose cosines sum to most (Hungarian method). A number that went out of use is not given again
    while any of that night's is greater.
    """
    numbers = np.full(len(medoids_CD), -1, np.int64)
    old, old_CD = before if before is not None else (np.empty(0, np.int64), medoids_CD[:0])
    if len(old):
        cosines = medoids_CD @ old_CD.T
        today, night_before = linear_sum_assignment(np.where(cosines >= same_above, cosines, 0.0), maximize=True)
        same = cosines[today, night_before] >= same_above
        numbers[today[same]] = old[night_before[same]]
    new = np.flatnonzero(numbers < 0)
    numbers[new] = int(old.max(initial=-1)) + 1 + np.arange(len(new))
    return numbers


def label_of(tags: Sequence[Mapping[str, float]], words: int = DEFAULT_SETTING.words) -> str | None:
    """What an interest is called: the tags of its pins with most weight in all, "ink, botanical drawing"; None without any.

    Args:
        tags: Of each member its tags with their weights, log(pins / pins that have the tag): a rare tag says more.
    """
    total: dict[str, float] = {}
    for of_pin in tags:
        for tag, weight in of_pin.items():
            total[tag] = total.get(tag, 0.0) + weight
    best = sorted(total, key=lambda tag: (-total[tag], tag))[:words]
    return ", ".join(best) or None
