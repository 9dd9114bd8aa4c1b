"""Charts as inline SVG: stacked bars a night, and recall against latency, throughput and size. Numbers in, markup out.

Colours are CSS classes, so that light and dark mode share one drawing. Every chart has an accessible name and description,
and a tooltip (`<title>`) for each mark. The drawing is small on purpose: at a phone's width it is scaled by little, and its
labels stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedding.index.factory import SearchSetting, family_of
from embedding.index.tuning import Choice, SearchPoint
from embedding.report.markup import Html, element, fragment

WIDTH, HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 16, 26
PLOT_LEFT, PLOT_RIGHT = _LEFT, WIDTH - _RIGHT
"""Where a chart's drawing begins and ends, right of its y axis."""
_LABEL_WIDTH = 40
_MIN_VISIBLE = 1.5
_MIN_BARS_TO_BREAK, _DWARFS = 4, 3.0
_MAX_LABELLED_BARS = 10
_CROWD = 1_000.0
_CHAR_WIDTH, _LINE_HEIGHT = 6.2, 13.0

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One colour of a stacked chart; `kind` is its CSS class, None a value that is not known."""

    name: str
    kind: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Bar:
    """One place on the x axis: its short label, its full name, and whether it is to be marked as bad."""

    label: str
    name: str
    bad: bool = False


def stacked_bars(title: str, bars: Sequence[Bar], series: Sequence[Series], show: Format) -> Html:
    """A bar for each night, its series stacked from zero; a legend where there is more than one."""
    totals = [sum(one.values[i] or 0.0 for one in series) for i in range(len(bars))]
    top, step = nice_axis(_worth_showing(totals))
    drawing = [y_axis(top, step, show), *(_bar(i, bars, series, totals, top, show) for i in range(len(bars)))]
    names = ", ".join(one.name for one in series)
    described = f"{names}; from {bars[0].name} to {bars[-1].name}, at most {show(max(totals))}" if bars else "no nights"
    return figure(title, described, drawing, [(one.name, one.kind) for one in series] if len(series) > 1 else [])


def nice_axis(largest: float, ticks: int = 4) -> tuple[float, float]:
    """(end of the axis, distance of its ticks): 1, 2 or 5 times a power of ten.

    >>> nice_axis(37.0)
    (40.0, 10.0)
    """
    if largest <= 0:
        return 1.0, 1.0
    raw = largest / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return step * math.ceil(largest / step - 1e-9), step


def _worth_showing(totals: Sequence[float]) -> float:
    """The largest value that the axis must hold. One that dwarfs all others (the first load of a lake) does not count: its
    bar is broken, so that the ordinary nights can be told apart."""
    largest, second = [*sorted(totals, reverse=True), 0.0, 0.0][:2]
    return 1.1 * second if len(totals) >= _MIN_BARS_TO_BREAK and largest > _DWARFS * second > 0 else largest


def figure(
    title: str,
    description: str,
    drawing: Sequence[Html],
    legend: Sequence[tuple[str, str]],
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Html:
    """A drawing with its heading and its legend of (name, CSS class)."""
    key = element("ul", [element("li", element("i", class_=f"swatch {kind}"), name) for name, kind in legend], class_="legend")
    svg = element(
        "svg",
        element("title", title),
        element("desc", description),
        drawing,
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=f"{title}: {description}",
    )
    return element("figure", element("figcaption", element("h3", title), key if legend else None), svg, class_="chart card")


def label(x: float, y: float, words: str, anchor: str = "middle", kind: str | None = None) -> Html:
    """Words at a place of the drawing."""
    return element("text", words, x=px(x), y=px(y), text_anchor=anchor, class_=kind)


def px(value: float) -> str:
    """A coordinate as SVG has it, to a tenth.

    >>> px(12.0), px(0.25)
    ('12', '0.2')
    """
    return f"{value:.1f}".removesuffix(".0")


def y_of(value: float, top: float, low: float = 0.0) -> float:
    """Where a value lies on an axis from `low` to `top`."""
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (top - low))


def y_axis(top: float, step: float, show: Format, low: float = 0.0) -> Html:
    """Lines and numbers from `low` to `top`."""
    ticks = [low + i * step for i in range(round((top - low) / step) + 1)]
    lines = [
        fragment(
            element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=px(y_of(t, top, low)), y2=px(y_of(t, top, low)), class_="grid"),
            label(_LEFT - 6, y_of(t, top, low) + 4, show(t), "end"),
        )
        for t in ticks
    ]
    return fragment(lines)


def _bar(i: int, bars: Sequence[Bar], series: Sequence[Series], totals: Sequence[float], top: float, show: Format) -> Html:
    slot = (WIDTH - _LEFT - _RIGHT) / len(bars)
    width = min(slot * 0.72, 34.0)
    middle = _LEFT + slot * (i + 0.5)
    parts, base = [], y_of(0, top)
    broken = totals[i] > top * (1 + 1e-9)
    scale = top / totals[i] if broken else 1.0
    for one in series:
        value = one.values[i]
        if not value:
            continue
        # A handful of quarantined pins beside thousands would be thinner than a line: it has to be seen.
        tall = max(_MIN_VISIBLE, y_of(0, top) - y_of(value * scale, top))
        base -= tall
        box = element("rect", x=px(middle - width / 2), y=px(base), width=px(width), height=px(tall), class_=one.kind)
        parts.append(element("g", element("title", f"{bars[i].name}: {one.name} {show(value)}"), box))
    known = any(one.values[i] is not None for one in series)
    if broken:
        parts += [_break(middle, width), label(middle - width / 2, base - 4, show(totals[i]), "start", "value")]
    elif len(bars) <= _MAX_LABELLED_BARS:
        parts.append(label(middle, base - 4, show(totals[i]) if known else "–", kind="value"))
    return fragment(parts, _bar_label(i, bars, middle, slot))


def _break(middle: float, width: float) -> Html:
    """Two slanted gaps across a bar that is taller than the axis."""
    left, right = px(middle - width / 2 - 2), px(middle + width / 2 + 2)
    heights = (_TOP + 18, _TOP + 24)
    return fragment([element("line", x1=left, x2=right, y1=y + 3, y2=y - 3, class_="break") for y in heights])


def _bar_label(i: int, bars: Sequence[Bar], middle: float, slot: float) -> Html | None:
    """The label below a bar. Where there is no room for all, the last night and every n-th before it keep theirs."""
    every = max(1, math.ceil(_LABEL_WIDTH / slot))
    if (len(bars) - 1 - i) % every:
        return None
    words = f"✕ {bars[i].label}" if bars[i].bad and every == 1 else bars[i].label
    return label(min(middle, WIDTH - _LABEL_WIDTH / 2 + 3), HEIGHT - 8, words, kind="bad" if bars[i].bad else None)


def recall_against_latency(sweep: Sequence[SearchPoint], chosen: SearchSetting, goal: float) -> Html:
    """A release's sweep: recall@10 against the median time of a query (log axis), with whiskers to its 99th percentile."""
    dots = [
        Dot(
            point.p50_ms,
            point.recall_at_10,
            point.setting.short,
            f"{point.setting}: recall {point.recall_at_10:.4f}, p50 {point.p50_ms:.3f} ms, p99 {point.p99_ms:.3f} ms",
            point.setting == chosen,
            reaches=point.p99_ms,
        )
        for point in sweep
    ]
    best = next((point for point in sweep if point.setting == chosen), sweep[-1])
    described = f"chosen: {best.setting}, recall {best.recall_at_10:.4f} at {best.p50_ms:.3f} ms; goal {goal}"
    legend = [(f"goal {goal}", "goal"), (f"chosen: {best.setting}", "chosen"), ("up to the 99th percentile", "whisker")]
    return _recall_chart("Recall@10 against milliseconds a query", described, dots, goal, legend, joined=True)


