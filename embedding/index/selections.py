"""How a finished index is searched among some of the pins, where they are too many to compare: measured by the build.

Two selections are tried, half and a tenth of the pins, by a hash of the id. Their true neighbours need no search of their own:
they are those of a search over all, as far as that went.
"""

from __future__ import annotations

import math

import numpy as np

from embedding.index.factory import SearchSetting
from embedding.index.lists import SelectionPoint, SelectionSetting
from embedding.index.part import is_among
from embedding.index.recall import Floats, Ids, Truth
from embedding.index.shards import COMPARED_BELOW, RowSelection, Shards
from embedding.index.tuning import TOP, Wanted, omp_threads

SHARES = (0.5, 0.1)
_CLOSER_STEPS = 2
_WIDER_STEPS = 3


def tune_selections(
    shards: Shards, queries_QD: Floats, pin_ids: Ids, near: tuple[Floats, Ids], setting: SearchSetting, wanted: Wanted
) -> list[SelectionPoint]:
    """The least rows that reach the goal beyond doubt (`SearchPoint.recall_low`), by share; none where nothing needs it.

    Args:
        shards: Opened without measurements.
        pin_ids: The pins (Q,) that the queries are; -1 for a query that is no pin.
        near: Scores and ids (Q, M) of an exact search over all pins, M at least thirty times the neighbours wanted: of a
            tenth of the pins that leaves as many as are wanted to all but one query in a million.
    """
    found: list[SelectionPoint] = []
    for share in SHARES:
        if shards.listed and share * len(shards) > COMPARED_BELOW:
            mine = spread(shards.pin_ids, share)
            inside = is_among(near[1], mine)
            scores, ids = np.where(inside, near[0], -np.inf).astype(np.float32), np.where(inside, near[1], -1)
            truth = Truth.of(scores, ids, pin_ids, TOP)
            with omp_threads(wanted.threads):
                found.append(_least_rows(shards, queries_QD, truth, setting, shards.select(mine), wanted.recall_goal))
    return found


def spread(ids: Ids, share: float) -> Ids:
    """About a share of ascending ids, chosen by a hash."""
    mixed = (ids.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)) >> np.uint64(40)
    return ids[mixed % np.uint64(1_000) < np.uint64(round(1_000 * share))]


def _least_rows(
    shards: Shards,
    queries_QD: Floats,
    truth: Truth,
    setting: SearchSetting,
    among: RowSelection,
    goal: float,
) -> SelectionPoint:
    def measured(rows: int, k_factor: int) -> tuple[SelectionPoint, bool]:
        how = SelectionSetting(rows, k_factor)
        _, ids = shards.search(queries_QD, TOP + 1, setting, among, how)
        return SelectionPoint(round(among.share, 4), how, round(truth.recall(ids), 4)), truth.recall_low(ids) >= goal

    least = shards.selection_setting(setting, among)
    # Where seeing all rows is not enough, the codes rank what is compared in full too badly: more of it has to be.
    for k_factor in (least.k_factor << i for i in range(_WIDER_STEPS)):
        under, rows = 0, min(least.rows_seen, len(among))
        best, enough = measured(rows, k_factor)
        while not enough and rows < len(among):
            under, rows = rows, min(2 * rows, len(among))
            best, enough = measured(rows, k_factor)
        if enough:
            break
    for _ in range(_CLOSER_STEPS if under and enough else 0):
        closer, reached = measured(round(math.sqrt(under * best.setting.rows_seen)), best.setting.k_factor)
        under, best = (under, closer) if reached else (closer.setting.rows_seen, best)
    return best
