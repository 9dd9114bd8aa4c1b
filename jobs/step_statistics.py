"""What a step of a run leaves for the later ones and the report."""

from __future__ import annotations

import json
import time
from typing import Any

from embedding.tables import storage
from embedding.tables.lake import Lake


class StepStatistics:
    """What a step of a night tells the later ones and the report, in a small JSON file a run: counts and seconds."""

    def __init__(self, lake: Lake, ds: str, run_id: str, step: str):
        self._uri = f"{lake.run_uri(ds, run_id)}/{step}.json"
        self._started = time.monotonic()
        self.values: dict[str, Any] = {}

    def write(self) -> None:
        self.values["seconds"] = round(time.monotonic() - self._started, 3)
        storage.write_atomic(self._uri, json.dumps(self.values, indent=1).encode())

    @staticmethod
    def read(lake: Lake, ds: str, run_id: str, step: str) -> dict[str, Any]:
        """Empty where the step left none."""
        uri = f"{lake.run_uri(ds, run_id)}/{step}.json"
        return dict(json.loads(storage.read_bytes(uri))) if storage.exists(uri) else {}
