"""The judge on cases small enough to work out by hand, and on encoders that are made to be perfect or to know nothing."""

from __future__ import annotations

import dataclasses
import doctest

import numpy as np
import pyarrow as pa
import pytest

from embedding.encoder import judge
from embedding.encoder.judge import (
    BOARD_MATES,
    BOARD_MATES_IN_TEST,
    CATEGORY,
    MEASURES,
    Floats,
    JudgedPins,
    Measured,
    board_mate_recall,
    category_accuracy,
    difference,
    estimate,
    example_pins,
    expected_hits,
    measure,
    pair_recall,
    pairs,
    prefix,
    unit,
)
from embedding.encoder.training_set import PINS_SCHEMA


def on_circle(*degrees: float) -> Floats:
    """Unit vectors at these angles: the smaller the angle between two, the nearer they are."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def measured(*values: float, creators: tuple[int, ...] | None = None) -> Measured:
    rows = np.arange(len(values))
    return Measured(np.array(values, np.float64), rows, rows if creators is None else np.array(creators))


def random_unit(count: int, dimensions: int = 16, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).normal(size=(count, dimensions)))


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(judge) == doctest.TestResults(failed=0, attempted=doctest.testmod(judge).attempted)


# -- board-mates ---------------------------------------------------------------------------------------------------------------


def test_board_mates_are_counted_against_what_can_be_found() -> None:
    pins = example_pins(boards=[7, 7, 7, 8])
    vectors = on_circle(0, 10, 60, 20)
    found = board_mate_recall(vectors, pins, k=2)
    assert found.rows_Q.tolist() == [0, 1, 2], "the lone pin of board 8 is not asked"
    # Pin 0 finds 1 and the stranger; pin 1 finds 0 and the stranger (both 10 degrees away); pin 2 finds the stranger and 1.
    assert found.values_Q.tolist() == [0.5, 0.5, 0.5]
    assert board_mate_recall(vectors, pins, k=1).values_Q.tolist() == [1.0, 0.5, 0.0]
    assert board_mate_recall(vectors, pins, k=3).values_Q.tolist() == [1.0, 1.0, 1.0]


def test_more_mates_than_places_can_all_be_found() -> None:
    pins = example_pins(boards=[7] * 13)
    assert board_mate_recall(on_circle(*range(13)), pins).values_Q.tolist() == [1.0] * 13


def test_a_querys_near_duplicates_neither_take_places_nor_count_as_mates() -> None:
    pins = example_pins(boards=[7, 7, 7, 9], groups=[1, 1, 2, 3])
    vectors = on_circle(0, 0, 30, 20)
    found = board_mate_recall(vectors, pins, k=2)
    # Pin 0 has one mate, pin 2, behind the stranger. Its duplicate, pin 1, on top of it, is no answer.
    assert found.values_Q[:2].tolist() == [1.0, 1.0]
    assert board_mate_recall(vectors, pins, k=1).values_Q[:2].tolist() == [0.0, 0.0]
    only_duplicates = example_pins(boards=[7, 7], groups=[1, 1])
    assert not len(board_mate_recall(on_circle(0, 1), only_duplicates).rows_Q)


def test_every_split_is_searched_but_only_one_is_asked() -> None:
    pins = example_pins(boards=[7, 7, 8, 8], splits=["test", "test", "train", "train"])
    vectors = on_circle(0, 50, 10, 20)
    everywhere = board_mate_recall(vectors, pins, k=1)
    assert everywhere.rows_Q.tolist() == [0, 1]
    assert everywhere.values_Q.tolist() == [0.0, 0.0], "the training pins are nearer"
    assert board_mate_recall(vectors, pins, gallery=("test",), k=1).values_Q.tolist() == [1.0, 1.0]
    assert board_mate_recall(vectors, pins, split="train", k=1).rows_Q.tolist() == [2, 3]


def test_equal_scores_share_the_places_whatever_their_order() -> None:
    boards = [7, 7, *range(20, 29)]
    vectors = on_circle(0, *[40] * 10)
    for order in (np.arange(11), np.arange(11)[::-1]):
        pins = example_pins(boards=[boards[i] for i in order])
        found = board_mate_recall(vectors[order], pins, k=5)
        assert found.values_Q[found.rows_Q == np.flatnonzero(order == 0)[0]].tolist() == [0.5], "five places for ten equals"


def test_a_pin_without_a_vector_finds_nothing_and_is_found_by_nothing() -> None:
    pins = example_pins(boards=[7, 7, 7])
    vectors = on_circle(0, 170, 180)
    vectors[2] = 0
    # At 170 degrees the cosine is negative, below that with a row of zeros.
    assert board_mate_recall(vectors, pins, k=1).values_Q.tolist() == [1.0, 1.0, 0.0]
    assert board_mate_recall(vectors, pins).values_Q.tolist() == [0.5, 0.5, 0.0]


def test_queries_may_be_asked_with_other_vectors_than_the_gallerys() -> None:
    pins = example_pins(boards=[7, 7, 8])
    gallery, asked = on_circle(0, 10, 90), on_circle(90, 0, 0)
    assert board_mate_recall(gallery, pins, asked_ND=asked, k=1).values_Q.tolist() == [0.0, 1.0]


def test_pieces_of_the_queries_give_what_one_product_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    boards, creators = rng.integers(0, 9, 60).tolist(), rng.integers(0, 7, 60).tolist()
    splits = rng.choice(["train", "test"], 60).tolist()
    categories = rng.choice(["a", "b", "unknown"], 60).tolist()
    pins = example_pins(boards=boards, creators=creators, splits=splits, categories=categories)
    vectors = random_unit(60)
    whole = measure(pins, vectors, vectors, random_unit(60, seed=2))
    monkeypatch.setattr(judge, "_SCORES_A_PIECE", 100)
    pieces = measure(pins, vectors, vectors, random_unit(60, seed=2))
    assert tuple(whole) == MEASURES
    for name in MEASURES:
        assert np.array_equal(whole[name].values_Q, pieces[name].values_Q), name


def test_expected_hits_of_small_galleries() -> None:
    nothing = np.full((1, 3), -np.inf, np.float32)
    assert expected_hits(nothing, np.ones((1, 3), np.bool_), 2).tolist() == [0.0]
    assert expected_hits(np.empty((2, 0), np.float32), np.empty((2, 0), np.bool_), 10).tolist() == [0.0, 0.0]


# -- image and text ------------------------------------------------------------------------------------------------------------


def test_pairs_are_one_a_duplicate_group_and_one_a_text() -> None:
    pins = example_pins(
        groups=[1, 1, 2, 3, 4, 5, 6], texts=[1, 2, 3, 3, 4, 5, 6], splits=["test"] * 6 + ["train"], boards=[7] * 7
    )
    has_text = np.array([True, True, True, True, False, True, True])
    assert pairs(dataclasses.replace(pins, has_text_N=has_text)).tolist() == [0, 2, 5]


def test_the_lowest_pin_stands_for_its_duplicates_wherever_its_row_is() -> None:
    pins = example_pins(groups=[1, 1, 2], texts=[1, 2, 2])
    turned = dataclasses.replace(pins, pin_ids_N=np.array([30, 10, 20]))
    assert pairs(turned).tolist() == [1], "pin 10 stands for its group, and has pin 20's text"


def test_pair_recall_by_rank() -> None:
    pins = example_pins(creators=[1, 2, 3, 4, 5, 6, 7])
    pictures, texts = on_circle(0, 10, 20, 30, 40, 50, 60), on_circle(0, 10, 20, 30, 40, 50, 60)
    assert pair_recall(pictures, texts, pins, k=1).mean == 1.0
    shifted = np.roll(texts, 1, axis=0)  # each pin has its left neighbour's text; the first has the last's, which is farthest
    assert pair_recall(pictures, shifted, pins, k=1).mean == 0.0
    assert pair_recall(pictures, shifted, pins, k=5).values_Q.tolist() == [0.0, *[1.0] * 6]


# -- category ------------------------------------------------------------------------------------------------------------------


def test_of_equal_votes_the_nearer_wins() -> None:
    pins = example_pins(
        categories=["b", "a", "b", "b", "a", "c", "a"], splits=["test", *["train"] * 6], creators=[1, 2, 3, 4, 5, 6, 7]
    )
    # Five nearest: a, b, b, a, c: two votes each for a and b, and an a is nearest. The third a is the sixth.
    assert category_accuracy(on_circle(0, 10, 20, 30, 40, 50, 60), pins).mean == 0.0
    assert category_accuracy(on_circle(0, 20, 10, 30, 40, 50, 60), pins).mean == 1.0


def test_pins_of_unknown_category_neither_ask_nor_vote() -> None:
    pins = example_pins(
        categories=["a", "unknown", "a", "unknown", "b"], splits=["test", "test", "train", "train", "validation"]
    )
    found = category_accuracy(on_circle(0, 0, 90, 1, 1), pins)
    assert found.rows_Q.tolist() == [0]
    assert found.values_Q.tolist() == [1.0], "one voter is all that there is"


def test_no_voter_no_category() -> None:
    pins = example_pins(categories=["a", "a"], splits=["test", "train"])
    vectors = on_circle(0, 0)
    assert category_accuracy(vectors * np.array([[1], [0]], np.float32), pins).values_Q.tolist() == [0.0]
    assert category_accuracy(vectors, example_pins(categories=["a"])).values_Q.tolist() == [0.0]


# -- planted encoders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform() -> JudgedPins:
    """600 pins on 60 boards; a board is of one creator and category, and half of the boards are held out."""
    boards = np.repeat(np.arange(60), 10)
    categories = [f"c{board % 6}" for board in boards]
    splits = ["test" if board < 30 else "train" for board in boards]
    return example_pins(boards=boards.tolist(), categories=categories, splits=splits, creators=(boards // 2).tolist())


def test_a_perfect_encoder_gets_everything(platform: JudgedPins) -> None:
    of_category = random_unit(6, 64, seed=3)[platform.boards_N % 6]
    of_board = random_unit(60, 64, seed=4)[platform.boards_N]
    own = random_unit(600, 64, seed=5)
    vectors = unit(3 * of_category + 2 * of_board + own)
    for name, found in measure(platform, vectors, vectors, vectors).items():
        assert found.mean > 0.99, name


def test_an_encoder_that_knows_nothing_gets_what_chance_gives(platform: JudgedPins) -> None:
    chances = {BOARD_MATES: 10 / 599, BOARD_MATES_IN_TEST: 10 / 299, CATEGORY: 1 / 6}
    drawn = [measure(platform, random_unit(600, seed=seed)) for seed in range(5)]
    for name, chance in chances.items():
        assert np.mean([figures[name].mean for figures in drawn]) == pytest.approx(chance, rel=0.25), name
    constant = board_mate_recall(np.ones((600, 1), np.float32), platform)
    assert constant.values_Q == pytest.approx(np.full(300, 10 / 599)), "ties are chance exactly"


def test_an_encoder_without_a_common_space_has_no_figures_for_it(platform: JudgedPins) -> None:
    assert set(measure(platform, random_unit(600))) == {BOARD_MATES, BOARD_MATES_IN_TEST, CATEGORY}


# -- intervals -----------------------------------------------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Creators differ, their pins are alike: resampling pins instead of creators would cover far less often."""
    rng, covered, trials = np.random.default_rng(7), 0, 100
    for _ in range(trials):
        of_creator = rng.uniform(0, 1, 60)
        creators = np.repeat(np.arange(60), rng.integers(1, 9, 60))
        values = np.clip(of_creator[creators] + rng.normal(0, 0.02, len(creators)), 0, 1)
        found = estimate(Measured(values, np.arange(len(values)), creators), resamples=400)
        covered += found.low <= 0.5 <= found.high
    assert 0.88 <= covered / trials <= 0.99


