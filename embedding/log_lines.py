"""What each line of a program's log says about itself: which day, run and encoder version it is about.

    2026-11-21 02:14:07,312 INFO ds=2026-11-20 run_id=scheduled__2026-11-21 embedding_version=pinclip-base-1c9e 4915 pins

Levels, names and order never change, so `grep 'ERROR ds=2026-11-20 '` finds a day's faults in any log. A field that is not
known (yet) is `-`; a value with a blank, a quote or an `=` in it is written as a JSON string. Each line of a message or a
traceback of several lines has the fields, so that none gets lost, and none can pass itself off as another run's. Secrets are
hidden (embedding/redaction.py).

What the JVM of Spark logs, and what a program prints as a table for people, has no such fields.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO, TypeVar

from embedding.redaction import hidden

T = TypeVar("T")

FIELDS = ("ds", "run_id", "embedding_version")
UNKNOWN = "-"
_BARE = re.compile(r'[^\s"=]+')
_known: dict[str, str] = {}


def start_over(**fields: str | None) -> None:
    """Forgets what the lines were about, for a program that begins; `fields` are what is known of it."""
    _known.clear()
    tell(**fields)


def tell(**fields: str | None) -> None:
    """From now on the lines are about this; of what is not given, or None, what was known stays."""
    unknown = set(fields) - set(FIELDS)
    assert not unknown, unknown
    _known.update({name: value for name, value in fields.items() if value is not None})


def tell_day_if_unknown(days: Sequence[str]) -> None:
    """The lines of a program that was given no day are about the last of those that it reads."""
    if days and "ds" not in _known:
        tell(ds=days[-1])


def known() -> dict[str, str]:
    """What the lines are about now; a field that is not known is missing."""
    return dict(_known)


def set_up(stream: TextIO, others: int = logging.INFO) -> None:
    """Lines of this process go to `stream`: what pinlake tells, and of other libraries what is of level `others` or above."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=others, handlers=[handler])
    logging.getLogger("pinlake").setLevel(logging.INFO)


def told_in_workers(function: Callable[[Iterator[T]], Iterator[T]]) -> Callable[[Iterator[T]], Iterator[T]]:
    """`function`, before which a worker process learns what is known here, in the driver, now: its log says so too."""
    about = known()

    def run(batches: Iterator[T]) -> Iterator[T]:
        _tell_worker(about)
        yield from function(batches)

    return run


class LineFormatter(logging.Formatter):
    """Time, level, fields and text; each line of it alike."""

    def format(self, record: logging.LogRecord) -> str:
        """One line or more, without the last line's end."""
        fields = " ".join(f"{name}={_written(_known.get(name) or UNKNOWN)}" for name in FIELDS)
        head = f"{self.formatTime(record)} {record.levelname} {fields} "
        text = hidden(super().format(record))  # the message, and its traceback where there is one
        return "\n".join(head + line for line in text.splitlines() or [""])


def _written(value: str) -> str:
    return value if _BARE.fullmatch(value) else json.dumps(value)


def _tell_worker(about: dict[str, str]) -> None:
    set_up(sys.stderr, others=logging.WARNING)  # does nothing from a worker's second task on
    start_over(**about)
