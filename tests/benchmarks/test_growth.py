"""The benchmark of growth: what its fit tells, what it reads from Spark's events, and that the plan in the docs is its plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.growth import growths, job_names, measured_of
from benchmarks.growth_events import seconds_by_tasks, summarise
from benchmarks.growth_fit import fit, steepest
from benchmarks.growth_plan import Assumptions, Row, plan, plan_text, walked_pins
from benchmarks.results_of import RESULTS_FOLDER

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_a_cost_is_told_from_its_start() -> None:
    sizes = (10_000, 100_000, 1_000_000)
    linear = fit({rows: 20 + 1e-4 * rows for rows in sizes})
    assert linear.exponent == pytest.approx(1) and linear.verdict == "linear"
    assert [linear.fixed, 1e4 * linear.a_row, linear.at(2e6)] == pytest.approx([20, 1, 220])
    assert fit({rows: 20 + 1e-9 * rows**2 for rows in sizes}).verdict == "above linear"
    assert fit({rows: 20 + rows**0.5 for rows in sizes}).verdict == "below linear"
    assert fit({rows: 20 + 1e-6 * rows for rows in sizes}).verdict == "too few sizes tell"
    assert steepest({rows: 20 + 1e-4 * rows for rows in sizes}) < 1
    stepped = {10_000: 12.0, 100_000: 14.0, 300_000: 54.0, 1_000_000: 95.0}
    assert fit(stepped).verdict == "below linear" and steepest(stepped) > 1.2


def _task(stage: int, start: int, end: int, shuffled: int = 0) -> dict[str, object]:
    return {
        "Event": "SparkListenerTaskEnd",
        "Stage ID": stage,
        "Task End Reason": {"Reason": "Success"},
        "Task Info": {"Launch Time": start, "Finish Time": end},
        "Task Metrics": {
            "JVM GC Time": 10,
            "Result Size": 100,
            "Disk Bytes Spilled": 0,
            "Shuffle Write Metrics": {"Shuffle Bytes Written": shuffled},
        },
    }


def test_what_events_say() -> None:
    assert seconds_by_tasks([(1_000, 3_000), (2_000, 4_000)], (0, 5_000)) == (2, 2, 1)
    tasks = [_task(0, 0, 500, shuffled=7), *(_task(1, 1_000, 2_000) for _ in range(3)), _task(1, 1_000, 5_000)]
    failed = _task(1, 0, 9_000) | {"Task End Reason": {"Reason": "ExecutorLostFailure"}}
    life = [{"Event": f"SparkListenerApplication{name}", "Timestamp": at} for name, at in (("Start", 0), ("End", 6_000))]
    found = summarise([life[0], *tasks, failed, life[1]])
    assert (found.tasks, found.stages, found.shuffled, found.results) == (5, 2, 7, 500)
    assert (found.alone_s, found.one_s, found.more_s) == (1.5, 3.5, 1.0)


def _planned(**assumed: float) -> dict[str, Row]:
    measured = [
        measured_of(row) for row in json.loads((RESULTS_FOLDER / "growth.json").read_text(encoding="utf-8"))["measured"]
    ]
    assert len(job_names(measured)) > 8
    return {f"{row.part}/{row.quantity}": row for row in plan(growths(measured), Assumptions(**assumed))}


def test_the_plan_is_that_of_the_docs_and_follows_its_assumptions() -> None:
    rows = _planned()
    assert plan_text(list(rows.values())) in OPERATIONS.read_text(encoding="utf-8"), "python -m benchmarks.growth --plan"
    assert rows["Encoding/GPU-hours"].value == pytest.approx(4e7 * 0.75 / 875 / 3_600)
    faster = _planned(gpu_images_a_second=1_750)
    assert faster["Encoding/GPU-hours"].value == pytest.approx(rows["Encoding/GPU-hours"].value / 2)
    parts = [row.value for name, row in rows.items() if name.startswith("Dollars a night/")]
    assert parts[-1] == pytest.approx(sum(parts[:-1]))
    assert walked_pins(Assumptions(changed=0)) == 0
    assert walked_pins(Assumptions(changed=1e9)) == 1e9