def test_pins_of_one_creator_are_one_witness() -> None:
    values = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    alone, together = estimate(measured(*values)), estimate(measured(*values, creators=(1, 1, 1, 2, 2, 2)))
    assert (together.value, together.low, together.high) == (0.5, 0.0, 1.0)
    assert alone.low > together.low and alone.high < together.high


def test_the_same_seed_gives_the_same_interval() -> None:
    values = tuple(np.random.default_rng(0).uniform(size=50))
    assert estimate(measured(*values)) == estimate(measured(*values))
    assert estimate(measured(*values)) != estimate(measured(*values), seed=1)


def test_a_difference_is_paired_signed_and_relative() -> None:
    hard = np.random.default_rng(0).uniform(0.2, 0.5, 80)
    worse, better = measured(*hard), measured(*hard * 1.4)
    gain, loss = difference(better, worse), difference(worse, better)
    # Every query gains 40%, so that the interval has no width, however much the queries differ.
    assert (gain.relative, gain.low, gain.high) == pytest.approx((0.4, 0.4, 0.4))
    assert gain.is_above and not gain.is_below
    assert loss.relative == pytest.approx(1 / 1.4 - 1) and loss.is_below and not loss.is_above
    assert gain.absolute.value == pytest.approx(-loss.absolute.value) and gain.absolute.value > 0


