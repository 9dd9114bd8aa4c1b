"""What a benchmark ran on, kept with its figures: without it a figure can be neither used nor repeated."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CPU_NAMES = ("model name", "Hardware", "cpu model")


def describe_machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """CPU, cores that this process may use, memory, operating system, Python, and the versions of `packages`."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in packages},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """`describe_machine`'s answer in a line of text."""
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    versions = "".join(f", {name} {number}" for name, number in machine["versions"].items())
    return f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['os']}, Python {machine['python']}{versions}"


def cpu_model() -> str:
    """The processor's name as the kernel gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return _value_of(lines, _CPU_NAMES) or platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Physical memory, or less where a control group allows less; None where the system does not say."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        allowed = "max"
    return round(min(size, int(allowed)) / 2**30 if allowed.isdigit() else size / 2**30, 1)


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _value_of(lines: Sequence[str], names: Sequence[str]) -> str | None:
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in names and value.strip():
            return value.strip()
    return None
