"""Reading `nights`: which days may be released, and the runs as people want to see them. Small by nature: a row a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedding.contracts import NIGHTS
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows


def last_nights(lake: Lake, columns: Sequence[str], last: int) -> list[dict[str, Any]]:
    """The last rows of `nights`, oldest first by when they were checked; empty where there is no such table.

    Left out are rows of migrations, which landed nothing, and, of a night under several encoders, all but the row that was
    checked first: the live encoder's.
    """
    if not lake.exists(NIGHTS):
        return []
    needed = {"run_id", "ds", "land_s", "checked_at"}
    rows = read_rows(lake.open(NIGHTS), sorted(needed | set(columns))).to_pylist()
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["checked_at"], row["run_id"])):
        if row["land_s"] is not None:
            first.setdefault((row["run_id"], row["ds"]), row)
    return [{name: row[name] for name in columns} for row in list(first.values())[-last:]]


def passed_days(lake: Lake, embedding_version: str) -> list[str]:
    """The days whose latest row of `nights` under a version says that they passed, in order."""
    if not lake.exists(NIGHTS):
        return []
    nights = read_rows(lake.snapshot(NIGHTS), ["ds", "embedding_version", "status", "checked_at"]).to_pylist()
    latest = {
        row["ds"]: row["status"]
        for row in sorted(nights, key=lambda row: row["checked_at"])
        if row["embedding_version"] == embedding_version
    }
    return sorted(ds for ds, status in latest.items() if status == "passed")
