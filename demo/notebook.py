"""Runs the notebook of docs/ on a lake: `python -m demo.notebook --home .pinlake` writes a copy of it, with its figures.

The notebook itself is kept without outputs. What it asserts must hold: a cell that fails ends the run with its error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "lake.ipynb"


def run_notebook(home: str, timeout_s: int = 600) -> nbformat.NotebookNode:
    """The notebook with its outputs on a lake, run by this Python. Raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    return client.execute(env=os.environ | {"PINLAKE_HOME": home})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.notebook", description="Runs docs/lake.ipynb on a lake.")
    parser.add_argument(
        "--home", default=os.environ.get("PINLAKE_HOME", ".pinlake"), help="default $PINLAKE_HOME, else .pinlake"
    )
    parser.add_argument("--out", type=Path, help="default <home>/lake.ipynb")
    args = parser.parse_args(argv)
    home = args.home if "://" in args.home else str(Path(args.home).resolve())
    if args.out is None and "://" in home:
        parser.error("the lake is in an object store: say with --out where the notebook goes")
    try:
        notebook = run_notebook(home)
    except CellExecutionError as error:
        print(f"docs/lake.ipynb failed: {error}", file=sys.stderr)
        return 1
    target = args.out or Path(home) / "lake.ipynb"
    nbformat.write(notebook, target)
    print(target.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
