"""What a benchmark found of its claim, and where its figures go.

To the file that was asked for, and, of a full run, to benchmarks/results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS_FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Verdict:
    """A part of the claim, and whether it holds."""

    sentence: str
    holds: bool


def keep(figures: Mapping[str, Any], text: str, json_file: Path | None, full_run: str | None) -> None:
    """Writes figures as JSON, and a table for people beside the kept ones.

    json_file: What `--json` named. full_run: The benchmark's name, below which its last full result is kept; None for a part.
    """
    said = json.dumps(figures, indent=1) + "\n"
    if json_file:
        json_file.write_text(said, encoding="utf-8")
    if full_run:
        RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
        (RESULTS_FOLDER / f"{full_run}.json").write_text(said, encoding="utf-8")
        (RESULTS_FOLDER / f"{full_run}.txt").write_text(text, encoding="utf-8")
