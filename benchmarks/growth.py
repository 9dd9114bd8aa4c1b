"""What does each program of a night cost as rows and workers grow, and what is the same whatever they are?

    python -m benchmarks.growth            # 10 thousand to a million rows; 80 minutes, 10 GB of disk
    python -m benchmarks.growth --quick    # 10 and 30 thousand rows, one and two workers, two programs
    python -m benchmarks.growth --plan     # a billion pins by the kept figures; --gpu-dollars 3, and other assumptions

**The claim.** Beyond its start-up no program's CPU time grows faster than its rows (an exponent of 1.1 at most, from ten
thousand to a million rows), and none makes a step from one size to the next (the same exponent, start-up in it). More rows
take the driver less time than the workers, where it does not train or search by itself (building and checking an index do). Of
what runs on workers, these programs together, two workers take at most 0.65 of the time of one, and four 0.4.

**The test.** Spark's standalone master and one, two or four worker processes of one core each in Spark's eyes. Each worker is
held to 0.4 of a core by a control group, executor and Python among it, however many of them run; the driver has a core of its
own (benchmarks/growth_cluster.py). So two workers have twice what one has, and nothing else changes. The programs are those of
jobs/, by spark-submit, one after the other over one lake (benchmarks/growth_jobs.py): a day on which each pin is on another
board and each content is known, so that the night reuses all vectors and encodes none. Each size and each number of workers has
its own copy of the lake. A program that does nothing but start is measured beside them.

CPU seconds are the control groups'. Bytes, tasks, and for how long none, one or several of them ran, are from Spark's event
log. "On workers" is the time with a task running, less that of the program that does nothing: there Python starts.

Then real pictures with the shipped encoder, by one, two and four workers: what a picture costs beyond the start-up, by what
many pictures take more than few.

One run of each, one after the other, so that a figure may be off by what else the machine did; CPU seconds less so. Sizes
and workers may be measured one by one: `--resume FILE` takes what FILE has, and `--json FILE` is written after each step.

Exits with 0 where the claim holds, 1 where it does not, 2 where the machine lets us hold nobody to a share or the pictures are
missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.growth_cluster import Shares, SharesError, cluster
from benchmarks.growth_encoding import Encoded, NoPicturesError, encode_pictures, landed_days, pictures_cost
from benchmarks.growth_events import Events
from benchmarks.growth_fit import Growth, fit, steepest
from benchmarks.growth_jobs import JOBS, NOTHING, Job, Measured, Place, copied, run_job, run_nothing, write_platform
from benchmarks.growth_plan import add_assumptions, assumptions_of, plan, plan_text
from benchmarks.growth_tables import describe
from benchmarks.machine import describe_machine
from benchmarks.results_of import RESULTS_FOLDER, Verdict, keep
from demo.airflow import JAVA_OPTIONS

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (10_000, 30_000)
WORKERS, QUICK_WORKERS = (1, 2, 4), (1, 2)
SIZE_WORKERS = 2
"""With so many workers the sizes are measured."""
WORKERS_ROWS, QUICK_WORKERS_ROWS = 300_000, 30_000
"""At so many rows the numbers of workers are: enough that a program does more than start."""
SHARES = Shares(driver=1.0, worker=0.4)
MOST_EXPONENT = 1.1
MOST_TIME = {2: 0.65, 4: 0.40}
DRIVERS_OWN = ("build_index", "check_index", "publish_index", "maintain")
"""Whose work is the driver's by design: it tries recipes, asks as readers do, writes pointers and logs."""
PACKAGES = ("pyspark", "deltalake", "pyarrow", "faiss-cpu", "numpy")
SPARK = {
    # As on a cluster: generated code and adaptive execution. The JVM's optimising compiler is left out, as on a laptop: at 0.4
    # of a core it would still be at work when a short program ends.
    "spark.executor.extraJavaOptions": JAVA_OPTIONS,
    "spark.sql.codegen.wholeStage": "true",
    "spark.sql.adaptive.enabled": "true",
    "spark.sql.shuffle.partitions": "8",
    "spark.executor.memory": "2g",
}


