"""A few users as the taste graph sees them, with pictures: their interests, what they would be shown, and a pin's related pins.

All is asked of the release and the graph that are live, as `pinlake recommend` does. Pictures are fetched once for the whole
part, and are small: there are many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from embedding.index.live import OneRelease
from embedding.index.reader import Release
from embedding.report.gallery import Row, ShowPin, Tile, tiles_of
from embedding.tables.lake import Lake
from embedding.taste.graph import GraphError, UnknownUserError
from embedding.taste.recommend import Recommendation, Recommender, UserInterest, diversity, read_interests

INTERESTS, PINS_OF_INTEREST, RECOMMENDED, RELATED = 6, 4, 8, 8
"""Shown of a user: interests, pins of each beside its medoid, recommendations; and the related pins of a pin."""

_SIDE_PX = 112
"""Shown at 84 CSS pixels or less, about 2 kB."""


@dataclass(frozen=True)
class ShownInterest:
    """An interest with pictures, the medoid's first. `share` is its part of the user's importance."""

    label: str | None
    share: float
    size: int
    pins: list[Tile]


@dataclass(frozen=True)
class Profile:
    """A user: the first of `of_interests` interests, `pins` in all; what they would be shown, and how diverse that is."""

    user_id: int
    of_interests: int
    pins: int
    interests: list[ShownInterest]
    recommended: list[Tile]
    diversity: float


@dataclass(frozen=True)
class Profiles:
    """The users, a pin with what is related to it, and a sentence for what could not be made."""

    users: list[Profile] = field(default_factory=list)
    related: Row | None = None
    graph_fault: str | None = None


@dataclass(frozen=True)
class _Found:
    user_id: int
    interests: list[UserInterest]
    recommended: list[Recommendation]

    @property
    def shown(self) -> list[list[int]]:
        """Of each interest that is shown its pins, the medoid first."""
        rows = [(interest.medoid_pin, interest.pins.tolist()) for interest in self.interests[:INTERESTS]]
        return [[medoid, *[pin for pin in pins if pin != medoid][:PINS_OF_INTEREST]] for medoid, pins in rows]


def make_profiles(lake: Lake, release: Release, user_ids: Sequence[int]) -> Profiles:
    """The users' profiles under the release's encoder. A damaged graph becomes a sentence; then nothing is recommended."""
    fault = None
    recommender: Recommender | None = None
    try:
        recommender = Recommender(lake, OneRelease(release))
    except (GraphError, ValueError) as error:
        fault = f"The live graph cannot be opened: {error}"
    found = [_look_up(lake, release, recommender, user) for user in user_ids]
    known = [one for one in found if one is not None]
    asked = known[0].shown[0][0] if known else None
    related = _related(recommender, asked)
    pins = {pin for one in known for row in one.shown for pin in row} | {r.pin_id for one in known for r in one.recommended}
    show = tiles_of(release, pins.union(related), _SIDE_PX)
    row = Row(show(asked), [show(pin) for pin in related]) if asked is not None and related else None
    return Profiles([_profile(one, release, show) for one in known], row, fault)


def _look_up(lake: Lake, release: Release, recommender: Recommender | None, user_id: int) -> _Found | None:
    """None for a user who has no interests any more: they went while the report was made."""
    try:
        interests = read_interests(lake, release.manifest.embedding_version, user_id)
        return _Found(user_id, interests, recommender.recommend(user_id, RECOMMENDED) if recommender else [])
    except UnknownUserError:
        return None


def _related(recommender: Recommender | None, pin: int | None) -> list[int]:
    """Pins; none without a graph."""
    if pin is None or recommender is None or recommender.graph is None:
        return []
    return [int(each) for each in recommender.related(pin, RELATED)[0]]


def _profile(found: _Found, release: Release, show: ShowPin) -> Profile:
    importance = sum(interest.importance for interest in found.interests)
    recommended = [r.pin_id for r in found.recommended]
    return Profile(
        user_id=found.user_id,
        of_interests=len(found.interests),
        pins=sum(interest.size for interest in found.interests),
        interests=[
            ShownInterest(interest.label, interest.importance / importance, interest.size, [show(pin) for pin in pins])
            for interest, pins in zip(found.interests, found.shown, strict=False)
        ],
        recommended=[show(r.pin_id, said=r.why) for r in found.recommended],
        diversity=diversity(release.vectors_of(np.array(recommended, np.int64))) if recommended else 0.0,
    )
