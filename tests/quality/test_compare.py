"""Two encoders compared by what they find, on answers small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from embedding.quality.compare import (
    PINS_A_BOARD,
    BoardSample,
    board_mate_recall,
    order_by_hash,
    overlap,
    paired_difference,
    sample_boards,
)


def test_board_mates_found_are_a_share_of_those_that_fit() -> None:
    sample = BoardSample(pins=np.array([1, 2]), boards=np.array([7, 8]), mates=np.array([1, 9]))
    found = np.array([[7, 3, -1], [8, 8, 3]])
    assert board_mate_recall(found, sample).tolist() == [1.0, pytest.approx(2 / 3)]


def test_overlap_counts_what_both_found_in_any_order() -> None:
    a = np.array([[1, 2, 3], [1, 2, -1], [-1, -1, -1]])
    b = np.array([[3, 9, 1], [2, 1, -1], [5, 6, 7]])
    assert overlap(a, b).tolist() == [pytest.approx(2 / 3), 1.0, 0.0]


def test_a_sample_holds_whole_questions_and_depends_on_ids_alone() -> None:
    rng = np.random.default_rng(0)
    pins = rng.permutation(2_000).astype(np.int64)
    boards = pins % 97
    boards[pins < 50] = 10_000 + pins[pins < 50]
    sample = sample_boards(pins, boards, boards=20)
    again = sample_boards(pins[::-1].copy(), boards[::-1].copy(), boards=20)
    assert set(zip(sample.pins, sample.boards, strict=True)) == set(zip(again.pins, again.boards, strict=True))
    names, counts = np.unique(sample.boards, return_counts=True)
    assert len(names) == 20 and (counts == PINS_A_BOARD).all() and (names < 97).all(), "lone pins have no mates to find"
    for pin, board, mates in zip(sample.pins, sample.boards, sample.mates, strict=True):
        assert boards[pins == pin] == board and (boards == board).sum() - 1 == mates


def test_an_order_by_hash_is_no_order_of_the_ids() -> None:
    ids = np.arange(10_000, dtype=np.int64)
    order = order_by_hash(ids, seed=1)
    assert sorted(order.tolist()) == ids.tolist()
    assert abs(np.corrcoef(order, ids)[0, 1]) < 0.05
    assert (order != order_by_hash(ids, seed=2)).mean() > 0.99


def test_an_interval_is_wider_where_pins_of_a_board_agree() -> None:
    rng = np.random.default_rng(0)
    old = np.zeros(300)
    boards = np.repeat(np.arange(30), 10)
    new = np.repeat(rng.normal(-0.1, 0.3, 30), 10)
    together = paired_difference(old, new, boards)
    alone = paired_difference(old, new, np.arange(300))
    assert together.mean == pytest.approx(new.mean()) and together.low < together.mean < together.high
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_worse_means_beyond_doubt() -> None:
    boards = np.arange(200)
    old = np.random.default_rng(1).uniform(0.2, 0.8, 200)
    assert paired_difference(old, old - 0.1, boards).is_worse
    assert not paired_difference(old, old + 0.1, boards).is_worse
    assert not paired_difference(old, old, boards).is_worse
    noise = np.random.default_rng(2).normal(0, 0.5, 200)
    assert not paired_difference(old, old + noise - noise.mean() - 0.005, boards).is_worse
