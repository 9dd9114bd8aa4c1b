"""The processes of a drill: Spark programs in sessions of their own, who among them does what, and their end.

Linux only: processes are told by /proc. Whatever is started here is ended when its `with` block is left, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.airflow import LAPTOP_SPARK_CONF

REPO = Path(__file__).resolve().parent.parent
LOCAL = "127.0.0.1"
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class DrillError(Exception):
    """The drill could not do what it set out to: a process did not appear, a program failed that nobody had touched."""


@dataclass(frozen=True)
class ProcessRow:
    """A living process as /proc tells it; `cpu_s` are its processor seconds so far, of all its threads."""

    pid: int
    parent: int
    group: int
    session: int
    cpu_s: float
    command: str


def living() -> dict[int, ProcessRow]:
    """Every process of this machine that is alive, by its number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The name may hold blanks and brackets; the fields after its last bracket don't.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if fields[0] != "Z":
                pid, cpu = int(folder.name), (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
                found[pid] = ProcessRow(pid, int(fields[1]), int(fields[2]), int(fields[3]), cpu, command)
    return found


def of_sessions(sessions: Iterable[int]) -> list[ProcessRow]:
    """The living processes of some sessions."""
    wanted = set(sessions)
    return [row for row in living().values() if row.session in wanted]


def kill(pid: int) -> None:
    """SIGKILL, to one process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end_sessions(sessions: Iterable[int], patience_s: float = 30) -> None:
    """SIGKILL to all processes of some sessions until none is left. Python workers have a group of their own, no session."""
    wanted, deadline = set(sessions), time.monotonic() + patience_s
    while rows := of_sessions(wanted):
        for row in rows:
            kill(row.pid)
        if time.monotonic() > deadline:
            raise DrillError(f"these would not die: {rows}")
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """What Spark needs to know to run this Python and this repository, on this machine alone."""
    path = [str(REPO), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": LOCAL,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


class Running:
    """A command in a session of its own, its output in a file. Leaving the block kills what is left of the session."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                command,
                env=environment(),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.session = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole session, at once."""
        end_sessions([self.session])
        self._process.wait()

    def wait(self, timeout_s: float = 600) -> int:
        """The exit status, once all of the session has ended; negative for a signal."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            raise DrillError(f"still running after {timeout_s:.0f} s; {self.tail()}") from late
        end_sessions([self.session])
        return status

    def ended(self) -> bool:
        return self._process.poll() is not None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 25) -> str:
        """The end of what it printed, for messages."""
        return f"the end of {self.log}:\n" + "\n".join(self.output().splitlines()[-lines:])


def spark_program(
    log: Path, program: Path, *args: str, master: str = "local[2,4]", conf: Mapping[str, str] | None = None
) -> Running:
    """A program through spark-submit. Of `local[2,4]`, 4 is how often a task may fail."""
    settings = [part for item in (LAPTOP_SPARK_CONF | dict(conf or {})).items() for part in ("--conf", "=".join(item))]
    submit = str(Path(sys.executable).parent / "spark-submit")
    return Running(log, submit, "--master", master, *settings, str(program), *args)


def wait_until(
    reached: Callable[[], bool], what: str, running: Running | None = None, *, timeout_s: float = 300, every_s: float = 0.05
) -> None:
    """Returns as soon as `reached` says yes. Raises DrillError when time is up or `running` has ended before."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if running is not None and running.ended():
            raise DrillError(f"ended before {what}; {running.tail()}")
        if time.monotonic() > deadline:
            raise DrillError(f"waited {timeout_s:.0f} s in vain until {what}")
        time.sleep(every_s)


class EncodingWorkers:
    """Spark's Python workers that encode, told by torch in their memory, and the processor seconds since it is there."""

    def __init__(self, sessions: Iterable[int]) -> None:
        self._sessions = list(sessions)
        self._since: dict[int, float] = {}
        self.encoding_s: dict[int, float] = {}

    def look(self) -> dict[int, float]:
        """Processor seconds spent on encoding so far, by worker; those that have ended keep their last."""
        rows = {row.pid: row for row in of_sessions(self._sessions) if "pyspark.daemon" in row.command}
        for row in rows.values():
            # A worker is a fork of the daemon, which has the same command line and never loads torch.
            if row.parent in rows and (row.pid in self._since or _has_torch(row.pid)):
                self.encoding_s[row.pid] = row.cpu_s - self._since.setdefault(row.pid, row.cpu_s)
        return self.encoding_s

    def busiest(self) -> tuple[int, float]:
        """The living worker that has encoded longest and its seconds; (0, 0.0) where there is none."""
        seen, alive = self.look(), living()
        return max(((pid, seconds) for pid, seconds in seen.items() if pid in alive), key=lambda one: one[1], default=(0, 0.0))


def _has_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return False


@contextlib.contextmanager
def watched(workers: EncodingWorkers, every_s: float = 0.05) -> Iterator[None]:
    """Keeps looking at the workers while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            workers.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Cluster:
    """Spark's standalone master and one worker machine with two executors of a core each."""

    master: str
    session: int
    conf: Mapping[str, str]


@contextlib.contextmanager
def standalone(folder: Path, worker_conf: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster of real processes, for the block. `worker_conf`: properties of the worker, such as what GPUs it has."""
    found = find_spec("pyspark")
    assert found is not None and found.origin is not None
    spark_class = str(Path(found.origin).parent / "bin" / "spark-class")
    port = free_port()
    address = f"spark://{LOCAL}:{port}"
    deploy = "org.apache.spark.deploy"
    listening = ["--host", LOCAL, "--webui-port", "0"]
    with (
        Running(folder / "master.log", spark_class, f"{deploy}.master.Master", *listening, "--port", str(port)) as master,
        contextlib.ExitStack() as stack,
    ):
        wait_until(lambda: "I have been elected leader" in master.output(), "the master was up", master)
        properties = folder / "worker.conf"
        properties.write_text("".join(f"{name} {value}\n" for name, value in (worker_conf or {}).items()))
        room = ["--cores", "2", "--memory", "4g", "--work-dir", str(folder / "work"), "--properties-file", str(properties)]
        worker = stack.enter_context(
            Running(folder / "worker.log", spark_class, f"{deploy}.worker.Worker", *listening, *room, address)
        )
        wait_until(lambda: "Successfully registered" in worker.output(), "the worker was registered", worker)
        yield Cluster(
            address,
            worker.session,
            {
                "spark.driver.host": LOCAL,
                "spark.executor.cores": "1",
                "spark.executor.memory": "1g",
                "spark.cores.max": "2",
                "spark.executorEnv.PYTHONPATH": environment()["PYTHONPATH"],
            },
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])
