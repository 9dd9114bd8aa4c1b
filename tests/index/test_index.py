"""Releases: built right, refused when damaged or unchecked, published by one pointer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.index.build import cheapest_point, choose_factory, fill_shard, lists_of, merge_shards, train, tune
from embedding.index.cut_over import roll_back
from embedding.index.reader import Release, open_live
from embedding.index.recall import Floats, Ids, drop_self, exact_top_k, recall_at_k
from embedding.index.release import (
    Check,
    Manifest,
    ReleaseError,
    ReleaseFile,
    list_releases,
    live_release_id,
    live_version,
    manifest_sha256,
    publish,
    read_manifest,
    read_pointer,
    release_uri,
    write_check,
)
from embedding.tables import storage
from embedding.tables.exports import file_sha256
from embedding.tables.lake import Lake

DIM = 32
VERSION = "test-0123456789ab"


def unit_vectors(rows: int, seed: int = 0) -> Floats:
    """Clustered unit vectors, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, DIM))
    vectors = centres[rng.integers(0, 20, rows)] + 0.7 * rng.normal(size=(rows, DIM))
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def ids_of(rows: int) -> Ids:
    return np.arange(rows, dtype=np.int64) * 1_000_003 + 2**40


def build(
    lake: Lake,
    rows: int,
    release_id: str,
    versions: tuple[int, int] = (1, 1),
    shards: int = 3,
    embedding_version: str = VERSION,
) -> Manifest:
    """A release as the job builds it, without Spark."""
    vectors, ids = unit_vectors(rows), ids_of(rows)
    factory = choose_factory(rows)
    trained = train(factory, DIM, vectors)
    folder = Path(release_uri(lake, release_id))
    folder.mkdir(parents=True)
    paths = [folder / f"shard-{number}.faiss" for number in range(shards)]
    for number, path in enumerate(paths):
        fill_shard(trained, [(vectors[number::shards], ids[number::shards])], path)
    assert merge_shards(trained, paths, folder / "pins.faiss") == rows
    for path in paths:
        path.unlink()
    described = {"pin_id": ids, "board_id": ids, "title": [f"pin {i}" for i in range(rows)], "image_uri": [None] * rows}
    pq.write_table(pa.table(described), folder / "pins-0.parquet")
    queries, query_ids = vectors[::10], ids[::10]
    exact, exact_ids = exact_top_k(queries, [(vectors, ids)], 11)
    exact_scores = drop_self(exact, exact_ids, query_ids)[0]
    sweep = tune(faiss.read_index(str(folder / "pins.faiss")), factory, queries, query_ids, exact_scores)
    point = cheapest_point(sweep)
    manifest = Manifest(
        release_id=release_id,
        ds="2026-11-18",
        embedding_version=embedding_version,
        encoder="test",
        rows=rows,
        dim=DIM,
        factory=factory,
        nprobe=point.nprobe,
        recall_at_10=point.recall_at_10,
        days=["2026-11-18"],
        pins_version=versions[0],
        pin_embeddings_version=versions[1],
        built_by="run",
        built_at=f"2026-11-18T00:00:0{versions[0]}",
        files={p.name: ReleaseFile(p.stat().st_size, file_sha256(str(p))) for p in sorted(folder.iterdir())},
        sweep=sweep,
    )
    storage.write_atomic(f"{folder}/manifest.json", manifest.to_json())
    return manifest


