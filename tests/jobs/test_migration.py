"""A migration from begin to retirement, through the jobs: two encoders in one lake, one pointer, nothing lost or mixed.

One lake goes through the tests in their order, as an operator would take it; each leaves it as the next expects it.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.days import DEMO_DAYS
from embedding.cli import main as pinlake
from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, PINS, QUARANTINE
from embedding.encoder.config import ConfigError, embedding_version, load_config
from embedding.encoder.store import EncoderStoreError, fresh_versions, resolve_encoder, version_state
from embedding.index.cut_over import read_comparison
from embedding.index.reader import open_live
from embedding.index.release import ReleaseError, list_releases, live_release_id, live_version, publish, read_pointer
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from tests.conftest import Exports

pytestmark = pytest.mark.usefixtures("spark_environment")

DAY_4 = "2026-11-21"
A = str(embedding_version(load_config("pinclip-base")))


@pytest.fixture(scope="module")
def b(other_encoder: Path) -> str:
    return str(embedding_version(load_config(other_encoder)))


@pytest.fixture(scope="module")
def lake(released_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake after three nights under A, of which the release is live."""
    lake = Lake(str(tmp_path_factory.mktemp("migrating") / "home"))
    shutil.copytree(released_lake.home, lake.home)
    return lake


@pytest.fixture(scope="module")
def fourth_day(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports with one day more: of the third day's pins one is deleted and one has a new title."""
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(exports.folder / f"ds={DEMO_DAYS[-1]}", folder / f"ds={DAY_4}")
    file = folder / f"ds={DAY_4}" / "pins" / "part-0.parquet"
    pins = pq.read_table(file.parent)
    living = [pin for pin in pins.to_pylist() if not pin["deleted"]]
    living[0]["deleted"] = True
    living[1]["title"] = "a title that nobody has used before"
    pq.write_table(pa.Table.from_pylist(living[:3], schema=pins.schema), file)
    return folder


def night(lake: Lake, exports: Path, ds: str, run_id: str) -> int:
    """A night as `nightly_pins` runs it: the live encoder, then those beside it. Returns their status."""
    from jobs import check_night, embed_pins, land_exports

    common = ["--home", lake.home, "--ds", ds, "--run-id", run_id]
    land_exports.main([*common, "--exports", str(exports)])
    statuses = []
    for encoder in ("live", *fresh_versions(lake)):
        embed_pins.main([*common, "--encoder", encoder])
        statuses.append(check_night.main([*common, "--encoder", encoder, "--min-coverage", "0.1"]))
    assert len(set(statuses)) == 1
    return statuses[0]


def build_and_check(lake: Lake, run_id: str, encoder: str = "live") -> int:
    from jobs import build_index, check_index

    build_index.main(["--home", lake.home, "--run-id", run_id, "--encoder", encoder])
    return check_index.main(["--home", lake.home, "--run-id", run_id])


def publish_index(lake: Lake, run_id: str, *flags: str) -> None:
    from jobs import publish_index

    publish_index.main(["--home", lake.home, "--run-id", run_id, *flags])


def begin(lake: Lake, to: str | Path) -> None:
    from jobs import begin_migration

    begin_migration.main(["--home", lake.home, "--run-id", "m", "--to", str(to)])


def migrate(lake: Lake, *flags: str, run_id: str = "m", to: str = "candidate") -> int:
    from jobs import migrate_pins

    return migrate_pins.main(["--home", lake.home, "--run-id", run_id, "--to", to, *flags])


def compare(lake: Lake, run_id: str, *flags: str) -> int:
    from jobs import compare_encoders

    return compare_encoders.main(["--home", lake.home, "--run-id", run_id, *flags])


def retire(lake: Lake, *flags: str) -> None:
    from jobs import retire_encoders

    retire_encoders.main(["--home", lake.home, "--run-id", "retire", *flags])


def rows(lake: Lake, contract: Any) -> list[dict[str, Any]]:
    return list(read_rows(lake.open(contract)).to_pylist())


def living(lake: Lake) -> dict[int, tuple[str, str]]:
    """Day and hash of the latest row of each living pin."""
    latest = {row["pin_id"]: row for row in sorted(rows(lake, PINS), key=lambda row: row["ds"])}
    return {pin: (row["ds"], row["source_sha256"]) for pin, row in latest.items() if not row["deleted"]}


def vectors(lake: Lake, version: str) -> dict[tuple[int, str], dict[str, Any]]:
    """A version's rows by pin and day; fails on a doubled one."""
    found = [row for row in rows(lake, PIN_EMBEDDINGS) if row["embedding_version"] == version]
    by_key = {(row["pin_id"], row["ds"]): row for row in found}
    assert len(by_key) == len(found)
    return by_key


def assert_complete(lake: Lake, version: str) -> None:
    """Each living pin has exactly one current vector under the version, or is in quarantine under it for its latest row."""
    have = vectors(lake, version)
    rejected = {
        (row["pin_id"], row["ds"]) for row in rows(lake, QUARANTINE) if row["embedding_version"] == version and row["pin_id"]
    }
    for pin, (ds, source) in living(lake).items():
        row = have.get((pin, ds))
        assert (row is not None) != ((pin, ds) in rejected), (pin, ds)
        assert row is None or row["source_sha256"] == source


def test_only_a_live_lake_migrates_and_only_to_another_encoder_that_fits(
    lake: Lake, b: str, other_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError, match="no release is live"):
        begin(Lake(str(tmp_path)), other_encoder)
    with pytest.raises(ReleaseError, match=f"{A} is the live version already"):
        begin(lake, "pinclip-base")
    with pytest.raises(ConfigError, match="no encoder is called 'nobody'"):
        begin(lake, "nobody")
    with pytest.raises(EncoderStoreError, match="no encoder none-0123456789ab in"):
        begin(lake, "none-0123456789ab")
    with pytest.raises(EncoderStoreError, match="no migration is under way"):
        migrate(lake)
    assert fresh_versions(lake) == {}


def test_a_migration_begins_once_and_one_at_a_time(lake: Lake, b: str, other_encoder: Path, tmp_path: Path) -> None:
    begin(lake, other_encoder)
    first = fresh_versions(lake)
    assert {version: fresh.role for version, fresh in first.items()} == {b: "candidate"}
    begin(lake, "candidate")
    assert fresh_versions(lake) == first
    raw = json.loads(other_encoder.read_text()) | {"context_length": 8}
    third = other_encoder.parent / "third.json"
    third.write_text(json.dumps(raw))
    with pytest.raises(EncoderStoreError, match=f"a migration to {b} is under way: .*pinlake abandon"):
        begin(lake, third)


def test_a_slice_embeds_its_days_living_pins_and_no_other(lake: Lake, b: str) -> None:
    days = [ds for ds in DEMO_DAYS if date.fromisoformat(ds).toordinal() % 2 == 0]
    assert 0 < len(days) < len(DEMO_DAYS)
    assert migrate(lake, "--slice", "0", "--of", "2") == 0
    expected = {(pin, ds) for pin, (ds, _) in living(lake).items() if ds in days}
    found = vectors(lake, b)
    assert {ds for _, ds in found} == set(days)
    assert set(found) <= expected
    recorded = [row for row in rows(lake, NIGHTS) if row["embedding_version"] == b]
    assert sorted(row["ds"] for row in recorded) == days
    assert all(row["status"] == "passed" and row["land_s"] is None for row in recorded)
    assert sum(row["landed"] for row in recorded) == len(expected)
    assert sum(row["embedded"] for row in recorded) == len(found)


def test_a_slice_that_is_run_again_encodes_and_writes_nothing(lake: Lake) -> None:
    tables = (PIN_EMBEDDINGS, QUARANTINE, NIGHTS)
    before = [lake.open(contract).version() for contract in tables]
    assert migrate(lake, "--slice", "0", "--of", "2", run_id="again") == 0
    assert [lake.open(contract).version() for contract in tables] == before


def test_an_unfinished_migration_cannot_be_cut_over(lake: Lake, b: str) -> None:
    assert build_and_check(lake, "half", b) == 3
    with pytest.raises(ReleaseError, match="has compared no release"):
        publish_index(lake, "half", "--cut-over")
    with pytest.raises(ReleaseError, match=r"failed its check: \d+ living pins have neither a vector nor a reason"):
        publish_index(lake, "half")
    assert compare(lake, "half") == 3
    comparison = read_comparison(lake, "half")
    assert "not migrated yet" in comparison.failures[0]
    assert comparison.figures["unexplained"] > 0
    with pytest.raises(ReleaseError, match=r"may not follow .*not migrated yet"):
        publish_index(lake, "half", "--cut-over")
    assert live_version(lake) == A


def test_a_night_in_the_middle_is_embedded_under_both(lake: Lake, b: str, fourth_day: Path) -> None:
    assert night(lake, fourth_day, DAY_4, "fourth") == 0
    assert {row["embedding_version"] for row in rows(lake, NIGHTS) if row["run_id"] == "fourth"} == {A, b}
    landed = {row["pin_id"] for row in rows(lake, PINS) if row["ds"] == DAY_4 and not row["deleted"]}
    assert len(landed) == 2
    for version in (A, b):
        assert {pin for pin, ds in vectors(lake, version) if ds == DAY_4} == landed
    assert live_version(lake) == A


def test_the_rest_is_resumed_and_each_living_pin_ends_with_one_vector_of_each_version(lake: Lake, b: str) -> None:
    for number in (0, 1):
        assert migrate(lake, "--slice", str(number), "--of", "2") == 0
    assert_complete(lake, b)
    assert_complete(lake, A)
    under_a, under_b = vectors(lake, A), vectors(lake, b)
    assert set(under_b) < set(under_a), "superseded rows cost no encoding"
    same = [np.allclose(under_a[key]["embedding"], under_b[key]["embedding"]) for key in under_b if under_a[key]["has_text"]]
    assert not all(same)
    contents = {row["content_sha256"] for row in under_b.values()}
    assert len({(row["content_sha256"], tuple(row["embedding"])) for row in under_b.values()}) == len(contents)
    encoded = [row["encoded"] for row in rows(lake, NIGHTS) if row["embedding_version"] == b]
    assert sum(encoded) == len(contents), "a content is encoded once, whoever comes first"


def test_a_comparison_with_a_release_that_is_no_longer_live_cuts_nothing_over(lake: Lake, b: str) -> None:
    assert build_and_check(lake, "m", b) == 0
    assert compare(lake, "m") == 0
    assert read_comparison(lake, "m").figures["deleted_since"] == 1, "the fourth day is not released under A yet"
    assert build_and_check(lake, "fourth") == 0
    publish_index(lake, "fourth")
    with pytest.raises(ReleaseError, match="is live now, not"):
        publish_index(lake, "m", "--cut-over")
    assert live_version(lake) == A


def test_the_comparison_says_what_changes(lake: Lake, b: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(lake, "m") == 0
    printed = capsys.readouterr().out
    figures = read_comparison(lake, "m").figures
    assert A in printed and b in printed and "board-mate recall@10" in printed
    assert figures["live_rows"] == figures["candidate_rows"] == len(open_live(lake).pin_ids())
    assert figures["missing"] == figures["unexplained"] == 0
    assert 0 < figures["overlap_at_10"] < 1
    mates = figures["board_mates"]
    assert mates["difference"]["low"] <= mates["candidate"] - mates["live"] + 0.2
    assert mates["boards"] > 5


def test_the_cut_over_moves_index_and_encoder_at_once(lake: Lake, b: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = live_release_id(lake)
    publish_index(lake, "m", "--cut-over")
    pointer = read_pointer(lake)
    assert pointer is not None
    assert (pointer.embedding_version, pointer.cut_over_from, pointer.cut_over_release) == (b, A, before)
    assert live_version(lake) == b == resolve_encoder(lake, "live").version == open_live(lake).manifest.embedding_version
    assert {version: fresh.role for version, fresh in fresh_versions(lake).items()} == {A: "previous"}
    publish_index(lake, "m", "--cut-over")
    assert read_pointer(lake) == pointer, "again, it changes nothing"
    title = next(pin["title"] for pin in open_live(lake).sample(50) if pin["title"])
    assert pinlake(["--home", lake.home, "search", "--text", title, "-k", "3"]) == 0
    assert str(live_release_id(lake)) in capsys.readouterr().out


def test_a_night_that_began_before_the_cut_over_cannot_undo_it(lake: Lake, b: str) -> None:
    with pytest.raises(ReleaseError, match=f"holds {A} vectors, but {b} is live"):
        publish_index(lake, "fourth")
    assert live_version(lake) == b


def test_nights_after_the_cut_over_keep_the_previous_version_in_step(lake: Lake, b: str, fourth_day: Path) -> None:
    assert night(lake, fourth_day, DAY_4, "after") == 0
    assert {row["embedding_version"] for row in rows(lake, NIGHTS) if row["run_id"] == "after"} == {A, b}
    assert_complete(lake, A)
    retire(lake)
    assert version_state(lake, A)[0] == "previous", "its retention is not over"


def test_a_rollback_is_one_command_and_nights_go_on_under_the_old_version(
    lake: Lake, b: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rolled_back = live_release_id(lake)
    assert pinlake(["--home", lake.home, "rollback"]) == 0
    assert f"{A} vectors serve instead of {b}" in capsys.readouterr().out
    assert live_version(lake) == A == resolve_encoder(lake, "live").version
    assert {version: fresh.role for version, fresh in fresh_versions(lake).items()} == {b: "previous"}
    assert_complete(lake, A)
    assert pinlake(["--home", lake.home, "rollback"]) == 2
    assert "name a release with --to" in capsys.readouterr().err
    with pytest.raises(ReleaseError, match=f"holds {b} vectors"):
        publish(lake, str(rolled_back), "a late task")
    assert build_and_check(lake, "next-night") == 0
    publish_index(lake, "next-night")
    assert live_version(lake) == A


def test_a_second_cut_over_finds_the_version_complete(lake: Lake, b: str) -> None:
    begin(lake, b)
    assert migrate(lake, run_id="m2") == 0
    assert build_and_check(lake, "m2", b) == 0
    assert compare(lake, "m2") == 0
    publish_index(lake, "m2", "--cut-over")
    assert live_version(lake) == b


def test_retirement_takes_the_previous_version_and_nothing_else(lake: Lake, b: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = vectors(lake, b)
    retire(lake, "--retention-days", "1")
    assert vectors(lake, A)
    marker = Path(lake.encoders_uri) / A / "FRESH"
    fresh = json.loads(marker.read_text())
    fresh["since"] = (datetime.now(UTC) - timedelta(days=8)).isoformat()
    marker.write_text(json.dumps(fresh))
    retire(lake)
    assert not vectors(lake, A)
    assert vectors(lake, b) == kept
    assert {manifest.embedding_version for manifest in list_releases(lake)} == {b}
    assert all(row["embedding_version"] != A for row in rows(lake, QUARANTINE))
    assert open_live(lake).count_rows()[0] > 0
    assert fresh_versions(lake) == {}
    with pytest.raises(EncoderStoreError, match=f"encoder {A} is retired"):
        resolve_encoder(lake, A)
    assert pinlake(["--home", lake.home, "rollback"]) == 2
    assert "no release" in capsys.readouterr().err
    retire(lake, "--encoder", b, "--retention-days", "0")
    assert vectors(lake, b) == kept, "the live version is never retired"
    assert pinlake(["--home", lake.home, "encoders"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines() if line.startswith("pinclip")] == ["retired", "live", "idle"]
