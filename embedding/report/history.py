"""Figures over time as inline SVG: recall, a point a release with its interval; any other, a point a day with its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedding.index.tuning import RECALL_GOAL
from embedding.report.charts import (
    HEIGHT,
    PLOT_LEFT,
    PLOT_RIGHT,
    Format,
    figure,
    label,
    nice_axis,
    px,
    recall_axis,
    y_axis,
    y_of,
)
from embedding.report.markup import Html, element, fragment

MOST = 30
"""Releases on the chart; the table has them all."""
_LABEL_WIDTH = 46


def recall_over_time(rows: Sequence[dict[str, Any]], live: str | None) -> Html | None:
    """recall@10 of the last releases by when they were built, the 95% interval as a whisker. None where there is no row."""
    shown = list(rows)[-MOST:]
    if not shown:
        return None
    goal = shown[-1]["recall_goal"] or RECALL_GOAL
    lows = [row["recall_low"] if row["recall_low"] is not None else row["recall_at_10"] for row in shown]
    low, step = recall_axis(min([goal, *lows]))
    places = _places(len(shown))
    goal_y = px(y_of(goal, 1.0, low))
    path = " ".join(f"{px(x)},{px(y_of(row['recall_at_10'], 1.0, low))}" for x, row in zip(places, shown, strict=True))
    drawing = [
        y_axis(1.0, step, lambda tick: f"{tick:.2f}", low),
        element("line", x1=PLOT_LEFT, x2=PLOT_RIGHT, y1=goal_y, y2=goal_y, class_="goal"),
        element("polyline", points=path, class_="curve"),
        *(_release(row, x, low, row["release_id"] == live) for x, row in zip(places, shown, strict=True)),
        _days([row["ds"] for row in shown], places),
    ]
    last = shown[-1]
    described = f"{len(shown)} releases; the last, {last['release_id']}, {last['recall_at_10']:.4f}; goal {goal:g}"
    legend = [(f"goal {goal:g}", "goal"), ("live", "chosen"), ("95% interval", "whisker")]
    return figure("Recall@10 over time", described, drawing, legend)


def _release(row: dict[str, Any], x: float, low: float, live: bool) -> Html:
    recall, interval = row["recall_at_10"], (row["recall_low"], row["recall_high"])
    said = f"{row['release_id']}: recall {recall:.4f}, {row['rows']:,} pins, {row['status']}"
    whisker = None
    if None not in interval:
        ends = [px(y_of(value, 1.0, low)) for value in interval]
        said += f", 95% interval {interval[0]:.4f} to {interval[1]:.4f}"
        whisker = element("line", x1=px(x), x2=px(x), y1=ends[0], y2=ends[1], class_="whisker")
    kind = "point chosen" if live else "point bad" if row["status"] == "failed" else "point"
    circle = element("circle", cx=px(x), cy=px(y_of(recall, 1.0, low)), r=6 if live else 3.5, class_=kind)
    return fragment(whisker, element("g", element("title", said), circle))


@dataclass(frozen=True)
class DayPoint:
    """A day's figure, a sentence for who points at it, and from where to where the gate would have let it through."""

    ds: str
    value: float
    said: str
    bounds: tuple[float, float] | None = None
    bad: bool = False


def over_days(title: str, points: Sequence[DayPoint], show: Format) -> Html:
    """A line over at least one day, from zero."""
    ends = [point.bounds[1] for point in points if point.bounds]
    top, step = nice_axis(max([*ends, *(point.value for point in points)]))
    places = _places(len(points))
    path = " ".join(f"{px(x)},{px(y_of(point.value, top))}" for x, point in zip(places, points, strict=True))
    drawing = [
        y_axis(top, step, show),
        element("polyline", points=path, class_="curve"),
        *(_day_point(point, x, top) for x, point in zip(places, points, strict=True)),
        _days([point.ds for point in points], places),
    ]
    described = f"{len(points)} days; the last, {points[-1].ds}, {show(points[-1].value)}"
    return figure(title, described, drawing, [("let through", "whisker")] if ends else [])


def _day_point(point: DayPoint, x: float, top: float) -> Html:
    y = y_of(point.value, top)
    whisker = None
    if point.bounds:
        low, high = (px(y_of(end, top)) for end in point.bounds)
        whisker = element("line", x1=px(x), x2=px(x), y1=low, y2=high, class_="whisker")
    circle = element("circle", cx=px(x), cy=px(y), r=3.5, class_="point bad" if point.bad else "point")
    return fragment(whisker, element("g", element("title", point.said), circle))


def _places(count: int) -> list[float]:
    """The middles of so many slots across the plot."""
    slot = (PLOT_RIGHT - PLOT_LEFT) / count
    return [PLOT_LEFT + slot * (number + 0.5) for number in range(count)]


def _days(days: Sequence[str], places: Sequence[float]) -> Html:
    """The days below the axis: where there is no room for all, the last and every n-th before it."""
    every = max(1, round(_LABEL_WIDTH * len(days) / (PLOT_RIGHT - PLOT_LEFT)))
    last = len(days) - 1
    return fragment(
        [
            label(x, HEIGHT - 8, ds[5:])
            for number, (ds, x) in enumerate(zip(days, places, strict=True))
            if (last - number) % every == 0
        ]
    )