def approve(lake: Lake, release_id: str, *failures: str) -> None:
    write_check(lake, release_id, Check(manifest_sha256(lake, release_id), list(failures), 1.0, 10, "2026-11-18T00:00:00"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


@pytest.mark.parametrize("rows", [12, 3_000])
def test_a_release_answers_as_exact_search_does(lake: Lake, rows: int) -> None:
    manifest = build(lake, rows, "r1")
    assert manifest.recall_at_10 >= 0.95
    release = Release(lake, manifest)
    vectors, ids = unit_vectors(rows), ids_of(rows)
    scores, found = release.search(vectors[:50], 10)
    exact, _ = exact_top_k(
        vectors[:50], [(vectors[: rows // 2], ids[: rows // 2]), (vectors[rows // 2 :], ids[rows // 2 :])], 10
    )
    assert recall_at_k(scores, exact) >= 0.9
    assert (found[:, 0] == ids[:50]).all(), "each pin is its own nearest"
    np.testing.assert_array_equal(release.vector_of(int(ids[7])), vectors[7])
    best = release.neighbours(vectors[7], k=3, without=int(ids[7]))
    assert [n.pin_id for n in best] == [i for i in found[7] if i != ids[7]][:3]
    assert best[0].title and best[0].title.startswith("pin ")
    assert release.count_rows() == (rows, rows)


def test_more_lists_visited_never_lose_recall_and_all_of_them_are_exact(lake: Lake) -> None:
    manifest = build(lake, 3_000, "r1")
    recalls = [point.recall_at_10 for point in manifest.sweep]
    assert lists_of(manifest.factory) == manifest.sweep[-1].nprobe > 1
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    assert recalls[0] < 0.95, "the sweep has something to choose"


def test_equal_neighbours_at_the_last_place_count_as_found() -> None:
    exact = np.array([[0.9, 0.5, 0.5]], np.float32)
    assert recall_at_k(np.array([[0.9, 0.5, 0.5]], np.float32), exact) == 1.0
    assert recall_at_k(np.array([[0.9, 0.5, 0.1]], np.float32), exact) == pytest.approx(2 / 3)


def _flip_a_bit(folder: Path) -> None:
    path = folder / "pins.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(folder: Path) -> None:
    (folder / "pins.faiss").write_bytes((folder / "pins.faiss").read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip_a_bit, "pins.faiss is damaged"),
        (_truncate, "pins.faiss is damaged"),
        (lambda folder: (folder / "pins-0.parquet").unlink(), "pins-0.parquet is missing"),
    ],
)
def test_a_damaged_release_is_refused_by_name_of_the_file(lake: Lake, damage: Callable[[Path], None], message: str) -> None:
    manifest = build(lake, 50, "r1")
    damage(Path(release_uri(lake, "r1")))
    with pytest.raises(ReleaseError, match=message):
        Release(lake, manifest)


def test_another_encoders_vectors_are_refused(lake: Lake) -> None:
    release = Release(lake, build(lake, 50, "r1"))
    release.require_version(VERSION)
    with pytest.raises(ReleaseError, match="mean nothing"):
        release.require_version("test-ba9876543210")
    with pytest.raises(ValueError, match="32 dimensions"):
        release.search(np.zeros((1, 7), np.float32))


def test_only_a_release_that_passed_its_check_goes_live_and_it_stays_when_the_next_fails(lake: Lake) -> None:
    with pytest.raises(ReleaseError, match="no release is live"):
        open_live(lake)
    build(lake, 50, "r1")
    with pytest.raises(ReleaseError, match="has not been checked"):
        publish(lake, "r1", "run")
    approve(lake, "r1")
    publish(lake, "r1", "run")
    assert live_release_id(lake) == "r1"
    assert publish(lake, "r1", "again") == "r1 is live already"

    build(lake, 60, "r2", versions=(2, 2))
    approve(lake, "r2", "recall@10 0.5 is below 0.95")
    with pytest.raises(ReleaseError, match="failed its check: recall@10"):
        publish(lake, "r2", "run")
    assert open_live(lake).manifest.release_id == "r1"

    approve(lake, "r2")
    publish(lake, "r2", "run")
    assert open_live(lake).manifest.rows == 60
    assert [m.release_id for m in list_releases(lake)] == ["r1", "r2"], "the one before stays for a rollback"
    with pytest.raises(ReleaseError, match="later table versions"):
        publish(lake, "r1", "late")


def test_only_a_cut_over_changes_the_live_version(lake: Lake) -> None:
    other = "other-ba9876543210"
    for release_id, version, number in (("r1", VERSION, 1), ("r2", other, 2), ("r3", VERSION, 3), ("r4", other, 4)):
        build(lake, 20, release_id, (number, number), embedding_version=version)
        approve(lake, release_id)
    publish(lake, "r1", "run")
    with pytest.raises(ReleaseError, match=f"r2 holds {other} vectors, but {VERSION} is live"):
        publish(lake, "r2", "run")
    with pytest.raises(ReleaseError, match="r1 is live now, not r0"):
        publish(lake, "r2", "run", cut_over=True, expected_live="r0")
    publish(lake, "r2", "run", cut_over=True, expected_live="r1")
    with pytest.raises(ReleaseError, match="only a cut-over"):
        publish(lake, "r3", "a night that began before")
    publish(lake, "r4", "the next night")
    pointer = read_pointer(lake)
    assert pointer is not None
    assert (live_version(lake), pointer.previous, pointer.cut_over_from, pointer.cut_over_release) == (
        other,
        "r2",
        VERSION,
        "r1",
    )


def test_a_rollback_goes_before_the_cut_over_and_no_night_undoes_it(lake: Lake) -> None:
    with pytest.raises(ReleaseError, match="nothing to roll back"):
        roll_back(lake, None, "me")
    for release_id, number in (("r1", 1), ("r2", 2), ("r3", 3)):
        build(lake, 20, release_id, (number, number))
        approve(lake, release_id)
    publish(lake, "r1", "run")
    with pytest.raises(ReleaseError, match="r1 is the first release"):
        roll_back(lake, None, "me")
    publish(lake, "r2", "run")
    assert roll_back(lake, None, "me") == "r1 is live again, instead of r2"
    with pytest.raises(ReleaseError, match="name a release"):
        roll_back(lake, None, "me")
    with pytest.raises(ReleaseError, match="r2 was rolled back from"):
        publish(lake, "r2", "a retried task")
    publish(lake, "r3", "the next night")
    assert live_release_id(lake) == "r3"
    assert roll_back(lake, "r2", "me") == "r2 is live again, instead of r3"
    (Path(release_uri(lake, "r1")) / "pins.faiss").write_bytes(b"")
    with pytest.raises(ReleaseError, match="r1 has changed since its check"):
        roll_back(lake, "r1", "me")
    with pytest.raises(ReleaseError, match="no release r9"):
        roll_back(lake, "r9", "me")
    assert live_release_id(lake) == "r2"


def test_of_publications_at_once_the_latest_state_wins(lake: Lake) -> None:
    names = [f"r{number}" for number in range(1, 6)]
    for number, release_id in enumerate(names, start=1):
        build(lake, 12, release_id, (number, number))
        approve(lake, release_id)
    program = (
        "import sys; from embedding.index.release import ReleaseError, publish; from embedding.tables.lake import Lake\n"
        "for name in sys.argv[2:]:\n    try: publish(Lake(sys.argv[1]), name, 'run')\n    except ReleaseError: pass\n"
    )
    orders = (names, names[::-1], [*names[2:], *names[:2]])
    running = [subprocess.Popen([sys.executable, "-c", program, lake.home, *order]) for order in orders]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert live_release_id(lake) == "r5"


def test_a_check_of_other_files_than_those_that_lie_there_counts_for_nothing(lake: Lake) -> None:
    manifest = build(lake, 50, "r1")
    approve(lake, "r1")
    storage.write_atomic(f"{release_uri(lake, 'r1')}/manifest.json", replace(manifest, rows=51).to_json())
    with pytest.raises(ReleaseError, match="has not been checked as it lies there"):
        publish(lake, "r1", "run")


def test_unfinished_and_foreign_things_are_no_releases(lake: Lake) -> None:
    build(lake, 50, "r1")
    (Path(lake.releases_uri) / "half").mkdir()
    assert [m.release_id for m in list_releases(lake)] == ["r1"]
    with pytest.raises(ReleaseError, match="no release half"):
        read_manifest(lake, "half")
    with pytest.raises(ReleaseError, match="not a release id"):
        read_manifest(lake, "../tables")
    (Path(lake.releases_uri) / "half" / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ReleaseError, match="format 99"):
        read_manifest(lake, "half")
    (Path(lake.releases_uri) / "LIVE").write_text("half")
    with pytest.raises(ReleaseError, match="not a pointer"):
        live_release_id(lake)
