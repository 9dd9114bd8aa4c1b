"""The drill's points that need a real Airflow: its task process, and its scheduler with all that belongs to it.

Both leave the spark-submit of the task alive: nobody told it to stop, so it goes on, and may commit beside the retry.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.drill_lake import visible
from benchmarks.drill_processes import (
    DrillError,
    EncodingWorkers,
    ProcessRow,
    end_sessions,
    kill,
    living,
    of_sessions,
    wait_until,
)
from demo.airflow import COMPONENTS, LocalAirflow
from embedding.contracts import PIN_EMBEDDINGS
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows

DAG, PORT = "nightly_pins", 18_180
EMBED = "embed_pins.py"
HEARTBEAT_TIMEOUT_S = 30
ENCODED_S = 2.0
"""How long, in processor seconds, a worker has had torch before the blow falls: the encoder is being loaded, or encodes."""

Told = tuple[str, str, str]
"""Who was killed, what a reader saw right after, and who made it good."""


@contextlib.contextmanager
def night(home: Path, exports: Path, ds: str, min_coverage: float) -> Iterator[tuple[LocalAirflow, str]]:
    """An Airflow in the middle of a night: the run's id, once the pictures are being encoded."""
    settings = {
        "PINLAKE_EXPORTS": str(exports),
        # How soon it is seen that a task's process or a scheduler is silent. The defaults are patient with busy databases.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_S),
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": str(HEARTBEAT_TIMEOUT_S),
        # A scheduler asks for the tasks of dead ones when it starts, and then every so often: five minutes by default.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": str(HEARTBEAT_TIMEOUT_S),
    }
    stack = LocalAirflow(home, port=PORT, spark_master="local[2,4]", retry_delay_s=1, env=settings)
    with stack:
        stack.api.unpause(DAG)
        run_id = stack.api.trigger_day(DAG, ds, {"min_coverage": min_coverage})
        workers = EncodingWorkers([session_of(stack, "scheduler")])
        wait_until(lambda: workers.busiest()[1] > ENCODED_S and bool(drivers(stack)), "the night was encoding", timeout_s=600)
        yield stack, run_id


def session_of(stack: LocalAirflow, name: str) -> int:
    """The session of one of the stack's processes, with its number."""
    recorded = json.loads((stack.airflow_home / "stack.json").read_text())["processes"]
    return int(next(process["pid"] for process in recorded if process["name"] == name))


def drivers(stack: LocalAirflow, session: int | None = None) -> list[ProcessRow]:
    """The JVMs of spark-submit that embed."""
    rows = of_sessions([session or session_of(stack, "scheduler")])
    return [row for row in rows if EMBED in row.command and "java" in row.command.split(" ", 1)[0]]


def kill_task(home: Path, exports: Path, ds: str, min_coverage: float) -> Told:
    """SIGKILL to the process that runs the task embed, while its program encodes."""
    with night(home, exports, ds, min_coverage) as (stack, run_id):
        (driver,) = drivers(stack)
        runner = living()[driver.group]  # Airflow gives each task a process group, named after the task's process
        if not runner.command.startswith("airflow worker"):
            raise DrillError(f"not a task's process: {runner}")
        kill(runner.pid)
        check_in_time(home)
        return finish(stack, run_id, "Airflow's task process", driver, "Airflow's retry")


def kill_scheduler(home: Path, exports: Path, ds: str, min_coverage: float) -> Told:
    """SIGKILL to the scheduler, its executor's workers and the task's process; then a new scheduler on the same database."""
    with night(home, exports, ds, min_coverage) as (stack, run_id):
        (driver,) = drivers(stack)
        session = session_of(stack, "scheduler")
        program = _descendants(driver.pid)
        try:
            for row in of_sessions([session]):
                if row.pid not in program:
                    kill(row.pid)
            check_in_time(home)
            with (stack.logs / "second-scheduler.log").open("wb") as log:
                command = [sys.executable, "-m", "airflow", "scheduler", *COMPONENTS["scheduler"]]
                second = subprocess.Popen(
                    command,
                    env=stack.environment(),
                    cwd=stack.airflow_home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                return finish(stack, run_id, "scheduler, its workers, the task", driver, "a new scheduler")
            finally:
                end_sessions([second.pid])
                second.wait()
        finally:
            end_sessions([session])


def check_in_time(home: Path) -> None:
    """Raises DrillError where the blow fell after the night's vectors were in."""
    if read_rows(Lake(str(home)).open(PIN_EMBEDDINGS), ["pin_id"]).num_rows:
        raise DrillError("too late: the vectors were in before the blow fell")


def _descendants(root: int) -> set[int]:
    rows, found, grown = living(), {root}, True
    while grown:
        children = {pid for pid, row in rows.items() if row.parent in found} - found
        found |= children
        grown = bool(children)
    return found


def finish(stack: LocalAirflow, run_id: str, killed: str, orphan: ProcessRow, by: str) -> Told:
    """Waits for the run, and for the program that lost its task."""
    time.sleep(1)
    outlived = orphan.pid in living()
    seen = visible(Lake(str(stack.home)))
    state = stack.api.wait_run(DAG, run_id, timeout_s=1_200)
    if state != "success":
        raise DrillError(f"the run ended as {state}: {stack.api.failure_report(DAG, run_id)}")
    began = time.monotonic()
    wait_until(lambda: orphan.pid not in living(), "the orphaned program ended", timeout_s=600)
    late = time.monotonic() - began > 1
    orphaned = f"; the orphaned program {'ended after the run' if late else 'went on beside it'}" if outlived else ""
    return killed, seen, by + orphaned
