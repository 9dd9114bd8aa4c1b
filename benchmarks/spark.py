"""One program through spark-submit, as a scheduler submits it, with its seconds and what all its processes took.

The settings are those of the laptop's Airflow (demo/airflow.py), so that a benchmark measures what a night really runs with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from demo.airflow import LAPTOP_SPARK_CONF

REPO = Path(__file__).resolve().parent.parent
SAMPLE_EVERY_S = 0.25


class ProgramFailedError(Exception):
    """A program ended with another exit status than 0; the message holds the end of what it printed."""


@dataclass(frozen=True)
class Run:
    """A program that ended well: wall-clock seconds, its process tree's CPU and memory (`ProcessTree`), and what it printed."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    output: str
    peak_unmapped_bytes: int = 0


def submit(
    program: str,
    *args: str,
    master: str = "local[2]",
    conf: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    group: Path | None = None,
) -> Run:
    """Runs `program` (a path within the repository) through spark-submit, by this Python, from start-up to exit.

    conf: properties over the laptop's. group: as `memory_group` gives it. Raises ProgramFailedError.
    """
    return run(submission(program, *args, master=master, conf=conf), environment=environment, group=group)


def submission(program: str, *args: str, master: str = "local[2]", conf: Mapping[str, str] | None = None) -> list[str]:
    """The command that `submit` runs."""
    properties = LAPTOP_SPARK_CONF | dict(conf or {})
    settings = [part for name, value in properties.items() for part in ("--conf", f"{name}={value}")]
    submit_script = str(Path(sys.executable).parent / "spark-submit")
    return [submit_script, "--master", master, *settings, str(REPO / program), *args]


def program_environment() -> dict[str, str]:
    """What Spark's programs need here."""
    return os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")])),
    }


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, group: Path | None = None) -> Run:
    """Runs a command with the environment that Spark's programs need here. Raises ProgramFailedError."""
    env = program_environment() | dict(environment or {})
    if group:
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
    started = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with ProcessTree(process.pid) as tree:
        output, _ = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise ProgramFailedError(f"{' '.join(command)}: exit status {process.returncode}\n{output[-4000:]}")
    return Run(seconds, tree.cpu_s, tree.peak_bytes, output, tree.peak_unmapped_bytes)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group (Linux) whose processes together get so much memory, cached files among it: the kernel first drops what
    it can read again, then kills. None where this user may not make one."""
    group = None
    for root, files in (
        (Path("/sys/fs/cgroup/memory"), {"memory.limit_in_bytes": limit_bytes, "memory.memsw.limit_in_bytes": limit_bytes}),
        (Path("/sys/fs/cgroup"), {"memory.max": limit_bytes, "memory.swap.max": 0}),
    ):
        made = root / f"pinlake-{os.getpid()}"
        if group is None and (root / "cgroup.procs").is_file():
            with suppress(OSError):
                made.mkdir()
                for name, value in files.items():
                    (made / name).write_text(str(value))
                group = made
    try:
        yield group
    finally:
        if group:
            for _ in range(100):  # the last of its processes may still be ending
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)


def group_peak_bytes(group: Path) -> int:
    """The most that the processes of a control group had at once."""
    file = next(group / name for name in ("memory.max_usage_in_bytes", "memory.peak") if (group / name).is_file())
    return int(file.read_text())


class ProcessTree:
    """What a process and all that it started take while the block runs, looked at every SAMPLE_EVERY_S.

    `peak_bytes` is the largest sum of PSS, which counts a page that n processes share as an nth in each: forked workers are
    not counted twice. `peak_unmapped_bytes` leaves out pages of mapped files, of an index that is searched for instance: the
    kernel drops those where memory is short, and reads them again. `cpu_s` is user and system time, as far as it was seen: a
    process's last fraction of a second is missed.
    """

    def __init__(self, pid: int):
        self._pid, self._ended = pid, threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._cpu_s: dict[int, float] = {}
        self.peak_bytes = self.peak_unmapped_bytes = 0

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())

    def __enter__(self) -> ProcessTree:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        next_look = 0.0
        while not self._ended.wait(SAMPLE_EVERY_S):
            found = process_tree(self._pid)
            self._cpu_s |= found
            # The kernel walks all pages of a process to tell its PSS, 30 ms for 2 GB: no more than 2% of a core goes there.
            if (started := time.monotonic()) >= next_look:
                pages = [_pages_of(pid) for pid in found]
                self.peak_bytes = max(self.peak_bytes, sum(page["Pss"] for page in pages))
                self.peak_unmapped_bytes = max(self.peak_unmapped_bytes, sum(page["Pss"] - page["Pss_File"] for page in pages))
                next_look = started + 50 * (time.monotonic() - started)


def process_tree(root: int) -> dict[int, float]:
    """The process and its descendants that are alive now, each with the seconds of CPU it has taken (Linux)."""
    children: dict[int, list[int]] = {}
    cpu_s: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # The name, in brackets, may hold anything; after it come the state and the parent.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                pid, parent, ticks = int(folder.name), int(fields[1]), int(fields[11]) + int(fields[12])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(pid)
            cpu_s[pid] = ticks / os.sysconf("SC_CLK_TCK")
    found: dict[int, float] = {}
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in cpu_s:
            found[pid] = cpu_s[pid]
        waiting += children.get(pid, [])
    return found


def pss_bytes(pid: int) -> int:
    """A process's proportional share of memory; 0 for one that has ended."""
    return _pages_of(pid)["Pss"]


def _pages_of(pid: int) -> dict[str, int]:
    """Bytes of `Pss`, and of `Pss_File` within them; none of a process that has ended."""
    found = {"Pss": 0, "Pss_File": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return found
    for name, _, rest in (line.partition(":") for line in lines):
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found
