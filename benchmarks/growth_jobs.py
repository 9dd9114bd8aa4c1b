"""The lake that benchmarks/growth.py measures on, and the programs of a night over it, in their order.

Day 1 is history: all pins, landed and embedded. On day 2 each of them is on another board: the day's rows are as many as the
pins, each content is known and has its vector, and no picture is encoded. So one number of rows is that of the export, of the
night, of the history that is looked through, of the pins in the index, and of the graph's edges.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.growth_cluster import StandaloneCluster, Submitted
from benchmarks.growth_events import PROPERTIES, Events, read_events
from benchmarks.synthetic_lake import KNOWN_ONLY, SyntheticLake, day_name

DAY = day_name(2)
RUN = "growth"
NOTHING = "nothing"
"""The name of the program that does nothing but start."""
INDEX_BYTES = 350
"""A vector in the index at most: what ten million took in benchmarks/index.py."""
DIMENSIONS = 24
"""In which the pins' vectors differ: as many as leave an index something to find, and something to miss."""
FILES = 8
"""Of a day, in each table and in the export: a task reads a file, so fewer would leave workers idle; a file has 200,000 rows at
most, and a day of a real platform many of them."""
STEPS = 2_000
"""Of a walk: a tenth of the default, which would take a core an hour at a million pins. Four times the steps take 4.1 times as
long (benchmarks/walks.py)."""


@dataclass(frozen=True)
class Place:
    """A copy of a lake, and what the programs are told of it."""

    lake: Path
    exports: Path
    version: str


Arguments = Callable[[Place], Sequence[str]]


@dataclass(frozen=True)
class Job:
    """A program of jobs/, and its arguments besides --home and --run-id. quick: Measured with `--quick` too."""

    name: str
    program: str
    arguments: Arguments
    quick: bool = False


def _day(_place: Place) -> list[str]:
    return ["--ds", DAY]


def _encoder(place: Place) -> list[str]:
    return ["--encoder", place.version]


JOBS = (
    Job("land", "land_exports", lambda place: [*_day(place), "--exports", str(place.exports)], quick=True),
    Job("embed", "embed_pins", lambda place: [*_day(place), *_encoder(place)], quick=True),
    Job("check_night", "check_night", lambda place: [*_day(place), *_encoder(place)]),
    # Within such a budget no graph of all vectors is tried, which on a share of a core would take an hour.
    Job("build_index", "build_index", lambda place: [*_day(place), *_encoder(place), "--bytes-a-vector", str(INDEX_BYTES)]),
    # Texts by random weights are near no pin: what the gate thinks of their recall is not what is measured here. Nor are
    # milliseconds of a query on a share of a core.
    Job("check_index", "check_index", lambda _: ["--min-recall", "0", "--max-p99-ms", "10000"]),
    Job("publish_index", "publish_index", lambda _: []),
    Job("build_graph", "build_graph", lambda _: []),
    Job("relate", "relate_pins", lambda _: ["--steps", str(STEPS)]),
    Job("interests", "build_interests", _encoder),
    Job("boards", "embed_boards", _encoder),
    Job("maintain", "maintain_tables", lambda _: []),
)


@dataclass(frozen=True)
class Measured:
    """A job at a number of rows and of workers. Seconds are those of the clock, from spark-submit to its end."""

    job: str
    rows: int
    workers: int
    seconds: float
    driver_cpu_s: float
    worker_cpu_s: float
    driver_bytes: int
    worker_bytes: int
    events: Events | None

    @property
    def cpu_s(self) -> float:
        return self.driver_cpu_s + self.worker_cpu_s

    @property
    def shuffled(self) -> int:
        return self.events.shuffled if self.events else 0

    @property
    def collected(self) -> int:
        return self.events.results if self.events else 0


def write_platform(folder: Path, pins: int) -> Place:
    """The lake after day 1, and the export of day 2."""
    made = SyntheticLake(folder, pins, share=1.0, shares=KNOWN_ONLY, intrinsic=DIMENSIONS, files=FILES)
    made.write_history(1)
    made.write_export(2)
    return Place(Path(made.lake.home), made.exports, made.version)


def copied(place: Place, to: Path) -> Place:
    """The same lake elsewhere, for a night of its own."""
    shutil.copytree(place.lake, to)
    return Place(to, place.exports, place.version)


def run_program(cluster: StandaloneCluster, name: str, program: str, args: Sequence[str], rows: int, logs: Path) -> Measured:
    """One program, with what its event log says; a program without a session leaves none."""
    logs.mkdir(parents=True)
    found: Submitted = cluster.submit(program, *args, conf={**PROPERTIES, "spark.eventLog.dir": logs.as_uri()})
    events = read_events(logs) if any(logs.iterdir()) else None
    shutil.rmtree(logs)
    return Measured(
        name,
        rows,
        len(cluster),
        round(found.seconds, 2),
        round(found.driver_cpu_s, 2),
        round(found.worker_cpu_s, 2),
        found.driver_bytes,
        found.worker_bytes,
        events,
    )


def run_job(cluster: StandaloneCluster, job: Job, place: Place, rows: int, logs: Path) -> Measured:
    args = ["--home", str(place.lake), "--run-id", RUN, *job.arguments(place)]
    return run_program(cluster, job.name, f"jobs/{job.program}.py", args, rows, logs)


def run_nothing(cluster: StandaloneCluster, logs: Path) -> Measured:
    """What starting costs: a program that does nothing (benchmarks/growth_program.py)."""
    return run_program(cluster, NOTHING, "benchmarks/growth_program.py", ["--tasks", str(len(cluster))], 0, logs)