class Run:
    """What is measured in one call, step by step, and kept after each."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self._quick, self._folder, self._json = args.quick, folder, args.json
        self._pictures = not (args.quick or args.no_pictures)
        self._jobs = [job for job in JOBS if job.quick or not args.quick]
        self._sizes = QUICK_SIZES if args.quick else SIZES
        self._rows = QUICK_WORKERS_ROWS if args.quick else WORKERS_ROWS
        self._workers = [n for n in (QUICK_WORKERS if args.quick else WORKERS) if n in args.workers]
        self._places: dict[int, Place] = {}
        self._landed: dict[int, Path] | None = None
        kept = json.loads(args.resume.read_text(encoding="utf-8")) if args.resume else {"measured": [], "encoded": []}
        self.measured = [measured_of(row) for row in kept["measured"]]
        self.encoded = [Encoded(**row) for row in kept["encoded"]]

    def configurations(self) -> list[tuple[int, int]]:
        """(rows, workers) that are wanted."""
        sizes = [(rows, SIZE_WORKERS) for rows in self._sizes if SIZE_WORKERS in self._workers]
        return list(dict.fromkeys([*sizes, *((self._rows, n) for n in self._workers)]))

    def figures(self) -> dict[str, Any]:
        return {
            "machine": describe_machine(PACKAGES),
            "quick": self._quick,
            "shares": asdict(SHARES),
            "measured": [asdict(one) for one in self.measured],
            "encoded": [asdict(one) for one in self.encoded],
        }

    def measure(self) -> None:
        for workers in self._workers:
            todo = {rows: self._missing(rows, workers) for rows, n in self.configurations() if n == workers}
            pictures = self._pictures and not any(one.workers == workers for one in self.encoded)
            if not any(todo.values()) and not pictures:
                continue
            conf = SPARK | {"spark.local.dir": str(self._folder / "spark")}
            with cluster(workers, SHARES, self._folder / f"cluster-{workers}", conf) as spark:
                logs = self._folder / "events"
                for rows, jobs in todo.items():
                    if not jobs:
                        continue
                    place = copied(self._platform(rows), self._folder / f"lake-{rows}-{workers}")
                    if not any(one.job == NOTHING and one.workers == workers for one in self.measured):
                        self._add(run_nothing(spark, logs))
                    for job in self._jobs_with(workers):
                        found = run_job(spark, job, place, rows, logs)
                        if job in jobs:
                            self._add(found)
                    shutil.rmtree(place.lake)
                if pictures:
                    self._landed = self._landed or landed_days(self._folder / "pictures")
                    self.encoded += encode_pictures(spark, self._landed, logs)
                    self._keep()

    def _jobs_with(self, workers: int) -> list[Job]:
        """What is the driver's own work is measured as rows grow, not as workers do."""
        return [job for job in self._jobs if workers == SIZE_WORKERS or job.name not in DRIVERS_OWN]

    def _missing(self, rows: int, workers: int) -> list[Job]:
        there = {one.job for one in self.measured if (one.rows, one.workers) == (rows, workers)}
        return [job for job in self._jobs_with(workers) if job.name not in there]

    def _platform(self, rows: int) -> Place:
        if rows not in self._places:
            self._places[rows] = write_platform(self._folder / f"platform-{rows}", rows)
        return self._places[rows]

    def _add(self, found: Measured) -> None:
        self.measured.append(found)
        said = f"{found.rows:>9,} rows, {found.workers} workers, {found.job}: {found.seconds} s"
        print(f"{said}, {found.cpu_s:.1f} s of CPU", file=sys.stderr, flush=True)
        self._keep()

    def _keep(self) -> None:
        if self._json:
            self._json.write_text(json.dumps(self.figures(), indent=1) + "\n", encoding="utf-8")


def measured_of(row: dict[str, Any]) -> Measured:
    """A measurement as JSON has it."""
    events = row["events"]
    return Measured(**row | {"events": Events(**events) if events else None})


def job_names(measured: Sequence[Measured]) -> list[str]:
    return [job.name for job in JOBS if any(one.job == job.name for one in measured)]


def growths(measured: Sequence[Measured]) -> dict[str, dict[str, Growth]]:
    """By job: how seconds, CPU seconds of all, of the driver and of the workers, and bytes shuffled and collected grow."""
    figures = ("seconds", "cpu_s", "driver_cpu_s", "worker_cpu_s", "shuffled", "collected")
    return {
        name: {figure: fit({rows: getattr(one, figure) for rows, one in of_job.items()}) for figure in figures}
        for name, of_job in by_size(measured).items()
    }


def by_size(measured: Sequence[Measured]) -> dict[str, dict[int, Measured]]:
    """By job that was measured at several sizes, and by rows."""
    found = {
        name: {one.rows: one for one in measured if one.job == name and one.workers == SIZE_WORKERS}
        for name in job_names(measured)
    }
    return {name: of_job for name, of_job in found.items() if len(of_job) > 1}


