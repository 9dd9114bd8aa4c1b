"""Kills a night with SIGKILL at each point that matters, and looks whether its rows come out as if nothing had happened.

    python -m benchmarks.drill                     # all points, with a real Airflow for the last two
    python -m benchmarks.drill --quick             # fewer pictures, no Airflow
    python -m benchmarks.drill --points worker,executor

The claim: whatever dies, whenever, after the retry or the rerun the tables hold the rows of an undisturbed night: the same
keys, the same reasons, the same vectors, none of them twice; files that no commit names are seen by no reader, and maintenance
removes them.

Every point starts from a copy of one lake with a landed day of real clip art, broken pictures among it, and runs the real
programs: through spark-submit, on Spark's standalone cluster, or through a local Airflow. One night is left undisturbed; the
others are compared with it, row by row. Vectors are compared within 1e-5 (benchmarks/drill_lake.py says why). Exits with 1
where a point fails. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.drill_airflow import kill_scheduler, kill_task
from benchmarks.drill_lake import Contents, contents, differences, orphans, promises_kept, visible
from benchmarks.drill_processes import (
    REPO,
    DrillError,
    EncodingWorkers,
    Running,
    kill,
    living,
    spark_program,
    standalone,
    wait_until,
    watched,
)
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import keep
from demo.days import DEMO_DAYS, write_days
from demo.openclipart import ClipartUnavailableError, fetch, read_clipart
from embedding.contracts import PIN_EMBEDDINGS, SUCCESS_MARKER
from embedding.tables.lake import Lake

DS = DEMO_DAYS[1]
RUN = "night"
PICTURES, QUICK_PICTURES = 120, 60
BATCH_SIZE = 4
"""Small, so that a worker is in the middle of a batch, and not in its first one, when it dies."""
MIN_COVERAGE = 0.1
"""A drill's day has many broken pictures for its size."""
IN_MID_BATCH = 0.6
"""A worker is killed after this share of the processor seconds that encoding took undisturbed, loading the encoder included."""

EMBED, LAND, CHECK = (REPO / "jobs" / name for name in ("embed_pins.py", "land_exports.py", "check_night.py"))
MAINTAIN = REPO / "jobs" / "maintain_tables.py"
DYING = REPO / "benchmarks" / "dying_program.py"


@dataclass(frozen=True)
class Blow:
    """What a point did: who was killed, what a reader saw right after, and who made it good."""

    killed: str
    seen: str
    recovered: str


@dataclass
class Row:
    """A point's line of the table."""

    point: str
    about: str
    blow: Blow = field(default_factory=lambda: Blow("-", "-", "-"))
    wrong: list[str] = field(default_factory=list)
    vectors_apart: float = float("nan")
    orphans_before: int = 0
    orphans_after: int = 0
    seconds: float = 0.0


@dataclass
class Drill:
    """What all points share. `home` is the lake of the point that is running."""

    work: Path
    exports: Path
    home: Path
    encode_cpu_s: float = 0.0
    wanted: Contents | None = None

    @property
    def lake(self) -> Lake:
        return Lake(str(self.home))

    def log(self, name: str) -> Path:
        return self.work / "logs" / self.home.name / f"{name}.log"

    def arguments(self, program: Path) -> list[str]:
        """A program's command line, the same for a first run and for a rerun, as Airflow gives it."""
        own = {
            LAND: ["--exports", str(self.exports)],
            EMBED: ["--batch-size", str(BATCH_SIZE)],
            CHECK: ["--min-coverage", str(MIN_COVERAGE)],
        }
        return ["--home", str(self.home), "--ds", DS, f"--run-id={RUN}", *own[program]]

    def start(self, program: Path, name: str = "", **options: Any) -> Running:
        return spark_program(self.log(name or program.stem), program, *self.arguments(program), **options)

    def run(self, *programs: Path, name: str = "") -> None:
        """Runs programs that must end well."""
        for program in programs:
            with self.start(program, name and f"{name}-{program.stem}") as running:
                if status := running.wait():
                    raise DrillError(f"{program.name} ended with {status}; {running.tail()}")

    def die_at(self, moment: str, program: Path) -> str:
        """Runs a program that kills itself; returns who was killed."""
        with spark_program(self.log("dying"), DYING, moment, str(program), *self.arguments(program)) as running:
            status = running.wait()
            if status != -signal.SIGKILL:
                raise DrillError(f"{program.name} ended with {status}, and was not killed at {moment}; {running.tail()}")
        return "driver (JVM and Python)"

    def staged_vectors(self) -> list[Path]:
        """The vectors' files on disk, whether a commit names them or not."""
        return list(Path(self.lake.table_uri(PIN_EMBEDDINGS)).glob("embedding_version=*/ds=*/*.parquet"))

    def vectors_are_in(self) -> bool:
        """Whether the day's vectors have been committed."""
        return bool(self.lake.open(PIN_EMBEDDINGS).file_uris())


