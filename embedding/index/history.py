"""The table `releases`: a row a checked release, so that recall over time and a release's lineage are one query."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from embedding.contracts import RELEASES
from embedding.index.release import Check, Manifest
from embedding.tables.lake import Lake
from embedding.tables.rows import write_row
from embedding.tables.scan import read_rows


def record_check(lake: Lake, manifest: Manifest, check: Check) -> None:
    """Writes the release's row; checked again, it keeps who published it."""
    before = release_rows(lake, manifest.release_id)
    published = {name: before[0][name] if before else None for name in ("published_by", "published_at")}
    write_row(lake, RELEASES, _row(manifest, check) | published)


def record_publication(lake: Lake, release_id: str, run_id: str) -> None:
    """Notes in the release's row who made it live, and when. Again by the same run, it changes nothing."""
    for row in release_rows(lake, release_id):
        if row["published_by"] != run_id:
            write_row(lake, RELEASES, row | {"published_by": run_id, "published_at": datetime.now(UTC)})


def release_rows(lake: Lake, release_id: str | None = None) -> list[dict[str, Any]]:
    """The rows of one release (one or none), or of all, oldest first by when they were built."""
    if not lake.exists(RELEASES):
        return []
    rows = read_rows(lake.open(RELEASES))
    if release_id is not None:
        rows = rows.filter(pc.field("release_id") == release_id)
    return sorted(rows.to_pylist(), key=lambda row: row["built_at"])


def _row(manifest: Manifest, check: Check) -> dict[str, Any]:
    point = next((point for point in manifest.sweep if point.setting == manifest.setting), None)
    same = ("release_id", "ds", "embedding_version", "rows", "factory", "pins_version", "pin_embeddings_version", "built_by")
    figures = ("failures", "recall_at_10", "recall_low", "recall_high", "overlap_at_10", "p50_ms", "p99_ms")
    return {
        **{name: getattr(manifest, name) for name in same},
        **{name: getattr(check, name) for name in figures},
        "status": "passed" if check.passed else "failed",
        "setting": str(manifest.setting),
        "recall_goal": manifest.choice.wanted.recall_goal if manifest.choice else None,
        "qps": point.qps if point else None,
        "bytes_a_vector": round(manifest.index_bytes_a_vector, 1),
        "size_bytes": manifest.size_bytes,
        "files": [{"name": name, "size_bytes": f.size_bytes, "sha256": f.sha256} for name, f in manifest.files.items()],
        "built_at": datetime.fromisoformat(manifest.built_at),
        "checked_at": datetime.fromisoformat(check.checked_at),
    }
