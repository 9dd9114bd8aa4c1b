"""What Spark's own event log says of a program: bytes between executors and to the driver, and how many tasks ran at once.

The log is JSON lines, an event a line ("Monitoring and Instrumentation" in Spark's documentation). Only tasks that succeeded
are counted. All figures are sums over a program, seconds and bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROPERTIES = {
    "spark.eventLog.enabled": "true",
    "spark.eventLog.rolling.enabled": "false",
    "spark.eventLog.compress": "false",
}


@dataclass(frozen=True)
class Events:
    """A program's tasks.

    alone_s, one_s, more_s: Seconds of the program's life in which no task ran, one, and more than one.
    shuffled, results, spilled: Bytes that executors wrote for one another, sent to the driver, put on disk for lack of memory.
    """

    tasks: int
    stages: int
    task_s: float
    gc_s: float
    alone_s: float
    one_s: float
    more_s: float
    shuffled: int
    results: int
    spilled: int


def read_events(folder: Path) -> Events:
    """The one event log below a folder. Raises ValueError where there is another number of them."""
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    if len(files) != 1:
        raise ValueError(f"{len(files)} event logs below {folder}")
    with files[0].open(encoding="utf-8") as lines:
        return summarise(json.loads(line) for line in lines)


def summarise(events: Iterable[dict[str, Any]]) -> Events:
    """All figures of one program's events."""
    spans: list[tuple[int, int]] = []
    stages: set[int] = set()
    life = [0, 0]
    sums: dict[str, int] = defaultdict(int)
    for event in events:
        kind = event["Event"]
        if kind == "SparkListenerApplicationStart":
            life[0] = event["Timestamp"]
        elif kind == "SparkListenerApplicationEnd":
            life[1] = event["Timestamp"]
        elif kind == "SparkListenerTaskEnd" and event["Task End Reason"]["Reason"] == "Success":
            info, metrics = event["Task Info"], event["Task Metrics"]
            spans.append((info["Launch Time"], info["Finish Time"]))
            stages.add(event["Stage ID"])
            sums["gc"] += metrics["JVM GC Time"]
            sums["results"] += metrics["Result Size"]
            sums["spilled"] += metrics["Disk Bytes Spilled"]
            sums["shuffled"] += metrics["Shuffle Write Metrics"]["Shuffle Bytes Written"]
    at_once = seconds_by_tasks(spans, (life[0], life[1]))
    return Events(
        tasks=len(spans),
        stages=len(stages),
        task_s=sum(end - start for start, end in spans) / 1_000,
        gc_s=sums["gc"] / 1_000,
        alone_s=at_once[0],
        one_s=at_once[1],
        more_s=at_once[2],
        shuffled=sums["shuffled"],
        results=sums["results"],
        spilled=sums["spilled"],
    )


def seconds_by_tasks(spans: Sequence[tuple[int, int]], life: tuple[int, int]) -> tuple[float, float, float]:
    """For how many seconds of a life no task ran, one ran, and more than one did. All times are milliseconds."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running, since, sums = 0, life[0], [0, 0, 0]
    for moment, change in [*changes, (life[1], 0)]:
        sums[min(running, 2)] += moment - since
        running, since = running + change, moment
    none, one, more = (milliseconds / 1_000 for milliseconds in sums)
    return none, one, more
