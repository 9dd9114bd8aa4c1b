"""How benchmarks/taste.py judges: what is known of each user, what is asked for, and what a method finds of it.

Symbols: U users, I items.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.taste.interests import Floats, Ids

RESAMPLES = 2_000
MEASURES = ("recall_at_10", "recall_at_50", "ndcg_at_10")

log = logging.getLogger("pinlake")


@dataclass(frozen=True, eq=False)
class Split:
    """Of each user what is known, in the order of time, and which items are asked for (none: the user is not judged).

    hidden: Items that are no candidates for a user: what is known, and what is nearly the same. minutes: When each known item
    was taken, since 1970.
    """

    histories: list[Ids]
    asked: list[Ids]
    hidden: list[Ids]
    items: int
    minutes: list[Ids]

    @property
    def matrix(self) -> Floats:
        """1 where a user is known to have an item (U, I)."""
        found = np.zeros((len(self.histories), self.items), np.float32)
        for user, history in enumerate(self.histories):
            found[user, history] = 1
        return found


@dataclass(frozen=True)
class Method:
    """Settings by name, each with the scores (U, I) that it gives. Of `several`, one is chosen on another split."""

    name: str
    settings: Callable[[Split], Iterator[tuple[str, Floats]]]
    several: bool = True


@dataclass(frozen=True, eq=False)
class Result:
    """What a method found on one draw, of each user (U,), NaN for who is not judged; and of all lists of ten together."""

    setting: str
    recall_at_10: Floats
    recall_at_50: Floats
    ndcg_at_10: Floats
    coverage: float
    diversity: float


def ranks_of(split: Split, scores_UI: Floats) -> list[NDArray[np.float64]]:
    """The places of each user's items asked for among the candidates, from 0; of equal ones the middle."""
    found = []
    for user, asked in enumerate(split.asked):
        scores = scores_UI[user].astype(np.float64)
        scores[split.hidden[user]] = -np.inf
        own = scores[asked][:, None]
        found.append((scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) // 2.0)
    return found


def _shares(ranks: Sequence[NDArray[np.float64]], top: int) -> Floats:
    """Of what is asked the share among the first `top`, of which no more than `top` can be (U,)."""
    return np.array([(r < top).sum() / min(top, len(r)) if len(r) else np.nan for r in ranks], np.float32)


def _gains(ranks: Sequence[NDArray[np.float64]]) -> Floats:
    """nDCG@10 (U,)."""
    ideal = np.cumsum(1 / np.log2(np.arange(10) + 2))
    found = [(1 / np.log2(r[r < 10] + 2)).sum() / ideal[min(10, len(r)) - 1] if len(r) else np.nan for r in ranks]
    return np.array(found, np.float32)


def judged(split: Split, setting: str, scores_UI: Floats, cosines_II: Floats) -> Result:
    """What scores find. Diversity is by the items' cosines."""
    ranks = ranks_of(split, scores_UI)
    scores = scores_UI.copy()
    for user, hidden in enumerate(split.hidden):
        scores[user, hidden] = -np.inf
    top = np.argsort(-scores, axis=1, kind="stable")[[bool(len(asked)) for asked in split.asked], :10]
    pairs = cosines_II[top[:, :, None], top[:, None, :]]
    alike = (pairs.sum(axis=(1, 2)) - np.trace(pairs, axis1=1, axis2=2)) / 90
    return Result(
        setting,
        _shares(ranks, 10),
        _shares(ranks, 50),
        _gains(ranks),
        len(np.unique(top)) / split.items,
        float(1 - alike.mean()),
    )


def chosen(method: Method, validation: Split) -> str | None:
    """The setting that is best by recall@10, then @50; None where there is but one."""
    if not method.several:
        return None
    found = {}
    for name, scores in method.settings(validation):
        ranks = ranks_of(validation, scores)
        found[name] = float(np.nanmean(_shares(ranks, 10))), float(np.nanmean(_shares(ranks, 50)))
    return max(found, key=lambda name: found[name])


def contest(methods: Sequence[Method], validation: Split, test: Split, cosines_II: Floats) -> dict[str, Result]:
    """Every method, its setting chosen on one split, judged on the other."""
    found = {}
    best = {method.name: chosen(method, validation) for method in methods}
    for method in methods:
        wanted = best[method.name]
        setting, scores = next((name, scores) for name, scores in method.settings(test) if wanted in (None, name))
        found[method.name] = judged(test, setting, scores, cosines_II)
        log.info("%s (%s): recall@10 %.4f", method.name, setting, float(np.nanmean(found[method.name].recall_at_10)))
    return found


# -- figures ---------------------------------------------------------------------------------------------------------------


def _resampled(users: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, users, (RESAMPLES, users))


def of_users(results: Sequence[Result], measure: str) -> Floats:
    """A measure of each judged user, the mean over the draws."""
    values = np.stack([getattr(result, measure) for result in results])
    means: Floats = np.nanmean(values[:, ~np.isnan(values).all(axis=0)], axis=0)
    return means


def figures_of(results: Sequence[Result]) -> dict[str, Any]:
    """Means over users and draws; intervals by a bootstrap over users."""
    figures: dict[str, Any] = {}
    for measure in MEASURES:
        values = of_users(results, measure)
        samples = values[_resampled(len(values))].mean(axis=1)
        figures[measure] = float(values.mean())
        figures[f"{measure}_interval"] = [float(np.percentile(samples, share)) for share in (2.5, 97.5)]
    return figures | {
        "users": len(of_users(results, MEASURES[0])),
        "coverage": float(np.mean([result.coverage for result in results])),
        "diversity": float(np.mean([result.diversity for result in results])),
        "settings": [result.setting for result in results],
    }


def ratio_of(one: Sequence[Result], other: Sequence[Result], measure: str = "recall_at_10") -> tuple[float, float, float]:
    """A measure of one over the other's, with the 95% interval of a paired bootstrap over users."""
    a, b = of_users(one, measure), of_users(other, measure)
    rows = _resampled(len(a))
    ratios = a[rows].mean(axis=1) / np.maximum(1e-9, b[rows].mean(axis=1))
    return float(a.mean() / max(1e-9, b.mean())), float(np.percentile(ratios, 2.5)), float(np.percentile(ratios, 97.5))
