"""Releases: built right, refused when damaged or unchecked, published by one pointer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding.index.changes import make_part
from embedding.index.cut_over import roll_back
from embedding.index.factory import SearchSetting, deserialize, train_index
from embedding.index.lists import SelectionSetting
from embedding.index.part import DESCRIBED, Criteria
from embedding.index.reader import Release, open_live
from embedding.index.recall import Ids, Truth, exact_top_k, mean_interval
from embedding.index.release import (
    Check,
    Manifest,
    ReleaseError,
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
from embedding.index.retention import abandoned_folders, superseded_releases
from embedding.index.selections import tune_selections
from embedding.index.shards import RowSelection, Shards
from embedding.index.tuning import TOP, OneIndex, Wanted, best_point, candidates, choose, sweep, try_recipe
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.publish_index import clean_up
from tests.small_release import build_release, unit_vectors, write_shards

DIM = 32
VERSION = "test-0123456789ab"


def ids_of(rows: int) -> Ids:
    return np.arange(rows, dtype=np.int64) * 1_000_003 + 2**40


def build(
    lake: Lake,
    rows: int,
    release_id: str,
    versions: tuple[int, int] = (1, 1),
    embedding_version: str = VERSION,
    **options: Any,
) -> Manifest:
    return build_release(
        lake,
        release_id,
        unit_vectors(rows, DIM),
        ids_of(rows),
        embedding_version=embedding_version,
        pins_version=versions[0],
        pin_embeddings_version=versions[1],
        built_at=f"2026-11-18T00:00:0{versions[0]}",
        **options,
    )


def approve(lake: Lake, release_id: str, *failures: str) -> None:
    write_check(lake, release_id, Check(manifest_sha256(lake, release_id), list(failures), 1.0, 10, "2026-11-18T00:00:00"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


FACTORIES = [
    "Flat",
    "SQ8",
    "IVF32,Flat",
    "IVF32,SQ8",
    "IVF32_HNSW32,PQ16x4fs,Refine(SQ8)",
    "RR32,IVF32,RaBitQfs,Refine(PQ32np)",
    "RR32,IVF32,RaBitQfs,Refine(SQ8)",
    "Prefix16,IVF32,PQ8x4fs,Refine(SQfp16)",
    "Balanced,IVF32,PQ16x4fs,Refine(PQ32)",
    "HNSW16,SQ8",
]


@pytest.mark.parametrize(
    ("factory", "rows", "shards"), [*((name, 3_000, 2) for name in FACTORIES), (None, 12, 1), (None, 3_000, 1)]
)
def test_a_release_of_any_recipe_answers_as_exact_search_does(lake: Lake, factory: str | None, rows: int, shards: int) -> None:
    manifest = build(lake, rows, "r1", factory=factory, shards=shards, goal=0.9)
    assert manifest.recall_at_10 >= 0.9
    assert read_manifest(lake, "r1") == manifest
    release = Release(lake, manifest)
    vectors, ids = unit_vectors(rows, DIM), ids_of(rows)
    queries = vectors[:200]
    near = exact_top_k(queries, [(vectors[: rows // 2], ids[: rows // 2]), (vectors[rows // 2 :], ids[rows // 2 :])], 100)
    truth = Truth.of(*near, ids[: len(queries)], 10)
    scores, found = release.search(queries, 11)
    assert truth.recall(found) >= 0.87
    assert (found == ids[: len(queries), None]).any(axis=1).mean() >= 0.99, "a pin finds itself"
    assert (np.diff(scores[:, :5], axis=1) <= 0).all()
    np.testing.assert_allclose(release.vector_of(int(ids[7])), vectors[7], atol=0.2)
    best = release.neighbours(vectors[7], k=3, without=int(ids[7]))
    assert [n.pin_id for n in best] == [i for i in found[7] if i != ids[7]][:3]
    assert best[0].title and best[0].title.startswith("pin ")
    assert release.count_rows() == (rows, rows)
    np.testing.assert_array_equal(release.pin_ids(), ids)


def test_a_search_among_some_pins_finds_their_nearest_and_no_other(lake: Lake) -> None:
    rows = 20_000
    vectors, ids = unit_vectors(rows, DIM), ids_of(rows)
    pins = {
        "board_id": np.arange(rows) % 4,
        "tags": [["half"] if i % 2 else ["Half", "rare"][: 1 + (i == 8)] for i in range(rows)],
    }
    manifest = build(lake, rows, "r1", factory="IVF64,PQ16x4fs,Refine(SQfp16)", shards=2, pins=pins)
    release = Release(lake, manifest)
    queries = vectors[1000:1100]
    for among, wanted in (
        (release.select(tag="half"), np.arange(rows) % 2 == 1),
        (release.select(board=3), np.arange(rows) % 4 == 3),
        (release.select(board=3, pin_ids=ids[:50]), (np.arange(rows) % 4 == 3) & (np.arange(rows) < 50)),
        (release.select(pin_ids=ids[: rows // 5 * 3]), np.arange(rows) < rows // 5 * 3),
    ):
        assert len(among) == wanted.sum()
        _, found = release.search(queries, 10, among)
        assert np.isin(found, ids[wanted]).all()
        near = exact_top_k(queries, [(vectors[wanted], ids[wanted])], 100)
        assert Truth.of(*near, np.full(len(queries), -1), 10).recall(found) >= 0.85
    _, alone = release.search(queries, 10, release.select(tag="rare"))
    assert (alone[:, 0] == ids[8]).all() and (alone[:, 1:] == -1).all()
    assert (release.search(queries, 10, release.select(tag="no such tag"))[1] == -1).all()


def test_words_that_find_little_are_not_made_up_for_by_pins() -> None:
    """The gate asks for both: a sweep must not choose a setting for their mean."""
    near = np.arange(40).reshape(4, 10)
    truth = Truth.of(np.ones((4, 10), np.float32), near, np.array([100, 101, -1, -1]), 10)
    found = np.where(np.arange(4)[:, None] < 2, near, near + 1_000)
    found = np.concatenate([found, np.full((4, 1), 999)], axis=1)
    assert truth.recall(found) == 0.5
    assert truth.recall_low(found) == 0
    assert truth.recall_low(np.concatenate([near, near[:, :1]], axis=1)) == 1


@pytest.mark.parametrize("compared_below", [0, 100_000])
@pytest.mark.parametrize(
    "factory",
    ["IVF64,SQ8", "IVF64,PQ16x4fs,Refine(SQfp16)", "RR32,IVF64,RaBitQfs,Refine(SQ8)", "Prefix16,IVF64,PQ8x4fs,Refine(SQ8)"],
)
def test_a_selection_is_searched_as_well_as_all_pins_though_it_lies_far_from_the_query(
    tmp_path: Path, factory: str, compared_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding.index.shards.COMPARED_BELOW", compared_below)
    rows = 24_000
    vectors, ids = unit_vectors(rows, DIM), ids_of(rows)
    monkeypatch.setattr("embedding.index.shards._QUERIES_AT_ONCE", 70)
    queries, setting = vectors[:100], SearchSetting(nprobe=8, k_factor=8)
    shards = Shards.open(tmp_path, write_shards(tmp_path, factory, vectors, ids, 3))

    def recall(mine: Ids, among: RowSelection | None) -> float:
        _, found = shards.search(queries, 11, setting, among)
        assert np.isin(found, ids[mine]).all()
        near = exact_top_k(queries, [(vectors[mine], ids[mine])], 100)
        return Truth.of(*near, np.full(len(queries), -1), 10).recall(found)

    of_all = recall(np.arange(rows), None)
    alike, anywhere = np.sort(np.argsort(vectors @ vectors[5_000])[-rows // 6 :]), np.arange(0, rows, 6)
    for mine in (alike, anywhere):
        assert recall(mine, shards.select(ids[mine])) >= of_all - 0.05


def test_what_a_build_measures_makes_any_share_of_the_pins_reach_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shards", "selections"):
        monkeypatch.setattr(f"embedding.index.{module}.COMPARED_BELOW", 0)
    rows, factory, setting, goal = 40_000, "IVF256,PQ16x4fs,Refine(SQfp16)", SearchSetting(nprobe=4, k_factor=16), 0.9
    vectors, ids = unit_vectors(rows, DIM), ids_of(rows)
    queries = vectors[:200]
    made = write_shards(tmp_path, factory, vectors, ids, 2)
    near = exact_top_k(queries, [(vectors, ids)], 300)
    measured = tune_selections(Shards.open(tmp_path, made), queries, ids[:200], near, setting, Wanted(goal))
    assert [round(point.share, 1) for point in measured] == [0.5, 0.1]
    assert all(point.recall_at_10 >= goal for point in measured), measured
    shards = Shards.open(tmp_path, made, measured)
    for one_in in (2, 4, 10, 20):
        mine = np.arange(one_in // 2, rows, one_in)
        _, found = shards.search(queries, 11, setting, shards.select(ids[mine]))
        truth = Truth.of(*exact_top_k(queries, [(vectors[mine], ids[mine])], 100), np.full(len(queries), -1), 10)
        assert truth.recall(found) >= goal - 0.02, one_in
        assert (
            truth.recall(shards.search(queries, 11, setting, shards.select(ids[mine]), SelectionSetting(50, 16))[1]) < goal
        ), "it is not for free"


def test_removed_pins_are_found_by_nothing(lake: Lake) -> None:
    rows = 3_000
    vectors, ids = unit_vectors(rows, DIM), ids_of(rows)
    whole = Release(lake, build(lake, rows, "r1", shards=2))
    for gone in (ids[:1], ids[::2]):
        release = whole.without(gone)
        _, found = release.search(vectors[:100], 10)
        assert not np.isin(found, gone).any()
        assert (found >= 0).all()
        assert not np.isin(release.search(vectors[:100], 10, release.select(pin_ids=ids[:100]))[1], gone).any()
        with pytest.raises(KeyError):
            release.vector_of(int(gone[0]))
        assert release.describe([int(gone[0])]) == {}
        assert len(release.pin_ids()) == rows - len(gone)
    assert (whole.search(vectors[:100], 10)[1] == ids[:1]).any(), "the release that it came from is as it was"


def test_a_sweep_keeps_what_is_worth_having_and_the_choice_says_why(lake: Lake) -> None:
    manifest = build(lake, 3_000, "r1")
    recalls, rates = ([getattr(point, name) for point in manifest.sweep] for name in ("recall_at_10", "qps"))
    assert recalls == sorted(recalls) and rates == sorted(rates, reverse=True)
    assert max(recalls) >= 0.95
    assert manifest.choice is not None
    assert {trial.factory for trial in manifest.choice.trials} == set(candidates(3_000, DIM))
    assert manifest.choice.factory in {trial.factory for trial in manifest.choice.trials if trial.reached}
    assert "queries/s at recall@10" in manifest.choice.why


def test_the_setting_for_a_goal_is_about_the_least_that_reaches_it() -> None:
    vectors, ids = unit_vectors(20_000, DIM), ids_of(20_000)
    index = deserialize(train_index("IVF256,Flat", DIM, vectors))
    index.add(vectors)
    queries = vectors[::40]
    truth = Truth.of(*exact_top_k(queries, [(vectors, ids)], 100), ids[::40], TOP)
    one = OneIndex(index, ids)
    nprobe = best_point(sweep(one, "IVF256,Flat", queries, truth, Wanted(0.95), latencies=False), 0.95).setting.nprobe

    def reaches(number: int) -> bool:
        return mean_interval(truth.recalls(one.search(queries, 11, SearchSetting(number))[1]))[0] >= 0.95

    least = next(number for number in range(1, 256) if reaches(number))
    assert 4 <= least <= nprobe <= 1.25 * least + 1


def test_a_budget_is_kept_and_one_that_nothing_fits_is_refused() -> None:
    vectors, ids = unit_vectors(3_000, 64), ids_of(3_000)
    truth = Truth.of(*exact_top_k(vectors[:200], [(vectors, ids)], 100), ids[:200], TOP)
    wanted = Wanted(0.8, bytes_budget=100)
    names = candidates(3_000, 64, 100)
    assert names and "Flat" not in names
    trials = [try_recipe(name, vectors, ids, vectors[:200], truth, wanted) for name in names]
    choice = choose(trials, 3_000, wanted, "r")
    chosen = next(trial for trial in choice.trials if trial.factory == choice.factory)
    assert chosen.reached and chosen.bytes_a_vector <= 100
    with pytest.raises(ValueError, match="no index fits in 5 bytes"):
        choose([], 3_000, Wanted(0.8, bytes_budget=5), "r")


def test_equal_neighbours_at_the_last_place_count_as_found() -> None:
    scores, ids = np.array([[1.0, 0.9, 0.5, 0.5, 0.1]], np.float32), np.array([[7, 1, 2, 3, 4]])
    truth = Truth.of(scores, ids, np.array([7]), k=2)
    assert truth.recall(np.array([[7, 1, 3]])) == 1.0
    assert truth.recall(np.array([[7, 1, 2]])) == 1.0
    assert truth.recall(np.array([[7, 1, 4]])) == 0.5
    assert truth.recall(np.array([[1, 2, -1]])) == 1.0


def _flip_a_bit(folder: Path) -> None:
    path = folder / "index-00000.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(folder: Path) -> None:
    (folder / "index-00000.faiss").write_bytes((folder / "index-00000.faiss").read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip_a_bit, "index-00000.faiss is damaged"),
        (_truncate, "index-00000.faiss is damaged"),
        (lambda folder: (folder / "pins-00000.parquet").unlink(), "pins-00000.parquet is missing"),
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
    (Path(release_uri(lake, "r1")) / "index-00000.faiss").write_bytes(b"")
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


def test_a_release_of_the_format_before_is_listed_and_followed_but_neither_opened_nor_gone_back_to(lake: Lake) -> None:
    manifest = build(lake, 50, "r1")
    old = json.loads(manifest.to_json()) | {"format": 1, "nprobe": 4, "sweep": []}
    for name in ("setting", "shards", "choice"):
        del old[name]
    (Path(release_uri(lake, "r1")) / "manifest.json").write_text(json.dumps(old))
    (Path(lake.releases_uri) / "LIVE").write_text(json.dumps({"release_id": "r1", "embedding_version": VERSION}))
    with pytest.raises(ReleaseError, match="run the DAG index_release"):
        open_live(lake)
    build(lake, 60, "r2", (2, 2))
    approve(lake, "r2")
    assert publish(lake, "r2", "the first night after the update") == "r2 is live, before it r1"
    assert list_releases(lake)[0].setting.nprobe == 4
    approve(lake, "r1")
    with pytest.raises(ReleaseError, match="which no reader opens any more"):
        roll_back(lake, None, "me")
    assert open_live(lake).manifest.release_id == "r2"


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


def test_the_last_releases_stay_and_those_that_the_pointer_names_and_the_rest_goes(lake: Lake) -> None:
    for night in range(1, 8):
        build(lake, 12, f"r{night}", versions=(night, night))
        approve(lake, f"r{night}")
    assert not superseded_releases(lake, 2), "nothing is live"
    for night in (1, 5):
        publish(lake, f"r{night}", "run")
    assert [manifest.release_id for manifest in superseded_releases(lake, 2)] == ["r2", "r3"], "r1 can be gone back to"
    opened = Release(lake, read_manifest(lake, "r2"))
    killed = Path(lake.releases_uri) / ".building-r9"
    killed.mkdir()
    (killed / "piece-00000.faiss").write_bytes(b"half")
    assert abandoned_folders(lake) == []
    later = datetime.now(UTC) + timedelta(days=3)
    assert abandoned_folders(lake, later) == [str(killed)]
    clean_up(lake, 2)
    assert [manifest.release_id for manifest in list_releases(lake)] == ["r1", "r4", "r5", "r6", "r7"]
    assert opened.search(unit_vectors(12, DIM), 3)[1].shape == (12, 3), "who had it open goes on"
    assert killed.is_dir()


def test_many_changed_pins_are_searched_by_lists_and_found() -> None:
    rows = 25_000
    vectors, ids = unit_vectors(rows, DIM), ids_of(rows)
    tags = [["even"] if i % 2 == 0 else None for i in range(rows)]
    words = {"board_id": np.arange(rows), "title": [None] * rows, "image_uri": [None] * rows, "tags": tags}
    schema = DESCRIBED.append(pa.field("embedding", pa.list_(pa.float32())))
    part = make_part(pa.table({"pin_id": ids, **words, "embedding": list(vectors)}, schema), Wanted(0.95))
    queries = vectors[::100]
    truth = Truth.of(*exact_top_k(queries, [(vectors, ids)], 100), ids[::100], TOP)
    assert part.setting.nprobe > 0
    assert truth.recall(part.search(queries, TOP + 1)[1]) >= 0.93
    np.testing.assert_allclose(part.shards.vectors(ids[:50]), vectors[:50], atol=0.02)
    assert len(part.select(Criteria(tag="even"))) == rows // 2
    assert len(part.select(Criteria(board=7))) == 1