def undisturbed(drill: Drill) -> None:
    """The night that all others are compared with, and what encoding costs a worker."""
    workers: EncodingWorkers
    with drill.start(EMBED) as running:
        workers = EncodingWorkers([running.session])
        with watched(workers):
            if status := running.wait():
                raise DrillError(f"the undisturbed night ended with {status}; {running.tail()}")
    drill.encode_cpu_s = max(workers.encoding_s.values(), default=0.0)
    if not drill.encode_cpu_s:
        raise DrillError("no Python worker was seen encoding")
    drill.run(CHECK)
    if wrong := promises_kept(drill.lake):
        raise DrillError(f"the undisturbed night itself is wrong: {wrong}")
    drill.wanted = contents(drill.lake)


def in_mid_batch(drill: Drill, running: Running, sessions: Sequence[int]) -> int:
    """Waits until a Python worker has encoded for a while; returns it."""
    workers, found = EncodingWorkers(sessions), 0

    def reached() -> bool:
        nonlocal found
        found, seconds = workers.busiest()
        return seconds >= IN_MID_BATCH * drill.encode_cpu_s

    wait_until(reached, "a worker was encoding", running)
    return found


def go_on(drill: Drill, running: Running, killed: str, complaint: str) -> Blow:
    """After the blow: the same program must end well, by Spark's own retry."""
    if drill.vectors_are_in():
        raise DrillError(f"too late: the vectors were in before {killed} died")
    seen = visible(drill.lake)
    if status := running.wait():
        raise DrillError(f"the program did not outlive its {killed}: {status}; {running.tail()}")
    if complaint not in running.output():
        raise DrillError(f"Spark does not complain of a lost {killed}; {running.tail()}")
    return Blow(killed, seen, "Spark's retry of the task")


def kill_worker(drill: Drill) -> Blow:
    """A Python worker in mid-batch."""
    with drill.start(EMBED) as running:
        kill(in_mid_batch(drill, running, [running.session]))
        blow = go_on(drill, running, "Python worker", "Python worker exited unexpectedly")
    drill.run(CHECK)
    return blow


def kill_executor(drill: Drill) -> Blow:
    """An executor's JVM, one of two on a standalone cluster, while its worker encodes."""
    with standalone(drill.log("cluster").parent) as cluster:
        with drill.start(EMBED, master=cluster.master, conf=cluster.conf) as running:
            pid, rows = in_mid_batch(drill, running, [cluster.session]), living()
            while pid in rows and "CoarseGrainedExecutorBackend" not in rows[pid].command:
                pid = rows[pid].parent
            if pid not in rows:
                raise DrillError("the encoding worker has no executor above it")
            kill(pid)
            blow = go_on(drill, running, "executor (JVM)", "Lost executor")
        drill.run(CHECK)
    return blow


def kill_staging(drill: Drill) -> Blow:
    """Driver and workers, as soon as a first file of vectors is there."""
    with drill.start(EMBED) as running:
        wait_until(lambda: bool(drill.staged_vectors()), "a file was staged", running, every_s=0.005)
        running.kill()
    if drill.vectors_are_in():
        raise DrillError("too late: the vectors were in before the driver died")
    return rerun(drill, "driver and workers", EMBED, CHECK)


