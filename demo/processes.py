"""This machine's processes: which there are, and which descend from some of them, also where their parents have died."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessRow:
    """What the kernel says of a process. `started` is in the kernel's own unit."""

    parent: int
    session: int
    started: str
    is_zombie: bool


def process_table() -> dict[int, ProcessRow]:
    """Every process of this machine, by its number."""
    if Path("/proc/self/stat").exists():
        return dict(_read_proc())
    return dict(_read_ps())


def _read_proc() -> Iterator[tuple[int, ProcessRow]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                # The command's name may hold blanks and brackets; the fields after its last bracket don't.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                yield int(entry.name), ProcessRow(int(fields[1]), int(fields[3]), fields[19], fields[0] == "Z")


def _read_ps() -> Iterator[tuple[int, ProcessRow]]:
    """For systems without /proc. The process group stands in for the session, whose number macOS does not tell."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, parent, group, state, started = line.split(None, 4)
        yield int(pid), ProcessRow(int(parent), int(group), started.strip(), state.startswith("Z"))


def living_tree(leaders: Set[int], table: Mapping[int, ProcessRow]) -> set[int]:
    """Living processes of the sessions that `leaders` lead, and descendants in sessions of their own; never this one."""
    found = {pid for pid, row in table.items() if row.session in leaders or pid in leaders}
    while children := {pid for pid, row in table.items() if row.parent in found} - found:
        found |= children
    return {pid for pid in found if not table[pid].is_zombie} - {os.getpid()}