def recipes_against(choice: Choice, unit: str) -> Html:
    """The recipes that were tried: recall@10 against queries a second or bytes a vector (log axis), as `unit` says."""
    dots = []
    for trial in choice.trials:
        x = trial.point.qps if unit == "queries a second" else trial.bytes_a_vector
        said = f"{trial.factory}: recall {trial.point.recall_at_10:.4f}, {x:,.0f} {unit}"
        dots.append(Dot(x, trial.point.recall_at_10, "", said, family_of(trial.factory) == family_of(choice.factory)))
    described = f"{len(dots)} recipes; chosen: {choice.factory}; goal {choice.wanted.recall_goal}"
    legend = [(f"goal {choice.wanted.recall_goal}", "goal"), ("chosen", "chosen")]
    return _recall_chart(f"Recall@10 against {unit}", described, dots, choice.wanted.recall_goal, legend)


@dataclass(frozen=True)
class Dot:
    """A measured point: `x` on a log axis, recall, letters beside it, a sentence for who points at it, a whisker's end."""

    x: float
    recall: float
    label: str
    said: str
    chosen: bool
    reaches: float | None = None


def _recall_chart(
    title: str, described: str, dots: Sequence[Dot], goal: float, legend: Sequence[tuple[str, str]], joined: bool = False
) -> Html:
    axis = _LogAxis.around([dot.x for dot in dots] + [dot.reaches for dot in dots if dot.reaches is not None])
    low, step = recall_axis(min([goal, *(dot.recall for dot in dots)]))
    heights = [y_of(dot.recall, 1.0, low) for dot in dots]
    goal_y = px(y_of(goal, 1.0, low))
    path = " ".join(f"{px(axis.x_of(dot.x))},{px(y)}" for dot, y in zip(dots, heights, strict=True))
    drawing = [
        y_axis(1.0, step, lambda tick: f"{tick:.2f}", low),
        axis.draw(),
        element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=goal_y, y2=goal_y, class_="goal"),
        *([element("polyline", points=path, class_="curve")] if joined else []),
        *(_whisker(dot, axis, y) for dot, y in zip(dots, heights, strict=True) if dot.reaches is not None),
        *(_dot(dot, axis, y) for dot, y in zip(dots, heights, strict=True)),
        _dot_labels(dots, heights, axis),
    ]
    return figure(title, described, drawing, legend)


