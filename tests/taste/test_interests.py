"""A user's interests, from one history."""

from __future__ import annotations

import numpy as np
import pytest

from embedding.taste.interests import DAY_MINUTES, MAX_PINS, find_interests, label_of

NOW = 30_000_000


def history(*sizes: int, seed: int = 0, spread: float = 0.04) -> np.ndarray:
    """Unit vectors around as many directions as there are sizes, far from each other."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(np.random.default_rng(9).normal(size=(64, 64)))[0]
    vectors = np.concatenate([centres[i] + spread * rng.normal(size=(size, 64)) for i, size in enumerate(sizes)])
    unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_as_many_interests_as_there_are_each_with_a_pin_of_its_own_and_most_important_first() -> None:
    vectors = history(5, 20, 1)
    found = find_interests(vectors, np.full(26, NOW), NOW)
    assert [interest.size for interest in found] == [20, 5, 1]
    assert [interest.importance for interest in found] == [20.0, 5.0, 1.0]
    assert all(interest.medoid in interest.members for interest in found)
    assert sorted(np.concatenate([interest.members for interest in found])) == list(range(26))
    assert find_interests(vectors[:0], np.empty(0, np.int64), NOW) == []


def test_an_old_interest_counts_less_than_a_new_one() -> None:
    saved = np.concatenate([np.full(20, NOW - 300 * DAY_MINUTES), np.full(5, NOW - DAY_MINUTES)])
    found = find_interests(history(20, 5), saved, NOW)
    assert [interest.size for interest in found] == [5, 20]
    assert found[1].importance == pytest.approx(20 * np.exp(-3), rel=1e-6)
    assert find_interests(history(3), np.full(3, NOW + 999), NOW)[0].importance == 3.0


def test_an_interest_keeps_its_number_from_night_to_night() -> None:
    first = find_interests(history(12, 8), np.full(20, NOW), NOW)
    vectors = history(12, 8)
    before = np.array([i.cluster for i in first]), vectors[[i.medoid for i in first]]
    grown = history(12, 8, 30, seed=1)
    second = find_interests(grown, np.full(50, NOW), NOW, before)
    by_size = {interest.size: interest.cluster for interest in second}
    assert (by_size[12], by_size[8]) == (first[0].cluster, first[1].cluster)
    assert by_size[30] == max(before[0]) + 1
    alone = find_interests(history(12, 8)[12:], np.full(8, NOW), NOW, before)
    assert [i.cluster for i in alone] == [first[1].cluster], "the other's number stays its own"


def test_the_order_of_a_history_does_not_matter() -> None:
    vectors, order = history(9, 7, 4), np.random.default_rng(3).permutation(20)
    saved = NOW - np.arange(20) * 5_000
    one, other = (find_interests(vectors[o], saved[o], NOW) for o in (np.arange(20), order))
    assert [i.importance for i in one] == pytest.approx([i.importance for i in other])
    assert [i.medoid for i in one] == [order[i.medoid] for i in other]


def test_a_history_that_is_not_bounded_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_PINS}"):
        find_interests(np.ones((MAX_PINS + 1, 4), np.float32), np.zeros(MAX_PINS + 1, np.int64), NOW)


def test_a_label_is_of_the_tags_that_say_most() -> None:
    tags = [{"animal": 0.5, "bird": 2.0}, {"animal": 0.5, "owl": 3.0}, {"animal": 0.5, "bird": 2.0}, {}]
    assert label_of(tags, words=2) == "bird, owl"
    assert label_of([{}, {}]) is None
