"""Spark's own standalone cluster on one machine, its workers and the driver each held to a fixed share of the processors.

A share is a control group of Linux with a quota of CPU time: a worker has the same 0.4 of a core whether one, two or four of
them run, which pinning to cores cannot give where there are fewer cores than workers. The driver has a share of its own, so
that what it does alone is not done by what the workers leave idle. CPU seconds and memory are the groups' own counts: the
kernel misses no process and no last fraction of a second.

Written for control groups of version 1 and of version 2 (the first was there to be tried on); root, or a tree that was
delegated. Where no group can be made, SharesError says so: without shares the figures would mean something else.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.spark import ProgramFailedError, program_environment, submission

PERIOD_US = 100_000
SAMPLE_EVERY_S = 0.5
STARTED_WITHIN_S, ENDED_WITHIN_S = 60.0, 20.0
HOST = "127.0.0.1"
_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "cpuacct", "memory")


class SharesError(Exception):
    """This machine lets us make no control groups."""


class Share:
    """A control group whose processes together get `cores` of CPU time, a fraction of one if need be."""

    def __init__(self, name: str, cores: float):
        self.cores = cores
        self._new = (_ROOT / "cgroup.controllers").is_file()
        roots = [_ROOT] if self._new else [_ROOT / controller for controller in _CONTROLLERS]
        self._folders = [root / f"pinlake-growth-{os.getpid()}-{name}" for root in roots]
        quota = round(cores * PERIOD_US)
        try:
            for folder in self._folders:
                folder.mkdir()
            if self._new:
                (self._folders[0] / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (self._folders[0] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (self._folders[0] / "cpu.cfs_quota_us").write_text(str(quota))
            self.cpu_s()
            self.memory_bytes()
        except (OSError, KeyError) as error:
            self.remove()
            raise SharesError(f"a control group for {name} cannot be made below {_ROOT}: {error}") from error

    def command(self, command: Sequence[str]) -> list[str]:
        """The command, to run within the share from its first moment."""
        script = 'for group in $0; do echo $$ > "$group/cgroup.procs" || exit 1; done; exec "$@"'
        return ["sh", "-c", script, " ".join(map(str, self._folders)), *command]

    def cpu_s(self) -> float:
        """CPU seconds, user's and system's, of all processes that have ever been in it."""
        if self._new:
            return _statistics(self._folders[0] / "cpu.stat")["usage_usec"] / 1e6
        return int((self._folders[1] / "cpuacct.usage").read_text()) / 1e9

    def memory_bytes(self) -> int:
        """What its processes hold now that no file backs: without what the kernel caches for them, and drops at need."""
        found = _statistics(self._folders[-1] / "memory.stat")
        return found["anon"] if self._new else found["total_rss"]

    def processes(self) -> list[int]:
        with suppress(OSError):
            return [int(pid) for pid in (self._folders[0] / "cgroup.procs").read_text().split()]
        return []

    def remove(self) -> None:
        """Ends what is left in it, and gives it back."""
        for _ in range(100):
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            left = [folder for folder in self._folders if folder.is_dir()]
            for folder in left:
                with suppress(OSError):
                    folder.rmdir()
            if not any(folder.is_dir() for folder in left):
                return
            time.sleep(0.1)


def _statistics(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in file.read_text().splitlines())}


@dataclass(frozen=True)
class Shares:
    """Cores of the driver, and of each worker."""

    driver: float
    worker: float


@dataclass(frozen=True)
class Submitted:
    """A program that ended well. Seconds of CPU of the driver and of all workers; most memory of the driver and of a worker."""

    seconds: float
    driver_cpu_s: float
    worker_cpu_s: float
    driver_bytes: int
    worker_bytes: int
    output: str


class StandaloneCluster:
    """A master and so many workers of one core each in Spark's eyes, and what is submitted to them. Made by `cluster`."""

    def __init__(self, master: str, driver: Share, workers: Sequence[Share], properties: Mapping[str, str]):
        self._master, self._driver, self._workers, self._properties = master, driver, workers, properties

    def __len__(self) -> int:
        return len(self._workers)

    def submit(self, program: str, *args: str, conf: Mapping[str, str] | None = None) -> Submitted:
        """Runs a program (a path within the repository) from start-up to exit. Raises ProgramFailedError."""
        command = submission(program, *args, master=self._master, conf={**self._properties, **(conf or {})})
        before = self._driver.cpu_s(), sum(worker.cpu_s() for worker in self._workers)
        started = time.monotonic()
        process = subprocess.Popen(
            self._driver.command(command),
            env=program_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with _Peaks(self._driver, self._workers) as peaks:
            output, _ = process.communicate()
        seconds = time.monotonic() - started
        self._await_executors()
        if process.returncode:
            raise ProgramFailedError(f"{program} {' '.join(args)}: exit status {process.returncode}\n{output[-4000:]}")
        cpu_s = self._driver.cpu_s() - before[0], sum(worker.cpu_s() for worker in self._workers) - before[1]
        return Submitted(seconds, *cpu_s, peaks.driver, peaks.worker, output)

    def _await_executors(self) -> None:
        """Until the program's executors have ended: in each share the worker itself is left."""
        deadline = time.monotonic() + ENDED_WITHIN_S
        while any(len(worker.processes()) > 1 for worker in self._workers) and time.monotonic() < deadline:
            time.sleep(0.1)


class _Peaks:
    """The most memory of the driver and of any one worker while the block runs."""

    def __init__(self, driver: Share, workers: Sequence[Share]):
        self.driver = self.worker = 0
        self._shares, self._ended = (driver, workers), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Peaks:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        driver, workers = self._shares
        while not self._ended.wait(SAMPLE_EVERY_S):
            self.driver = max(self.driver, driver.memory_bytes())
            self.worker = max(self.worker, *(worker.memory_bytes() for worker in workers))


@contextmanager
def cluster(workers: int, shares: Shares, folder: Path, properties: Mapping[str, str]) -> Iterator[StandaloneCluster]:
    """A cluster for the block; its logs and the executors' go into `folder`. Raises SharesError."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        driver, *groups = (
            _share(stack, name, cores)
            for name, cores in [("driver", shares.driver), *((f"worker-{n}", shares.worker) for n in range(workers))]
        )
        port = _free_port()
        master = f"spark://{HOST}:{port}"
        options = ["--host", HOST, "--port", str(port), "--webui-port", "0"]
        _start(stack, "master.Master", options, folder / "master.log", "New state: ALIVE")
        for number, group in enumerate(groups):
            work = folder / f"worker-{number}"
            options = ["--host", HOST, "--cores", "1", "--memory", "3g", "--webui-port", "0", "--work-dir", str(work), master]
            _start(stack, "worker.Worker", options, folder / f"worker-{number}.log", "Successfully registered", group)
        fixed = {
            "spark.driver.host": HOST,
            "spark.driver.bindAddress": HOST,
            "spark.cores.max": str(workers),
            "spark.executor.cores": "1",
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
        }
        yield StandaloneCluster(master, driver, groups, {**fixed, **properties})


def _share(stack: ExitStack, name: str, cores: float) -> Share:
    share = Share(name, cores)
    stack.callback(share.remove)
    return share


def _start(stack: ExitStack, what: str, options: Sequence[str], log_file: Path, said: str, share: Share | None = None) -> None:
    """Starts one of Spark's daemons, and waits until its log says that it is there."""
    spark_class = Path(sys.executable).parent / "spark-class"
    command = [str(spark_class), f"org.apache.spark.deploy.{what}", *options]
    environment = program_environment() | {
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            share.command(command) if share else command, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    stack.callback(_end, process)
    deadline = time.monotonic() + STARTED_WITHIN_S
    while said not in log_file.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ProgramFailedError(f"{what} did not start:\n{log_file.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
