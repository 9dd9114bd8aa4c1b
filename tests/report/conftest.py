"""A small lake with real tables and a real release: three nights, one of them failed, and pins that mean harm."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image

from embedding.contracts import NIGHTS, QUARANTINE, TableContract
from embedding.index.recall import Floats
from embedding.index.release import Check, Manifest, manifest_sha256, publish, write_check
from embedding.tables.lake import Lake
from tests.small_release import build_release

VERSION = "pinclip-base-0123456789ab"
DAYS = ("2026-11-16", "2026-11-17", "2026-11-18")
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'
HOSTILE_URI = "javascript:alert(document.cookie)"
ROWS, DIM = 40, 16


def append(lake: Lake, contract: TableContract, rows: Sequence[dict[str, Any]]) -> None:
    lake.open(contract)
    write_deltalake(lake.table_uri(contract), pa.Table.from_pylist(list(rows), schema=contract.schema), mode="append")


def night(ds: str, **changes: Any) -> dict[str, Any]:
    """A row of `nights`: 1,234 landed, 1,222 embedded, 12 quarantined."""
    row = {
        "run_id": f"scheduled__{ds}",
        "ds": ds,
        "embedding_version": VERSION,
        "status": "passed",
        "failures": [],
        "landed": 1_234,
        "new": 1_000,
        "changed": 234,
        "deleted": 7,
        "embedded": 1_222,
        "encoded": 1_111,
        "reused": 111,
        "quarantined": 12,
        "coverage": 1_222 / 1_234,
        "images_per_s": 27.5,
        "land_s": 9.0,
        "embed_s": 61.0,
        "encode_s": 40.4,
        "pins_version": 1,
        "pin_embeddings_version": 1,
        "checked_at": datetime.fromisoformat(ds).replace(tzinfo=UTC) + timedelta(days=1, hours=3),
    }
    return row | changes


def quarantined(ds: str, reason: str, **changes: Any) -> dict[str, Any]:
    row = {
        "ds": ds,
        "stage": "embed",
        "entity": "pin",
        "pin_id": 4_711,
        "embedding_version": VERSION,
        "reason": reason,
        "detail": f"the detail of {reason}",
        "image_uri": "file:///pictures/x.png",
        "run_id": f"scheduled__{ds}",
    }
    return row | changes


def make_release(lake: Lake, folder: Path, days: Sequence[str], release_id: str = "2026-11-18-0123456789ab") -> Manifest:
    """A checked and published release of ROWS pins; most show one picture, some none, one a picture that is gone."""
    picture = folder / "red square.png"
    Image.new("RGB", (320, 200), "red").save(picture)
    pins = [{"pin_id": i, "board_id": 1, "title": f"Pin number {i}", "image_uri": str(picture)} for i in range(ROWS)]
    pins[1] |= {"title": HOSTILE, "image_uri": HOSTILE_URI}
    pins[2] |= {"title": None, "image_uri": None}
    pins[3] |= {"image_uri": str(folder / "gone.png")}
    columns = {name: [pin[name] for pin in pins] for name in ("board_id", "title", "image_uri")}
    vectors_ND, ids_N = unit_vectors(ROWS, seed=0), np.arange(ROWS, dtype=np.int64)
    manifest = build_release(
        lake,
        release_id,
        vectors_ND,
        ids_N,
        embedding_version=VERSION,
        pins=columns,
        factory="Flat",
        encoder="pinclip-base",
        ds=days[-1],
        days=list(days),
        built_by="test",
        built_at="2026-11-19T03:10:00.000+00:00",
    )
    write_check(lake, release_id, Check(manifest_sha256(lake, release_id), [], manifest.recall_at_10, ROWS, manifest.built_at))
    publish(lake, release_id, "test")
    return manifest


def unit_vectors(rows: int, seed: int) -> Floats:
    vectors_ND = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    unit_ND: Floats = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return unit_ND


@pytest.fixture
def empty_lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "home"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Three nights, the middle one failed; the last one's release is live."""
    lake = Lake(str(tmp_path / "home"))
    failed = night(DAYS[1], status="failed", failures=["coverage 0.641 is below 0.900"], coverage=0.641)
    append(lake, NIGHTS, [night(DAYS[0]), failed, night(DAYS[2])])
    rows = [quarantined(DAYS[2], "missing_image", pin_id=pin) for pin in range(5_000, 5_009)]
    rows += [quarantined(DAYS[2], "unsupported_scheme", detail=HOSTILE, image_uri=HOSTILE_URI)]
    rows += [quarantined(DAYS[2], "null_id", stage="land", pin_id=None, embedding_version=None, detail=None, image_uri=None)]
    append(lake, QUARANTINE, [*rows, quarantined(DAYS[1], "truncated_image")])
    make_release(lake, tmp_path, (DAYS[0], DAYS[2]))
    return lake
