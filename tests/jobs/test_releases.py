"""From three nights to a live release, through the jobs, and what `pinlake` shows of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from demo.days import DEMO_DAYS
from embedding.cli import main as pinlake
from embedding.contracts import PINS, QUARANTINE
from embedding.index.history import release_rows
from embedding.index.reader import Release, open_live
from embedding.index.release import ReleaseError, live_release_id, read_candidate, read_check, read_manifest
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows


@pytest.fixture(scope="module")
def lake(released_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy with a live release."""
    copy = Lake(str(tmp_path_factory.mktemp("releases") / "home"))
    shutil.copytree(released_lake.home, copy.home)
    return copy


def release(lake: Lake, run_id: str) -> int:
    from jobs import build_index, check_index, publish_index

    common = ["--home", lake.home, "--run-id", run_id]
    build_index.main([*common, "--ds", DEMO_DAYS[-1]])
    status = check_index.main(common)
    publish_index.main(common)
    return status


@pytest.fixture(scope="module")
def live(lake: Lake) -> Release:
    return open_live(lake)


def test_the_release_holds_the_current_pins_and_no_other(lake: Lake, live: Release) -> None:
    latest = {row["pin_id"]: row for row in sorted(read_rows(lake.open(PINS)).to_pylist(), key=lambda row: row["ds"])}
    unreadable = {(row["pin_id"], row["ds"]) for row in read_rows(lake.open(QUARANTINE)).to_pylist() if row["stage"] == "embed"}
    expected = {pin for pin, row in latest.items() if not row["deleted"] and (pin, row["ds"]) not in unreadable}
    assert live.count_rows() == (len(expected), len(expected))
    assert set(live.describe(list(latest))) == expected
    assert live.manifest.days == list(DEMO_DAYS)


def test_the_manifest_is_bound_to_its_check_and_its_tables(lake: Lake, live: Release) -> None:
    manifest, check = live.manifest, read_check(lake, live.manifest.release_id)
    assert check is not None and check.passed
    assert manifest.recall_at_10 >= 0.95 and check.recall_at_10 >= 0.93
    assert manifest.pins_version == lake.open(PINS).version()
    assert set(manifest.files) >= {"index-00000.faiss", "ids-00000.npy", "pins-00000.parquet"}


def test_the_table_of_releases_has_its_figures_and_its_lineage(lake: Lake, live: Release) -> None:
    manifest, check = live.manifest, read_check(lake, live.manifest.release_id)
    (row,) = release_rows(lake)
    assert check is not None
    assert (row["release_id"], row["status"], row["published_by"]) == (manifest.release_id, "passed", manifest.built_by)
    assert row["recall_low"] <= row["recall_at_10"] == check.recall_at_10 <= row["recall_high"]
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert row["pin_embeddings_version"] == manifest.pin_embeddings_version
    assert {file["name"]: file["sha256"] for file in row["files"]} == {n: f.sha256 for n, f in manifest.files.items()}


def test_the_next_release_keeps_the_recipe_and_is_compared_with_the_live_one(lake: Lake, live: Release, tmp_path: Path) -> None:
    from jobs import build_index, check_index

    copy = Lake(str(tmp_path / "home"))
    shutil.copytree(lake.home, copy.home)
    copy.open(PINS).alter.set_table_properties({"delta.appendOnly": "false"})  # a new version of the same rows
    build_index.main(["--home", copy.home, "--run-id", "next"])
    candidate = read_manifest(copy, read_candidate(copy, "next"))
    assert candidate.release_id != live.manifest.release_id
    assert candidate.choice == live.manifest.choice, "tried once, kept while the lake is of a like size"
    assert check_index.main(["--home", copy.home, "--run-id", "next"]) == 0
    check = read_check(copy, candidate.release_id)
    assert check is not None and check.overlap_at_10 is not None and check.overlap_at_10 > 0.9


def test_an_unchanged_lake_gives_the_same_release_again(lake: Lake, live: Release) -> None:
    built_at = live.manifest.built_at
    assert release(lake, "second") == 0
    assert live_release_id(lake) == live.manifest.release_id
    assert read_manifest(lake, live.manifest.release_id).built_at == built_at


def test_search_by_pin_text_and_picture(lake: Lake, live: Release, capsys: pytest.CaptureFixture[str]) -> None:
    pin = next(p for p in live.sample(50) if p["title"] and p["image_uri"])
    home = ["--home", lake.home]
    assert pinlake([*home, "search", "--pin", str(pin["pin_id"]), "-k", "3"]) == 0
    by_pin = capsys.readouterr().out
    assert str(pin["pin_id"]) not in by_pin, "a pin is not its own neighbour"
    assert len(by_pin.splitlines()) == 2 + 2 + 3
    assert pinlake([*home, "search", "--text", pin["title"]]) == 0
    assert live.manifest.release_id in capsys.readouterr().out
    assert pinlake([*home, "search", "--image", pin["image_uri"].removeprefix("file://")]) == 0
    assert str(pin["pin_id"]) in capsys.readouterr().out, "a picture finds its own pin"
    mates = live.select(board=pin["board_id"])
    assert pinlake([*home, "search", "--text", pin["title"], "--board", str(pin["board_id"]), "-k", "1000"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + len(mates)
    assert pinlake([*home, "search", "--text", pin["title"], "--tag", "no such tag"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2


def test_a_search_that_cannot_be_answered_says_why(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html>")
    cases = {
        ("--pin", "7"): "no pin 7",
        ("--text", "  "): "--text is empty",
        ("--image", str(page)): "not_an_image",
        ("--image", str(tmp_path / "none.png")): "missing_image",
    }
    for arguments, message in cases.items():
        assert pinlake(["--home", lake.home, "search", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert pinlake(["--home", str(tmp_path), "search", "--pin", "1"]) == 2
    assert "no release is live" in capsys.readouterr().err


def test_status_shows_tables_releases_and_nights(lake: Lake, live: Release, capsys: pytest.CaptureFixture[str]) -> None:
    assert pinlake(["--home", lake.home, "status"]) == 0
    out = capsys.readouterr().out
    for text in ("pin_embeddings", live.manifest.release_id, "live", *DEMO_DAYS, "quarantined"):
        assert text in out


def test_a_release_with_a_flipped_bit_does_not_go_live(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import check_index, publish_index

    copy = Lake(str(tmp_path / "home"))
    shutil.copytree(lake.home, copy.home)
    index = Path(copy.releases_uri) / str(live_release_id(copy)) / "index-00000.faiss"
    data = bytearray(index.read_bytes())
    data[-100] ^= 8
    index.write_bytes(data)
    with pytest.raises(ReleaseError, match=r"index-00000\.faiss is damaged"):
        publish_index.main(["--home", copy.home, "--run-id", "first"])
    assert check_index.main(["--home", copy.home, "--run-id", "first"]) == 3
    with pytest.raises(ReleaseError, match=r"failed its check: index-00000\.faiss is damaged"):
        publish_index.main(["--home", copy.home, "--run-id", "first"])
    with pytest.raises(ReleaseError, match=r"index-00000\.faiss is damaged"):
        open_live(copy)
    capsys.readouterr()
    assert pinlake(["--home", copy.home, "releases"]) == 0
    assert "failed: index-00000.faiss is damaged" in capsys.readouterr().out
