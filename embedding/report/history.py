"""Recall over time, from the table `releases`: a point a release with its interval, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedding.index.tuning import RECALL_GOAL
from embedding.report.charts import HEIGHT, PLOT_LEFT, PLOT_RIGHT, figure, label, px, recall_axis, y_axis, y_of
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
    slot = (PLOT_RIGHT - PLOT_LEFT) / len(shown)
    places = [PLOT_LEFT + slot * (number + 0.5) for number in range(len(shown))]
    goal_y = px(y_of(goal, 1.0, low))
    path = " ".join(f"{px(x)},{px(y_of(row['recall_at_10'], 1.0, low))}" for x, row in zip(places, shown, strict=True))
    every = max(1, round(_LABEL_WIDTH / slot))
    drawing = [
        y_axis(1.0, step, lambda tick: f"{tick:.2f}", low),
        element("line", x1=PLOT_LEFT, x2=PLOT_RIGHT, y1=goal_y, y2=goal_y, class_="goal"),
        element("polyline", points=path, class_="curve"),
        *(_release(row, x, low, row["release_id"] == live) for x, row in zip(places, shown, strict=True)),
        *(
            label(x, HEIGHT - 8, row["ds"][5:])
            for number, (x, row) in enumerate(zip(places, shown, strict=True))
            if (len(shown) - 1 - number) % every == 0
        ),
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