def recall_axis(lowest: float) -> tuple[float, float]:
    """(start, tick distance) of the recall axis: as much of 0 to 1 as is needed."""
    for low, step in ((0.9, 0.02), (0.8, 0.05), (0.6, 0.1), (0.5, 0.1)):
        if lowest >= low + step / 4:
            return low, step
    return 0.0, 0.2


@dataclass(frozen=True)
class _LogAxis:
    """A logarithmic x axis."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> _LogAxis:
        positive = [value for value in values if value > 0] or [1.0]
        return cls(min(positive) / 1.25, max(positive) * 1.25)

    def x_of(self, value: float) -> float:
        place = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return _LEFT + 6 + place * (WIDTH - _LEFT - _RIGHT - 12)

    def draw(self) -> Html:
        """Lines at 1, 2 and 5 times the powers of ten; at the ones alone where that would be a crowd."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if self.high / self.low < _CROWD else (1,)
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        return fragment([self._tick(tick) for tick in ticks if self.low <= tick <= self.high])

    def _tick(self, value: float) -> Html:
        x = self.x_of(value)
        line = element("line", x1=px(x), x2=px(x), y1=_TOP, y2=HEIGHT - _BOTTOM, class_="grid")
        return fragment(line, label(x, HEIGHT - 8, f"{value / 1_000:g}k" if value >= 10_000 else f"{value:g}"))


def _whisker(dot: Dot, axis: _LogAxis, y: float) -> Html:
    start, end = axis.x_of(dot.x), axis.x_of(dot.reaches or dot.x)
    line = element("line", x1=px(start), x2=px(end), y1=px(y), y2=px(y), class_="whisker")
    return fragment(line, element("line", x1=px(end), x2=px(end), y1=px(y - 3), y2=px(y + 3), class_="whisker"))


def _dot(dot: Dot, axis: _LogAxis, y: float) -> Html:
    kind = "point chosen" if dot.chosen else "point"
    circle = element("circle", cx=px(axis.x_of(dot.x)), cy=px(y), r=6 if dot.chosen else 3.5, class_=kind)
    return element("g", element("title", dot.said), circle)


def _dot_labels(dots: Sequence[Dot], heights: Sequence[float], axis: _LogAxis) -> Html:
    """Each dot's label where it fits without touching another; the chosen one's first."""
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for dot, y in sorted(zip(dots, heights, strict=True), key=lambda pair: not pair[0].chosen):
        half, x = len(dot.label) * _CHAR_WIDTH / 2, axis.x_of(dot.x)
        for shift_x, shift_y in ((-half - 9, -5.0), (0.0, -10.0), (half + 4, 16.0), (0.0, 19.0)):
            box = (x + shift_x - half, y + shift_y - _LINE_HEIGHT + 3, x + shift_x + half, y + shift_y + 3)
            if box[0] > _LEFT and box[1] > 0 and box[3] < HEIGHT - _BOTTOM and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                labels.append(label(x + shift_x, y + shift_y, dot.label, kind="value"))
                break
    return fragment(labels)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
