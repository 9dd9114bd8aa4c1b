"""Vectors from the graph alone."""

from __future__ import annotations

import numpy as np

from embedding.taste.vectors import VectorSetting, cooccurrence, graph_vectors, next_scores

TOPICS, OF_TOPIC = 6, 10


def histories(seed: int = 0) -> list[np.ndarray]:
    """Of people who take the pins of one topic in about the order of their numbers, with one of any topic in between."""
    rng = np.random.default_rng(seed)
    found = []
    for person in range(300):
        first = OF_TOPIC * (person % TOPICS)
        taken = first + np.flatnonzero(rng.random(OF_TOPIC) < 0.7)
        found.append(np.insert(taken, len(taken) // 2, rng.integers(0, TOPICS * OF_TOPIC)).astype(np.int64))
    return found


def test_what_comes_next_is_of_the_topic_and_after_what_came_before() -> None:
    vectors = graph_vectors(histories(), TOPICS * OF_TOPIC, VectorSetting(dim=32, backwards=0.0, window=5, decay=2.0))
    hits = 0
    for topic in range(TOPICS):
        first = OF_TOPIC * topic
        scores = next_scores(np.array([first + 3, first + 4]), vectors, 3.0)
        best = np.argsort(-scores)[:3].tolist()
        assert sum(pin // OF_TOPIC == topic for pin in best) == 3
        hits += sum(pin > first + 4 for pin in best)
    assert hits >= 2.5 * TOPICS, "directed: pins that follow, not those that came before"


def test_a_pin_that_nobody_saved_and_an_empty_history_have_no_say() -> None:
    vectors = graph_vectors(histories(), TOPICS * OF_TOPIC + 5)
    assert not vectors.source[-5:].any() and not vectors.target[-5:].any()
    assert not next_scores(np.empty(0, np.int64), vectors, 3.0).any()
    again = graph_vectors(histories(), TOPICS * OF_TOPIC + 5)
    assert np.allclose(again.source @ again.target.T, vectors.source @ vectors.target.T, atol=1e-4)


def test_pairs_count_less_the_further_apart_and_less_backwards() -> None:
    counts = cooccurrence([np.array([0, 1, 2])], 3, VectorSetting(window=2, decay=1.0, backwards=0.5)).toarray()
    far = np.exp(-1)
    assert np.allclose(counts, [[0, 1, far], [0.5, 0, 1], [0.5 * far, 0.5, 0]], atol=1e-6)