def rerun(drill: Drill, killed: str, *programs: Path) -> Blow:
    seen = visible(drill.lake)
    drill.run(*programs, name="rerun")
    return Blow(killed, seen, "rerun")


def kill_before_commit(drill: Drill) -> Blow:
    """Everything staged, nothing committed."""
    return rerun(drill, drill.die_at("before:quarantine", EMBED), EMBED, CHECK)


def kill_between_tables(drill: Drill) -> Blow:
    """The reasons committed, the vectors not yet."""
    return rerun(drill, drill.die_at("after:quarantine", EMBED), EMBED, CHECK)


def kill_after_commit(drill: Drill) -> Blow:
    """Both tables committed, the program not yet through."""
    return rerun(drill, drill.die_at("after:pin_embeddings", EMBED), EMBED, CHECK)


def kill_landing(drill: Drill) -> Blow:
    """The landing, with quarantine and boards committed, saves and pins not."""
    shutil.rmtree(drill.home)
    return rerun(drill, drill.die_at("after:boards", LAND), LAND, EMBED, CHECK)


def kill_airflow_task(drill: Drill) -> Blow:
    """Airflow's task process, whose spark-submit goes on without it."""
    return Blow(*kill_task(drill.home, drill.exports, DS, MIN_COVERAGE))


def kill_airflow_scheduler(drill: Drill) -> Blow:
    """Airflow's scheduler with its executor's processes and the task's, in the middle of the encoding."""
    return Blow(*kill_scheduler(drill.home, drill.exports, DS, MIN_COVERAGE))


POINTS: dict[str, Callable[[Drill], Blow]] = {
    "worker": kill_worker,
    "executor": kill_executor,
    "staging": kill_staging,
    "commit": kill_before_commit,
    "tables": kill_between_tables,
    "after": kill_after_commit,
    "landing": kill_landing,
    "task": kill_airflow_task,
    "scheduler": kill_airflow_scheduler,
}
WITH_AIRFLOW = ("task", "scheduler")
LEAVES_ORPHANS = ("staging", "commit")
"""Where files lie that no commit will ever name."""


def judge(drill: Drill, row: Row) -> None:
    """Compares the lake with the undisturbed one, then sends maintenance after the orphans and compares again."""
    assert drill.wanted is not None
    row.wrong += promises_kept(drill.lake)
    wrong, row.vectors_apart = differences(contents(drill.lake), drill.wanted)
    row.wrong += wrong
    row.orphans_before = len(orphans(drill.lake))
    if row.point in LEAVES_ORPHANS and not row.orphans_before:
        row.wrong.append("no orphan was left: the blow fell before anything was staged")
    maintain(drill)
    row.orphans_after = len(orphans(drill.lake))
    if row.orphans_after:
        row.wrong.append(f"maintenance left {row.orphans_after} orphans")
    row.wrong += [f"after maintenance: {sentence}" for sentence in promises_kept(drill.lake)]
    wrong, _ = differences(contents(drill.lake), drill.wanted)
    row.wrong += [f"after maintenance: {sentence}" for sentence in wrong]


def maintain(drill: Drill) -> None:
    """The real maintenance, told that nothing else runs: files that no commit names may go at once."""
    log = drill.log("maintenance")
    args = ["--home", str(drill.home), "--run-id=maintenance", "--retention-hours", "0"]
    with spark_program(log, MAINTAIN, *args) as running:
        if status := running.wait():
            raise DrillError(f"maintenance ended with {status}; {running.tail()}")


def run_point(drill: Drill, name: str, landed: Path) -> Row:
    row = Row(name, (POINTS[name].__doc__ or "").strip())
    started = time.monotonic()
    drill.home = drill.work / "homes" / name
    shutil.copytree(landed, drill.home)
    try:
        row.blow = POINTS[name](drill)
        judge(drill, row)
    except (DrillError, OSError) as error:
        row.wrong.append(str(error))
    row.seconds = time.monotonic() - started
    shutil.rmtree(drill.home, ignore_errors=True)
    return row


