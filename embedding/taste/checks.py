"""What the gate of the taste graph found: a small JSON file a run, among the run's other notes, below the graph's last day.

    runs/ds=2026-11-18/<run>/taste.json

A run that found a newer graph live has checked nothing, and leaves none.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from embedding.contracts import DS_PATTERN
from embedding.quality.taste import TasteCounts
from embedding.tables import storage
from embedding.tables.lake import Lake

_FILE = "taste.json"


@dataclass(frozen=True)
class TasteCheck:
    """A check of a graph and of what was made with it.

    ds: The graph's last day. most_change: The share by which edges, and interests a user, were allowed to change.
    failures: A sentence each; empty where it passed. checked_at: ISO 8601, UTC.
    """

    ds: str
    run_id: str
    graph_id: str
    counts: TasteCounts
    most_change: float
    failures: list[str]
    checked_at: str

    @property
    def passed(self) -> bool:
        return not self.failures

    def bounds(self, before: float | None) -> tuple[float, float] | None:
        """From where to where a count was let through that was `before`; None where there was none."""
        return (before * max(0.0, 1 - self.most_change), before * (1 + self.most_change)) if before else None

    @classmethod
    def from_json(cls, data: bytes) -> TasteCheck:
        """Raises ValueError where it is none."""
        try:
            values = json.loads(data)
            return cls(**values | {"counts": TasteCounts(**values["counts"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"no check of a taste graph: {error}") from None


def write_check(lake: Lake, check: TasteCheck) -> None:
    """A second check of the same run and day takes the place of the first."""
    storage.write_atomic(f"{lake.run_uri(check.ds, check.run_id)}/{_FILE}", json.dumps(asdict(check), indent=1).encode())


def last_checks(lake: Lake, faults: list[str], days: int = 30) -> list[TasteCheck]:
    """The checks of the newest `days` of which any run has left a note, oldest first by when they were made.

    One that cannot be read becomes a sentence in `faults`.
    """
    found: list[TasteCheck] = []
    folders = [name for name in storage.folders(f"{lake.home}/runs") if re.match(DS_PATTERN, name.removeprefix("ds="))]
    for folder in folders[-days:]:
        for run in storage.folders(f"{lake.home}/runs/{folder}"):
            uri = f"{lake.home}/runs/{folder}/{run}/{_FILE}"
            if storage.exists(uri):
                try:
                    found.append(TasteCheck.from_json(storage.read_bytes(uri)))
                except ValueError as error:
                    faults.append(f"the taste graph's check of run {run} cannot be read ({error})")
    return sorted(found, key=lambda check: check.checked_at)
