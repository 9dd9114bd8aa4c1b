"""How a cost grows with rows: what starting takes, and the exponent of what comes on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

LINEAR_WITHIN = 0.1
CLEAR = 0.25
"""Of the smallest size's cost: what a larger size must cost more, for an exponent to be told from noise."""


@dataclass(frozen=True)
class Growth:
    """cost = fixed + a_row x rows ^ exponent, about.

    exponent: None where too few sizes cost clearly more than the smallest one.
    a_row: Cost of one more row, between the smallest and the largest size.
    most_a_row: The same, were all that sizes differ by due to their rows: where cost hardly grows, noise hides no more.
    """

    fixed: float
    a_row: float
    most_a_row: float
    exponent: float | None

    @property
    def verdict(self) -> str:
        if self.exponent is None:
            return "too few sizes tell"
        if abs(self.exponent - 1) <= LINEAR_WITHIN:
            return "linear"
        return "below linear" if self.exponent < 1 else "above linear"

    def at(self, rows: float) -> float:
        """The cost of so many rows where each one more costs as those that were measured."""
        return self.fixed + self.a_row * rows


def fit(costs: Mapping[int, float]) -> Growth:
    """The growth of costs by rows, of two sizes at least.

    Start-up cancels out where the smallest size's cost is subtracted, from costs and from rows: of c = f + b n, ten times the
    other rows are then ten times the other cost, whatever f is. The exponent is the slope of a line through the logarithms of
    these differences, which noise in small ones bends most: those below CLEAR of the smallest size's cost are left out, but for
    the largest.
    """
    if len(costs) < 2:
        raise ValueError("one size says nothing of growth")
    sizes = sorted(costs)
    least = sizes[0]
    more = {size: costs[size] - costs[least] for size in sizes[1:]}
    a_row = more[sizes[-1]] / (sizes[-1] - least)
    fixed = max(0.0, costs[least] - a_row * least)
    clear = [size for size in more if more[size] > CLEAR * costs[least]]
    exponent = None
    if len(clear) > 1:
        exponent = _slope([math.log(size - least) for size in clear], [math.log(more[size]) for size in clear])
    most_a_row = (max(costs.values()) - min(costs.values())) / (sizes[-1] - least)
    return Growth(fixed, max(0.0, a_row), most_a_row, exponent)


def steepest(costs: Mapping[int, float]) -> float:
    """The exponent of the whole cost, start-up in it, from one size to the next where it is largest.

    It finds a step, where a program takes another way beyond some size: `fit` does not, if only sizes beyond the step tell.
    """
    return max(math.log(costs[large] / costs[small]) / math.log(large / small) for small, large in pairwise(sorted(costs)))


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    along = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / along
