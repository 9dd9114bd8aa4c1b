"""How good the vectors of an encoder are, on pins that it was not trained on: figures, their intervals, their differences.

NumPy only; nothing is read or encoded here. Each measure gives a value a query, with the query's creator, because pins of
one creator are no independent witnesses: intervals resample whole creators.

1. *Board-mates*: what people put on one board belongs together, so a pin's board-mates are what a search for it should find.
2. *Image and text*: a picture finds its own text among all texts, and a text its own picture.
3. *Category*: the nearest training pins say which category a pin is of.

Near-duplicates never count: a query's own duplicate group is neither found nor missed. Vectors of equal score share the
places that they compete for, so that no figure depends on the order of the pins. A pin without a vector (a row of zeros: a
picture encoder has none for a pin of text alone) is found by nothing and finds nothing; it still counts as a query.

Shape suffixes: N pins of a set, Q queries, G pins of a gallery, D dimensions, C creators, R resamples. Vectors are unit rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding.encoder.training_set import TEST, TRAIN, UNKNOWN_CATEGORY

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEAREST, VOTERS = 10, 5
RESAMPLES, SEED, CONFIDENCE = 2_000, 0, 0.95
NO_BOARD = -1

BOARD_MATES = "board_mate_recall_at_10"
BOARD_MATES_IN_TEST = "board_mate_recall_at_10_test_gallery"
IMAGE_TO_TEXT_1, IMAGE_TO_TEXT_5 = "image_to_text_r_at_1", "image_to_text_r_at_5"
TEXT_TO_IMAGE_1, TEXT_TO_IMAGE_5 = "text_to_image_r_at_1", "text_to_image_r_at_5"
CATEGORY = "category_5nn_accuracy"
MEASURES = (BOARD_MATES, BOARD_MATES_IN_TEST, IMAGE_TO_TEXT_1, IMAGE_TO_TEXT_5, TEXT_TO_IMAGE_1, TEXT_TO_IMAGE_5, CATEGORY)

_TIE = 1e-6  # of two cosines of one pair of float32 vectors, computed in different blocks of a product
_SCORES_A_PIECE = 1 << 24  # 64 MB of scores, whatever the gallery


@dataclass(frozen=True)
class JudgedPins:
    """The pins of a training set, as far as a judge needs them; each array is (N,), and rows of vectors go in this order.

    creators_N: never equal for two pins of unknown creators. boards_N: the pin's own board, NO_BOARD for none. texts_N: equal
    numbers for equal texts.
    """

    pin_ids_N: Ints  # noqa: N815
    creators_N: Ints  # noqa: N815
    boards_N: Ints  # noqa: N815
    categories_N: npt.NDArray[np.str_]  # noqa: N815
    splits_N: npt.NDArray[np.str_]  # noqa: N815
    groups_N: Ints  # noqa: N815
    texts_N: Ints  # noqa: N815
    has_image_N: Bools  # noqa: N815
    has_text_N: Bools  # noqa: N815

    COLUMNS = ("pin_id", "user_id", "board_id", "category", "split", "duplicate_group", "text", "thumbnail")

    @classmethod
    def of_table(cls, table: pa.Table) -> JudgedPins:
        """From rows of PINS_SCHEMA, of which COLUMNS are needed."""

        def ids(name: str) -> Ints:
            return np.asarray(pc.fill_null(table[name], NO_BOARD).to_numpy(), dtype=np.int64)

        def words(name: str) -> npt.NDArray[np.str_]:
            return np.array(table[name].to_pylist(), dtype=np.str_)

        unknown_N = np.asarray(pc.is_null(table["user_id"]).to_numpy())
        # NumPy's own strings drop trailing zero bytes and take the longest's width: Arrow numbers the texts.
        texts = table["text"].combine_chunks().dictionary_encode() if table.num_rows else None
        return cls(
            pin_ids_N=ids("pin_id"),
            creators_N=np.where(unknown_N, -1 - np.arange(table.num_rows), ids("user_id")),
            boards_N=ids("board_id"),
            categories_N=words("category"),
            splits_N=words("split"),
            groups_N=ids("duplicate_group"),
            texts_N=np.empty(0, np.int64) if texts is None else np.asarray(texts.indices.to_numpy(), dtype=np.int64),
            has_image_N=np.asarray(pc.is_valid(table["thumbnail"]).to_numpy(), dtype=np.bool_),
            has_text_N=np.asarray(pc.not_equal(table["text"], "").to_numpy(), dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.pin_ids_N)


@dataclass(frozen=True)
class Measured:
    """What a measure says of each query: a value from 0 to 1, its row in the set, its creator. Each array is (Q,)."""

    values_Q: Values  # noqa: N815
    rows_Q: Ints  # noqa: N815
    creators_Q: Ints  # noqa: N815

    @property
    def mean(self) -> float:
        return float(self.values_Q.mean()) if len(self.values_Q) else float("nan")

    def only(self, rows_N: Bools) -> Measured:
        """The queries among these rows of the set."""
        kept_Q = rows_N[self.rows_Q]
        return Measured(self.values_Q[kept_Q], self.rows_Q[kept_Q], self.creators_Q[kept_Q])


# -- measures ------------------------------------------------------------------------------------------------------------------


def measure(
    pins: JudgedPins, fused_ND: Floats, image_ND: Floats | None = None, text_ND: Floats | None = None
) -> dict[str, Measured]:
    """Every one of MEASURES of an encoder; without those between image and text where the two have no common space."""
    figures = {
        BOARD_MATES: board_mate_recall(fused_ND, pins),
        BOARD_MATES_IN_TEST: board_mate_recall(fused_ND, pins, gallery=(TEST,)),
    }
    if image_ND is not None and text_ND is not None:
        figures |= {
            IMAGE_TO_TEXT_1: pair_recall(image_ND, text_ND, pins, k=1),
            IMAGE_TO_TEXT_5: pair_recall(image_ND, text_ND, pins, k=5),
            TEXT_TO_IMAGE_1: pair_recall(text_ND, image_ND, pins, k=1),
            TEXT_TO_IMAGE_5: pair_recall(text_ND, image_ND, pins, k=5),
        }
    return figures | {CATEGORY: category_accuracy(fused_ND, pins)}


def board_mate_recall(
    vectors_ND: Floats,
    pins: JudgedPins,
    *,
    asked_ND: Floats | None = None,
    split: str = TEST,
    gallery: Sequence[str] | None = None,
    k: int = NEAREST,
) -> Measured:
    """Of the board-mates of each pin of `split` (k of them at most), the share among its k nearest.

    The gallery is every pin of the set, or those of the splits in `gallery`, without the pin itself and its duplicate group.
    Asked is each pin that has a mate there. asked_ND: what the queries are asked with, if not with their row of vectors_ND.

    Pins 0 and 1 are on board 7, pin 2 is not. Pin 0 finds its mate first; pin 1, which is as near to both others, gets half:

    >>> pins = example_pins(boards=[7, 7, 8])
    >>> vectors = np.array([[1, 0], [0.8, 0.6], [0.28, 0.96]], np.float32)
    >>> board_mate_recall(vectors, pins, k=1).values_Q.tolist()
    [1.0, 0.5]
    """
    rows_G = np.flatnonzero(np.isin(pins.splits_N, list(gallery))) if gallery is not None else np.arange(len(pins))
    rows_Q, mates_Q = _with_mates(pins, split, rows_G)
    asked_QD = (vectors_ND if asked_ND is None else asked_ND)[rows_Q]
    hits_Q = np.zeros(len(rows_Q))
    for piece, scores_QG in _scores(asked_QD, vectors_ND[rows_G]):
        at = rows_Q[piece]
        scores_QG[pins.groups_N[at][:, None] == pins.groups_N[rows_G]] = -np.inf
        hits_Q[piece] = expected_hits(scores_QG, pins.boards_N[at][:, None] == pins.boards_N[rows_G], k)
    return Measured(hits_Q / np.minimum(mates_Q, k), rows_Q, pins.creators_N[rows_Q])


def has_queries(pins: JudgedPins, split: str = TEST) -> bool:
    """Whether any pin of `split` has a board-mate to find."""
    return len(_with_mates(pins, split, np.arange(len(pins)))[0]) > 0


def pair_recall(queries_ND: Floats, answers_ND: Floats, pins: JudgedPins, k: int, split: str = TEST) -> Measured:
    """How often a pin's own answer is among the k nearest of all answers: its text to its picture, or the reverse.

    Asked and answered are the rows of `pairs`. The first of these two finds its answer first, the second finds it second:

    >>> pins = example_pins(boards=[7, 7])
    >>> queries = np.array([[1, 0], [0.96, 0.28]], np.float32)
    >>> answers = np.array([[1, 0], [0.8, 0.6]], np.float32)
    >>> [pair_recall(queries, answers, pins, k=k).values_Q.tolist() for k in (1, 2)]
    [[1.0, 0.0], [1.0, 1.0]]
    """
    rows_Q = pairs(pins, split)
    values_Q = np.zeros(len(rows_Q))
    for piece, scores_QQ in _scores(queries_ND[rows_Q], answers_ND[rows_Q]):
        own_QQ = np.arange(len(rows_Q))[piece][:, None] == np.arange(len(rows_Q))
        values_Q[piece] = expected_hits(scores_QQ, own_QQ, k)
    return Measured(values_Q, rows_Q, pins.creators_N[rows_Q])


def pairs(pins: JudgedPins, split: str = TEST) -> Ints:
    """Rows of the pins of `split` with picture and text: the first of each duplicate group, then of each distinct text.

    Otherwise a picture with two names, or a name of two pictures, would have right answers that count as wrong.
    """
    rows = np.flatnonzero((pins.splits_N == split) & pins.has_image_N & pins.has_text_N)
    rows = rows[np.argsort(pins.pin_ids_N[rows], kind="stable")]
    for numbers_N in (pins.groups_N, pins.texts_N):
        rows = rows[np.sort(np.unique(numbers_N[rows], return_index=True)[1])]
    return rows


def category_accuracy(vectors_ND: Floats, pins: JudgedPins, split: str = TEST, k: int = VOTERS) -> Measured:
    """How often the k nearest training pins vote for a pin's own category; of equal votes the nearer wins.

    Pins of unknown category neither ask nor vote. Two votes for b outweigh the nearer a:

    >>> pins = example_pins(categories=["b", "a", "b", "b"], splits=["test", "train", "train", "train"])
    >>> vectors = np.array([[1, 0], [1, 0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    >>> [category_accuracy(vectors, pins, k=k).mean for k in (1, 2, 3)]
    [0.0, 0.0, 1.0]
    """
    _, labels_N = np.unique(pins.categories_N, return_inverse=True)
    known_N = pins.categories_N != UNKNOWN_CATEGORY
    rows_Q = np.flatnonzero(known_N & (pins.splits_N == split))
    rows_G = np.flatnonzero(known_N & (pins.splits_N == TRAIN))
    values_Q = np.zeros(len(rows_Q))
    for piece, scores_QG in _scores(vectors_ND[rows_Q], vectors_ND[rows_G]):
        votes_QK = _labels_of_nearest(scores_QG, labels_N[rows_G], k)
        counts_QK = ((votes_QK[:, :, None] == votes_QK[:, None, :]) & (votes_QK >= 0)[:, :, None]).sum(axis=2)
        # The first of the largest counts is the nearest of the labels that have it.
        elected_Q = votes_QK[np.arange(len(votes_QK)), counts_QK.argmax(axis=1)] if votes_QK.shape[1] else -1
        values_Q[piece] = elected_Q == labels_N[rows_Q][piece]
    return Measured(values_Q, rows_Q, pins.creators_N[rows_Q])


def expected_hits(scores_QG: Floats, relevant_QG: Bools, k: int) -> Values:
    """How many relevant ones are among the k largest scores of each row; (Q,). Scores of -inf are never among them.

    Those that tie at the last place share the places left, which is what an order by chance gives in the mean.

    >>> scores = np.array([[0.9, 0.5, 0.5, 0.1]], np.float32)
    >>> [expected_hits(scores, np.array([[True, True, False, True]]), k).tolist() for k in (1, 2, 3, 9)]
    [[1.0], [1.5], [2.0], [3.0]]
    """
    k = min(k, scores_QG.shape[1])
    if not k:
        return np.zeros(len(scores_QG))
    last_Q1 = np.partition(scores_QG, -k, axis=1)[:, -k][:, None]
    above_QG = scores_QG > last_Q1 + np.float32(_TIE)
    tied_QG = (scores_QG >= last_Q1 - np.float32(_TIE)) & ~above_QG & np.isfinite(scores_QG)
    places_Q = k - above_QG.sum(axis=1)
    share_Q = np.minimum(places_Q / np.maximum(tied_QG.sum(axis=1), 1), 1.0)
    hits_Q: Values = (above_QG & relevant_QG).sum(axis=1) + share_Q * (tied_QG & relevant_QG).sum(axis=1)
    return hits_Q


def prefix(vectors_ND: Floats, dimensions: int) -> Floats:
    """The first dimensions of nested unit vectors, as unit rows again; rows of zeros stay.

    >>> prefix(np.array([[0.6, 0.0, 0.8]], np.float32), 2).tolist()
    [[1.0, 0.0]]
    """
    if not 0 < dimensions <= vectors_ND.shape[1]:
        raise ValueError(f"vectors of {vectors_ND.shape[1]} dimensions have no prefix of {dimensions}")
    return vectors_ND if dimensions == vectors_ND.shape[1] else unit(vectors_ND[:, :dimensions])


def unit(vectors_ND: npt.NDArray[Any]) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.where(norms_N1 > 0, norms_N1, 1.0), dtype=np.float32)


def _scores(queries_QD: Floats, gallery_GD: Floats) -> Iterator[tuple[slice, Floats]]:
    """The cosines a piece of queries at a time; -inf where one of the two has no vector."""
    absent_G, absent_Q = _absent(gallery_GD), _absent(queries_QD)
    size = max(1, _SCORES_A_PIECE // max(1, len(gallery_GD)))
    for start in range(0, len(queries_QD), size):
        piece = slice(start, min(start + size, len(queries_QD)))
        scores_QG = queries_QD[piece] @ gallery_GD.T
        scores_QG[:, absent_G] = -np.inf
        scores_QG[absent_Q[piece]] = -np.inf
        yield piece, scores_QG


def _absent(vectors_ND: Floats) -> Bools:
    return np.asarray((vectors_ND == 0).all(axis=1), dtype=np.bool_)


def _with_mates(pins: JudgedPins, split: str, rows_G: Ints) -> tuple[Ints, Ints]:
    """The pins of `split` with board-mates in the gallery that are not of their duplicate group, and how many those are."""
    rows_Q = np.flatnonzero((pins.splits_N == split) & (pins.boards_N != NO_BOARD))
    on_board = Counter(pins.boards_N[rows_G].tolist())
    of_group = Counter(zip(pins.boards_N[rows_G].tolist(), pins.groups_N[rows_G].tolist(), strict=True))
    keys = zip(pins.boards_N[rows_Q].tolist(), pins.groups_N[rows_Q].tolist(), strict=True)
    mates_Q = np.array([on_board[board] - of_group[board, group] for board, group in keys], np.int64)
    return rows_Q[mates_Q > 0], mates_Q[mates_Q > 0]


def _labels_of_nearest(scores_QG: Floats, labels_G: Ints, k: int) -> Ints:
    """Labels of the k largest scores of each row, largest first; -1 for none. Uses up the scores."""
    everyone = np.arange(len(scores_QG))
    labels_QK = np.full((len(scores_QG), min(k, len(labels_G))), -1, np.int64)
    for place in range(labels_QK.shape[1]):
        best_Q = scores_QG.argmax(axis=1)
        exists_Q = np.isfinite(scores_QG[everyone, best_Q])
        labels_QK[exists_Q, place] = labels_G[best_Q[exists_Q]]
        scores_QG[everyone, best_Q] = -np.inf
    return labels_QK


# -- intervals -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much larger one mean is than another, relative to that other (0.3 is 30% more), with the 95% interval.

    absolute: the same, not relative. Relative figures are infinite where the other mean is 0.
    """

    relative: float
    low: float
    high: float
    absolute: Estimate

    @property
    def is_above(self) -> bool:
        """Larger, with the interval clear of zero."""
        return self.absolute.low > 0

    @property
    def is_below(self) -> bool:
        """Smaller, with the interval clear of zero."""
        return self.absolute.high < 0


def estimate(measured: Measured, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """The mean over all queries, and its interval by resampling creators with all their queries.

    >>> estimate(Measured(np.array([0.5, 0.5, 0.5]), np.arange(3), np.array([1, 1, 2])))
    Estimate(value=0.5, low=0.5, high=0.5)
    """
    sums_C, queries_C = _by_creator(measured.values_Q, measured.creators_Q)
    weights_RC = _resampled(len(sums_C), resamples, seed)
    return _estimate(measured.mean, _means(weights_RC, sums_C, queries_C))


def difference(a: Measured, b: Measured, resamples: int = RESAMPLES, seed: int = SEED) -> Difference:
    """How much larger the mean of `a` is than that of `b`, over the same queries: paired, so a hard query is hard for both.

    Raises ValueError if the queries differ.

    >>> queries = {"rows_Q": np.arange(2), "creators_Q": np.array([1, 2])}
    >>> found = difference(Measured(np.array([0.6, 0.9]), **queries), Measured(np.array([0.4, 0.6]), **queries))
    >>> print(f"{found.relative:+.0%} ({found.low:+.0%} to {found.high:+.0%}), {found.absolute.value:+.2f}")
    +50% (+50% to +50%), +0.25
    """
    if not np.array_equal(a.rows_Q, b.rows_Q) or not np.array_equal(a.creators_Q, b.creators_Q):
        raise ValueError(f"only the same queries compare: {len(a.rows_Q)} of one, {len(b.rows_Q)} of the other")
    sums_C, queries_C = _by_creator(a.values_Q, a.creators_Q)
    others_C, _ = _by_creator(b.values_Q, b.creators_Q)
    weights_RC = _resampled(len(sums_C), resamples, seed)
    mean_a_R, mean_b_R = (_means(weights_RC, part_C, queries_C) for part_C in (sums_C, others_C))
    relative = _estimate(_relative(np.array([a.mean]), np.array([b.mean])).item(), _relative(mean_a_R, mean_b_R))
    return Difference(relative.value, relative.low, relative.high, _estimate(a.mean - b.mean, mean_a_R - mean_b_R))


def json_values(found: Estimate | Difference) -> dict[str, Any]:
    """The figures for JSON, which has no word for what is infinite or undefined: null.

    >>> json_values(Difference(np.inf, 0.5, np.inf, Estimate(0.1, 0.0, 0.2)))
    {'relative': None, 'low': 0.5, 'high': None, 'absolute': {'value': 0.1, 'low': 0.0, 'high': 0.2}}
    """
    return {
        name: json_values(value) if isinstance(value, Estimate) else value if np.isfinite(value) else None
        for name, value in vars(found).items()
    }


def _by_creator(values_Q: Values, creators_Q: Ints) -> tuple[Values, Values]:
    """The sum of the values and the number of queries of each creator; (C,)."""
    _, creator_of_Q = np.unique(creators_Q, return_inverse=True)
    sums_C = np.bincount(creator_of_Q, weights=values_Q).astype(np.float64)
    return sums_C, np.bincount(creator_of_Q).astype(np.float64)


def _resampled(creators: int, resamples: int, seed: int) -> Values:
    """How often each creator is drawn in each resample; (R, C)."""
    if not creators:
        return np.zeros((resamples, 0))
    drawn_RC = np.random.default_rng(seed).multinomial(creators, np.full(creators, 1 / creators), size=resamples)
    return drawn_RC.astype(np.float64)


def _means(weights_RC: Values, sums_C: Values, queries_C: Values) -> Values:
    """The mean of each resample; no number where there is no query."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights_RC @ sums_C) / (weights_RC @ queries_C), dtype=np.float64)


def _relative(a_R: Values, b_R: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a_R == b_R, 0.0, (a_R - b_R) / b_R)


def _estimate(value: float, draws_R: Values) -> Estimate:
    outside = (1 - CONFIDENCE) / 2
    # The nearest draw, not a mean of two: between two infinite ones there is none.
    low, high = np.quantile(draws_R, [outside, 1 - outside], method="closest_observation")
    return Estimate(float(value), float(low), float(high))


# -- examples ------------------------------------------------------------------------------------------------------------------


def example_pins(
    boards: Sequence[int] = (),
    categories: Sequence[str] = (),
    splits: Sequence[str] = (),
    creators: Sequence[int] = (),
    groups: Sequence[int] = (),
    texts: Sequence[int] = (),
) -> JudgedPins:
    """A few pins for examples and tests: of the test split, each with picture, text, creator and duplicate group of its own."""
    count = max(map(len, (boards, categories, splits, creators, groups, texts)))
    numbers = range(count)
    return JudgedPins(
        pin_ids_N=np.arange(count, dtype=np.int64),
        creators_N=np.array(creators or numbers, np.int64),
        boards_N=np.array(boards or [NO_BOARD] * count, np.int64),
        categories_N=np.array(categories or [UNKNOWN_CATEGORY] * count, np.str_),
        splits_N=np.array(splits or [TEST] * count, np.str_),
        groups_N=np.array(groups or numbers, np.int64),
        texts_N=np.array(texts or numbers, np.int64),
        has_image_N=np.ones(count, np.bool_),
        has_text_N=np.ones(count, np.bool_),
    )
