"""The gate of the taste graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from embedding.quality.taste import TasteCounts, check_taste

GOOD = TasteCounts(
    embedding_version="pinclip-base-0123456789ab",
    live_version="pinclip-base-0123456789ab",
    edges=1_000,
    edges_before=900,
    sampled=100,
    other_edges=0,
    no_row=0,
    naming_gone=0,
    users=100,
    up_to_date=100,
    interests=300,
    interests_a_user_before=3.1,
)


def test_a_usual_night_passes_and_so_does_the_first() -> None:
    assert check_taste(GOOD) == []
    assert check_taste(replace(GOOD, live_version=None, edges_before=None, interests_a_user_before=None)) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"live_version": "pinclip-next-0123456789ab"}, "the live release is of pinclip-next-0123456789ab"),
        ({"up_to_date": 98}, "2 of 100 users have no interests"),
        ({"other_edges": 5}, "5 edges of 100 pins are others in the graph than in the tables"),
        ({"no_row": 3}, "3 pins of the graph have no row"),
        ({"naming_gone": 4}, "4 pins are related to a pin that is not in the graph"),
        ({"edges": 400}, "400 edges, before 900"),
        ({"edges": 2_000}, "a change of more than 50%"),
        ({"interests": 100}, "1 interests a user, before 3.1"),
    ],
)
def test_each_fault_is_told(fault: dict[str, Any], said: str) -> None:
    (found,) = check_taste(replace(GOOD, **fault))
    assert said in found
