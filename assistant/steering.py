"""How a user's interests steer a search by words: they change the order of what the words find, and find nothing alone.

Of the candidates p of the words t those come first with the greatest

    cos(t, p) + STEERING * max over interests i of sqrt(importance_i / greatest importance) * max(0, cos(i, p))

As in PinnerSage (arXiv 2007.03634) a user is several vectors, and the nearest one counts, not their mean. How much it brings
and what it costs in likeness to the words: `python -m benchmarks.steering` (docs/decisions/0017-one-turn.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from assistant.turns import Interest
from embedding.index.recall import Floats

STEERING = 0.2
"""What a pin gains that is like the greatest interest, in cosines: the largest of those tried that cost less than a hundredth
of the likeness to the words."""

Rows = np.ndarray[Any, np.dtype[np.intp]]


def affinity(vectors_ND: Floats, interests: Sequence[Interest]) -> tuple[Floats, Rows]:
    """How near each vector is to a user's interests, 0 to 1, and which of them it is nearest to: (N,) both."""
    importance = np.array([interest.importance for interest in interests], np.float32)
    weights = np.sqrt(importance / importance.max())
    near_NI = np.maximum(0, vectors_ND @ np.stack([interest.vector for interest in interests]).T) * weights
    return near_NI.max(axis=1), near_NI.argmax(axis=1)


def steered(
    cosines_N: Floats, vectors_ND: Floats, interests: Sequence[Interest], weight: float = STEERING
) -> tuple[Rows, Rows]:
    """The rows (N,) of candidates, best first, and the interest (N,) that each of them is nearest to."""
    affinity_N, nearest_N = affinity(vectors_ND, interests)
    return np.argsort(-(cosines_N + weight * affinity_N), kind="stable"), nearest_N
