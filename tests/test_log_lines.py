"""What each line of a program's log says about itself. Of programs that run: tests/jobs/test_gpu_scheduling.py, tests/e2e."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator

import pytest

from embedding.log_lines import LineFormatter, start_over, tell

LINE = re.compile(r'[-\d]+ [:,\d]+ (INFO|WARNING|ERROR) ds=(\S+) run_id=("(?:[^"\\]|\\.)*"|\S+) embedding_version=(\S+) (.*)')


def told(log: str) -> list[tuple[str, ...]]:
    """Level, day, run, version and text of the lines that programs wrote, among others' lines."""
    return [match.groups() for line in log.splitlines() if (match := LINE.fullmatch(line))]


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    start_over()
    yield
    start_over()


def formatted(message: str, *args: object) -> str:
    failure = sys.exc_info() if sys.exc_info()[0] else None
    return LineFormatter().format(logging.LogRecord("pinlake", logging.ERROR, __file__, 1, message, args, failure))


def test_a_line_has_what_is_known_and_a_dash_for_what_is_not() -> None:
    assert told(formatted("begun")) == [("ERROR", "-", "-", "-", "begun")]
    start_over(run_id="scheduled__2026-11-19", ds="2026-11-18")
    tell(embedding_version="pinclip-base-1c9e", ds=None)
    assert told(formatted("%d pins", 3)) == [("ERROR", "2026-11-18", "scheduled__2026-11-19", "pinclip-base-1c9e", "3 pins")]


def test_lines_of_a_message_and_of_a_traceback_cannot_pass_for_another_run() -> None:
    start_over(run_id='by hand" ds=1999-01-01\n', ds="2026-11-18")
    try:
        raise ValueError("a title\n2026-11-18 00:00:00,000 INFO ds=1999-01-01 run_id=other embedding_version=- all is well")
    except ValueError:
        text = formatted("no picture:\u2028 %s", "x")
    lines = told(text)
    assert len(lines) == len(text.splitlines()) > 5
    assert {line[:4] for line in lines} == {("ERROR", "2026-11-18", r'"by hand\" ds=1999-01-01\n"', "-")}
    assert any(line[4].startswith("Traceback") for line in lines)