def make_day(cache: Path, folder: Path, pictures: int) -> tuple[Path, Path]:
    """Exports with one day: the demo's first two as one, so that new, edited, repeated and broken pins are all in it."""
    write_days(read_clipart(fetch(cache)), folder / "demo", folder / "images", limit=pictures)
    first, second = (folder / "demo" / f"ds={ds}" for ds in DEMO_DAYS[:2])
    day = folder / "exports" / f"ds={DS}"
    shutil.copytree(second, day, ignore=shutil.ignore_patterns(SUCCESS_MARKER))
    for file in first.rglob("*.parquet"):
        shutil.copy(file, day / file.parent.name / f"first-{file.name}")
    (day / SUCCESS_MARKER).touch()
    return folder / "exports", day


def table(rows: Sequence[Row]) -> str:
    """The table of points."""
    head = ("point", "killed", "seen right after", "recovered by", "rows equal", "orphans", "seconds")
    cells = [
        (
            row.point,
            row.blow.killed,
            row.blow.seen,
            row.blow.recovered,
            "NO" if row.wrong else f"yes, within {row.vectors_apart:.0e}" if row.vectors_apart else "yes, exactly",
            f"{row.orphans_before} -> {row.orphans_after}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, *cells]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += ["", *(f"{row.point}: {row.about}" for row in rows)]
    lines += [f"\n{row.point} FAILED: {sentence}" for row in rows for sentence in row.wrong]
    return "\n".join(lines)


NOTES = """\
seen right after  what a reader of the tables saw between the blow and the recovery
rows equal        to those of the undisturbed night, in every table, before and after maintenance; "within" is the largest
                  difference between two components of a vector (allowed: 1e-5)
orphans           Parquet files that no version of a table's log names, before and after maintenance"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", help=f"some of {','.join(POINTS)}, separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, and no Airflow unless --points names it")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    cache = REPO / ".cache" / "openclipart"
    parser.add_argument("--cache", type=Path, default=cache, help="the demo's pictures, fetched if absent")
    parser.add_argument("--keep", type=Path, help="a new folder for logs and exports, kept (default: a temporary one)")
    args = parser.parse_args(argv)
    args.chosen = args.points.split(",") if args.points else [n for n in POINTS if not (args.quick and n in WITH_AIRFLOW)]
    if unknown := set(args.chosen) - POINTS.keys():
        parser.error(f"no such point: {', '.join(sorted(unknown))}; there are {', '.join(POINTS)}")
    return args


def run(args: argparse.Namespace, work: Path) -> list[Row]:
    exports, _ = make_day(args.cache, work, QUICK_PICTURES if args.quick else PICTURES)
    drill = Drill(work, exports, work / "homes" / "landed")
    landed = drill.home
    drill.run(LAND)
    drill.home = work / "homes" / "undisturbed"
    shutil.copytree(landed, drill.home)
    undisturbed(drill)
    print(f"undisturbed: {visible(drill.lake)}", file=sys.stderr, flush=True)
    rows = []
    for name in args.chosen:
        rows.append(run_point(drill, name, landed))
        print(f"{name}: {rows[-1].wrong or 'as undisturbed'}, {rows[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    return rows


@contextlib.contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="drill-") as work:
            yield Path(work)
    else:
        keep.mkdir(parents=True)
        yield keep.resolve()


def leave(number: int, _frame: object) -> None:
    """Leaves all `with` blocks, which end what was started; a second signal does not disturb that."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        with working_folder(args.keep) as work:
            rows = run(args, work)
    except (ClipartUnavailableError, DrillError) as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    machine = describe_machine(["pyspark", "deltalake", "apache-airflow", "torch"])
    text = f"{table(rows)}\n\n{NOTES}\n\n{machine_line(machine)}\n"
    figures = {"quick": args.quick, "rows": [asdict(row) for row in rows], "machine": machine}
    print(text)
    keep(figures, text, args.json, None if args.quick or args.points else "drill")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