def on_workers(measured: Sequence[Measured]) -> dict[int, float]:
    """By number of workers: seconds with a task running beyond a start, of all programs but DRIVERS_OWN together."""
    start = {one.workers: one.events.one_s + one.events.more_s for one in measured if one.job == NOTHING and one.events}
    counts = sorted({one.workers for one in measured if one.job != NOTHING})
    rows = set.intersection(*({one.rows for one in measured if one.workers == n and one.rows} for n in counts))
    at = [one for one in measured if one.rows in rows and one.events and one.job not in DRIVERS_OWN]
    everywhere = set.intersection(*({one.job for one in at if one.workers == n} for n in counts))
    return {
        n: sum(
            max(0.0, one.events.one_s + one.events.more_s - start[n])
            for one in at
            if one.workers == n and one.events and one.job in everywhere
        )
        for n in counts
    }


def judge(measured: Sequence[Measured], quick: bool = False) -> list[Verdict]:
    verdicts = []
    for name, growth in growths(measured).items():
        of_cpu, driver, workers = (growth[figure] for figure in ("cpu_s", "driver_cpu_s", "worker_cpu_s"))
        if of_cpu.exponent is not None:
            said = f"{name}: CPU time grows with rows^{of_cpu.exponent:.2f} beyond its start, at most {MOST_EXPONENT}"
            verdicts.append(Verdict(said, of_cpu.exponent <= MOST_EXPONENT))
        if name not in DRIVERS_OWN:
            most, less = driver.most_a_row, workers.a_row
            said = f"{name}: a million rows more take the driver at most {1e6 * most:.1f} s, less than the workers' "
            verdicts.append(Verdict(f"{said}{1e6 * less:.1f} s", most < less))
    steps = {name: steepest({rows: one.cpu_s for rows, one in of_job.items()}) for name, of_job in by_size(measured).items()}
    for name, step in steps.items():
        if step > MOST_EXPONENT:
            verdicts.append(Verdict(f"{name}: from one size to the next CPU time grows with rows^{step:.2f}, a step", False))
    if not any(step > MOST_EXPONENT for step in steps.values()):
        verdicts.append(
            Verdict(f"no program's CPU time grows with more than rows^{MOST_EXPONENT} from one size to the next", True)
        )
    seconds = on_workers(measured)
    for n, most in MOST_TIME.items():
        if n in seconds and 1 in seconds and not quick:  # of few rows the start of each stage's Python is most
            share = seconds[n] / seconds[1]
            said = f"{n} workers take {share:.2f} of the time that one takes on workers ({seconds[1]:.0f} s), at most {most}"
            verdicts.append(Verdict(said, share <= most))
    return verdicts


def is_full(run: Run, args: argparse.Namespace) -> bool:
    """Whether all that is judged in a full run is there."""
    return not args.quick and {one.workers for one in run.measured} == set(WORKERS) == set(args.workers)


def measure(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    with ExitStack() as stack:
        run = Run(args, Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.work, prefix="growth-"))))
        run.measure()
    verdicts = judge(run.measured, args.quick)
    figures = run.figures() | {"verdicts": [asdict(verdict) for verdict in verdicts]}
    pictures = pictures_cost(run.encoded)
    text = describe(figures, run.measured, growths(run.measured), on_workers(run.measured), pictures, verdicts)
    print(text, end="")
    keep(figures, text, args.json, "growth" if is_full(run, args) else None)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def show_plan(args: argparse.Namespace) -> int:
    """The table of docs/operations.md, from the figures that are kept in benchmarks/results."""
    kept = json.loads((args.resume or RESULTS_FOLDER / "growth.json").read_text(encoding="utf-8"))
    measured = [measured_of(row) for row in kept["measured"]]
    print(plan_text(plan(growths(measured), assumptions_of(args))), end="")
    return 0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes, two programs; kept nowhere")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for all figures, written after each step")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="figures of an earlier call, which are not measured again")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS), help="numbers of workers (default: all)")
    parser.add_argument("--no-pictures", action="store_true", help="without real pictures, which nothing is judged by")
    parser.add_argument("--work", type=Path, help="a folder on a disk with 10 GB free; default the system's")
    parser.add_argument("--plan", action="store_true", help="measure nothing: what a billion pins take, by the kept figures")
    add_assumptions(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.plan:
        return show_plan(args)
    try:
        return measure(args)
    except (NoPicturesError, SharesError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
