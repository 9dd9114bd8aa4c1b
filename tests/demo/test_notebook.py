"""docs/lake.ipynb runs on a lake from its first cell to its last, asserts what it says, and shows tables and pictures."""

from __future__ import annotations

from collections import Counter

import nbformat

from demo.notebook import NOTEBOOK, run_notebook
from embedding.tables.lake import Lake


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) > 10 and not any(cell.outputs or cell.execution_count for cell in cells)


def test_it_runs_and_what_it_asserts_holds(lake_with_interests: Lake, spark_environment: None) -> None:
    outputs = [out for cell in run_notebook(lake_with_interests.home).cells for out in cell.get("outputs", [])]
    shown = Counter(kind for out in outputs for kind in out.get("data", {}))
    assert shown["image/png"] == 4, "neighbours, drift, recall, interests"
    assert shown["text/html"] >= 5
    said = "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stdout")
    assert "Of the true ten neighbours of" in said
    # Spark says there what a JVM says; a warning of ours, or of a library that we call wrongly, has its file and line.
    assert not [out.text for out in outputs if out.output_type == "stream" and out.name == "stderr" and "Warning:" in out.text]
