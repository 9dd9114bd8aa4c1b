"""A small lake with real tables and a real release: three nights, one of them failed, and pins that mean harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image

from embedding.contracts import NIGHTS, QUARANTINE, RELATED_PINS, USER_INTERESTS, TableContract
from embedding.index.recall import Floats
from embedding.index.release import Check, Manifest, manifest_sha256, publish
from embedding.index.release import write_check as write_release_check
from embedding.quality.taste import TasteCounts
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake
from embedding.taste.checks import TasteCheck, write_check
from embedding.taste.graph import BOARDS_SIDE, PINS_SIDE, GraphManifest, SideStatistics, adjacency, write_piece
from embedding.taste.store import graph_uri, publish_graph, write_manifest
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
    check = Check(manifest_sha256(lake, release_id), [], manifest.recall_at_10, ROWS, manifest.built_at)
    write_release_check(lake, release_id, check)
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


GRAPH = "2026-11-18-abcdefabcdef"


def interest(user_id: int, cluster: int, ds: str, **changes: Any) -> dict[str, Any]:
    """A row of `user_interests`, of two pins; its medoid is that of the release."""
    medoid = (3 * user_id + 5 * cluster) % ROWS
    row = {
        "user_id": user_id,
        "cluster": cluster,
        "embedding_version": VERSION,
        "ds": ds,
        "revision": 0,
        "medoid_pin": medoid,
        "embedding": unit_vectors(ROWS, seed=0)[medoid],
        "importance": 2.0 - cluster / 10,
        "size": 2,
        "label": f"tag {cluster}, of everything",
        "pins": [medoid, (medoid + 1) % ROWS],
        "history_hash": 1,
        "run_id": "taste",
    }
    return row | changes


def make_graph(lake: Lake) -> None:
    """A live graph of the release's pins on eight boards, two boards a pin."""
    pins = np.repeat(np.arange(ROWS), 2)
    boards = np.stack([np.arange(ROWS) % 8, (np.arange(ROWS) // 2) % 8], axis=1).ravel()
    saved = np.arange(len(pins))
    root = Path(graph_uri(lake, GRAPH)) / "first"
    root.mkdir(parents=True)
    paths = []
    for side, of, to in ((PINS_SIDE, pins, boards), (BOARDS_SIDE, boards, pins)):
        nodes = int(of.max()) + 1
        paths += write_piece(root, side, 0, np.arange(nodes), adjacency(nodes, of, to, saved))
    edges = len({*zip(pins.tolist(), boards.tolist(), strict=True)})
    manifest = GraphManifest(
        graph_id=GRAPH,
        folder="first",
        days=[DAYS[0], DAYS[2]],
        versions={"pins": 1, "boards": 1, "saves": 1},
        max_degree=10_000,
        starts={PINS_SIDE: [0], BOARDS_SIDE: [0]},
        sides={PINS_SIDE: SideStatistics(ROWS, edges, 7, 2, 2, 3), BOARDS_SIDE: SideStatistics(8, edges, 0, 9, 10, 11)},
        files={path.name: {"size_bytes": path.stat().st_size, "sha256": file_sha256(str(path))} for path in paths},
        built_by="taste",
        built_at="2026-11-19T04:00:00.000+00:00",
    )
    write_manifest(lake, manifest)
    publish_graph(lake, GRAPH)


def taste_check(ds: str, run_id: str, failures: Sequence[str] = (), **changes: Any) -> TasteCheck:
    counts = TasteCounts(VERSION, VERSION, 1_234, 1_000, 200, 0, 0, 0, 6, 6, 21, 3.0)
    checked_at = f"{ds}T23:59:59.000+00:00"
    return TasteCheck(ds, run_id, GRAPH, replace(counts, **changes), 0.5, list(failures), checked_at)


@pytest.fixture
def taste_lake(lake: Lake) -> Lake:
    """That lake with a live graph, and users 1 to 6 with as many interests; user 3's are of an earlier day, 7 has none left."""
    make_graph(lake)
    old = [interest(user, 0, DAYS[0], label="of old") for user in (2, 7)]
    old += [interest(3, cluster, DAYS[0]) for cluster in range(3)]
    new = [interest(user, cluster, DAYS[2]) for user in (1, 2, 4, 5, 6) for cluster in range(user)]
    new[-1] |= {"label": HOSTILE}
    gone = {"size": 0, "medoid_pin": None, "embedding": None, "label": None, "pins": None}
    append(lake, USER_INTERESTS, old)
    append(lake, USER_INTERESTS, [*new, interest(7, -1, DAYS[2], **gone)])
    related = {"pin_id": 1, "related": [2], "scores": [0.5], "graph_id": GRAPH, "run_id": "taste"}
    append(lake, RELATED_PINS, [related | {"ds": DAYS[0]}, related | {"ds": DAYS[2]}])
    for ds in (DAYS[0], DAYS[2]):
        write_check(lake, taste_check(ds, f"taste {ds}"))
    return lake
