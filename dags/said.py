"""What the lines that a Spark program logs say about themselves (docs/operations.md, "Logs"), read from its task's log."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE = re.compile(
    r" (?P<level>[A-Z]+) ds=(?P<ds>\S+) run_id=(?:\"(?:[^\"\\]|\\.)*\"|\S+) "
    r"embedding_version=(?P<embedding_version>\S+) (?P<text>.*)"
)


def faults(lines: Iterable[str]) -> list[str]:
    """What a program has logged as an error, in its order; of a traceback the error alone."""
    said = [found["text"] for line in lines if (found := _LINE.search(line)) and found["level"] == "ERROR"]
    return [text for text in said if text and not text.startswith((" ", "Traceback "))]


def last_known(field: str, lines: Iterable[str]) -> str | None:
    """The last `ds` or `embedding_version` that a line names."""
    values = [found[field] for line in lines if (found := _LINE.search(line)) and found[field] != "-"]
    return values[-1] if values else None
