"""Escaping, numbers for people, and the arithmetic of the charts."""

from __future__ import annotations

import doctest

import pytest

from embedding.index.factory import SearchSetting
from embedding.index.tuning import SearchPoint
from embedding.report import charts, markup, sections
from embedding.report.charts import Bar, Series, nice_axis, recall_against_latency, stacked_bars
from embedding.report.history import recall_over_time
from embedding.report.markup import Html, element, fragment, printable, seconds, share, size


@pytest.mark.parametrize("module", [markup, charts, sections])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_text_and_attributes_are_escaped() -> None:
    made = element("p", "<b>&", element("i", '"'), None, [1, "<"], title='">x', class_="a", hidden=True, data_x=None)
    assert made == '<p title="&quot;&gt;x" class="a" hidden>&lt;b&gt;&amp;<i>&quot;</i>1&lt;</p>'
    assert fragment(Html("<br>"), "<br>") == "<br>&lt;br&gt;"


def test_control_characters_do_not_reach_the_page() -> None:
    assert printable("a\x00b\nc\u202ed\ud800") == "a\ufffdb c\ufffdd\ufffd"
    assert printable("Zürich 🚲") == "Zürich 🚲"


def test_numbers_for_people() -> None:
    assert [share(value) for value in (1.0, 0.999_999, 0.5, None)] == ["100.0 %", "99.9 %", "50.0 %", "–"]
    assert [seconds(value) for value in (0.0, 59.7, 200.0, 7_500.0, None)] == [
        "0.0 s",
        "1 min",
        "3 min 20 s",
        "2 h 5 min",
        "–",
    ]
    assert [size(value) for value in (0, 1_500, 2_000_000)] == ["0 bytes", "1.5 kB", "2.0 MB"]


@pytest.mark.parametrize("largest", [0.0, 1e-4, 0.3, 1.0, 99.0, 100.0, 101.0, 123_456.0])
def test_axis_holds_the_largest_value(largest: float) -> None:
    top, step = nice_axis(largest)
    assert top >= largest * (1 - 1e-9)
    assert 1 <= round(top / step) <= 6


def test_one_huge_night_does_not_flatten_the_others() -> None:
    bars = [Bar(str(i), f"day {i}") for i in range(5)]
    drawn = stacked_bars("Pins", bars, [Series("pins", "encoded", [100_000.0, 10.0, 12.0, None, 9.0])], str)
    assert drawn.count('class="break"') == 2
    assert "100000.0" in drawn
    even = stacked_bars("Pins", bars, [Series("pins", "encoded", [10.0, 10.0, 12.0, None, 9.0])], str)
    assert "break" not in even


def test_recall_chart_of_one_exact_point() -> None:
    drawn = recall_against_latency(
        [SearchPoint(SearchSetting(nprobe=1), 1.0, 1.0, 0.0, 0.0, 0.0)], SearchSetting(nprobe=1), 0.95
    )
    assert "nprobe 1: recall 1.0000" in drawn
    assert "nan" not in drawn


def test_recall_chart_without_the_chosen_point() -> None:
    points = [
        SearchPoint(SearchSetting(nprobe=1 << i), 0.2 + i / 10, 0.2 + i / 10, 0.1 * 2**i, 0.5 * 2**i, 100.0) for i in range(9)
    ]
    assert recall_against_latency(points, SearchSetting(nprobe=3), 0.95).count("<circle") == 9


def test_recall_over_time_marks_the_live_release_and_the_one_that_failed() -> None:
    rows = [
        {
            "release_id": f"r{day}",
            "ds": f"2026-11-{day}",
            "status": "failed" if day == 17 else "passed",
            "rows": 1_000 + day,
            "recall_at_10": 0.90 if day == 17 else 0.96,
            "recall_low": None if day == 16 else 0.89 if day == 17 else 0.95,
            "recall_high": None if day == 16 else 0.97,
            "recall_goal": 0.95,
        }
        for day in (16, 17, 18)
    ]
    drawn = str(recall_over_time(rows, "r18"))
    assert drawn.count("<circle") == 3
    assert drawn.count('class="whisker"') == 2, "an older row has no interval"
    assert drawn.count('class="point chosen"') == drawn.count('class="point bad"') == 1
    assert "r17: recall 0.9000, 1,017 pins, failed, 95% interval 0.8900 to 0.9700" in drawn
    assert recall_over_time([], None) is None