def test_no_difference_is_zero_and_noise_is_not_beyond_doubt() -> None:
    same = measured(*np.linspace(0, 1, 30))
    assert (difference(same, same).low, difference(same, same).high) == (0.0, 0.0)
    rng = np.random.default_rng(3)
    noise = difference(measured(*rng.uniform(size=60)), measured(*rng.uniform(size=60)))
    assert noise.low < 0 < noise.high and not noise.is_above and not noise.is_below


def test_a_difference_from_nothing_is_infinite_and_still_judged() -> None:
    found = difference(measured(1.0, 1.0), measured(0.0, 0.0))
    assert found.relative == np.inf and found.is_above
    assert difference(measured(0.0), measured(0.0)).relative == 0.0


def test_only_the_same_queries_compare() -> None:
    with pytest.raises(ValueError, match="only the same queries compare: 2 of one, 3 of the other"):
        difference(measured(1.0, 1.0), measured(1.0, 1.0, 1.0))


def test_only_some_queries() -> None:
    some = measured(0.1, 0.2, 0.3).only(np.array([True, False, True]))
    assert some.values_Q.tolist() == [0.1, 0.3] and some.rows_Q.tolist() == [0, 2]


# -- input ---------------------------------------------------------------------------------------------------------------------


def test_pins_from_a_table() -> None:
    rows = [
        (1, 5, 7, "cats", "test", 1, "a cat", b"png", bytes(192)),
        (2, None, None, "unknown", "dropped", 1, "", b"png", bytes(192)),
        (3, None, 7, "cats", "test", 3, "a cat", None, None),
    ]
    names = ("pin_id", "user_id", "board_id", "category", "split", "duplicate_group", "text", "picture", "thumbnail")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) | {"board_ids": []} for row in rows], schema=PINS_SCHEMA)
    pins = JudgedPins.of_table(table.select(JudgedPins.COLUMNS))
    assert len(pins) == 3
    assert len(set(pins.creators_N.tolist())) == 3, "two unknown creators are not one"
    assert pins.boards_N.tolist() == [7, judge.NO_BOARD, 7]
    assert pins.has_image_N.tolist() == [True, True, False] and pins.has_text_N.tolist() == [True, False, True]
    assert pins.texts_N[0] == pins.texts_N[2] != pins.texts_N[1]
    assert len(JudgedPins.of_table(table.slice(0, 0))) == 0


def test_a_prefix_is_a_unit_vector_again() -> None:
    vectors = np.concatenate([random_unit(5, 8), np.zeros((1, 8), np.float32)])
    assert np.linalg.norm(prefix(vectors, 4), axis=1).tolist() == pytest.approx([1] * 5 + [0])
    assert prefix(vectors, 8) is vectors
    for dimensions in (0, 9):
        with pytest.raises(ValueError, match="no prefix"):
            prefix(vectors, dimensions)
