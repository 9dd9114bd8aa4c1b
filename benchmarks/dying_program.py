"""Runs a real program of jobs/ and kills its driver with SIGKILL right before or after it commits a named table.

    spark-submit benchmarks/dying_program.py after:quarantine jobs/embed_pins.py --home .pinlake ...

For `benchmarks.drill`: the moments around a commit are too short to be hit from outside. The program itself is run as it is;
only deltalake's low-level commit, through which every day becomes visible, is watched. JVM and Python die together, as on
a machine that loses its power: start it in a process group of its own. Exits with 1 where the commit never came.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltalake import DeltaTable


def dying(commit: Callable[..., None], moment: str, table: str) -> Callable[..., None]:
    """`commit`, but that of the table called `table` is the last thing that happens, or (`before`) does not happen."""

    def commit_or_die(self: DeltaTable, *args: Any, **options: Any) -> None:
        ours = Path(self.table_uri.rstrip("/")).name == table
        if ours and moment == "before":
            die()
        commit(self, *args, **options)
        if ours:
            die()

    return commit_or_die


def die() -> None:
    """Kills this process's group: spark-submit's JVM and the driver in Python."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> int:
    moment, _, table = sys.argv[1].partition(":")
    if moment not in ("before", "after") or not table:
        raise SystemExit(f"not a moment: {sys.argv[1]}; say before:TABLE or after:TABLE")
    watched = dying(DeltaTable.create_write_transaction, moment, table)
    DeltaTable.create_write_transaction = watched  # type: ignore[method-assign]
    program = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_path(program, run_name="__main__")
    return 1


if __name__ == "__main__":
    sys.exit(main())
