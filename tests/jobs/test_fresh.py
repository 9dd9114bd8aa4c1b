"""Between two releases: what the tables learn is found within a look, as the next release will have it."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from demo.days import DEMO_DAYS
from embedding.cli import main as pinlake
from embedding.contracts import EXPORT_SCHEMAS, NIGHTS
from embedding.index.live import LiveRelease
from embedding.index.reader import Release
from embedding.index.release import Check, manifest_sha256, publish, read_candidate, read_manifest, write_check
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from tests.conftest import Exports, RunNight
from tests.small_release import under_load

DAY_1, DAY_2, DAY_3 = DEMO_DAYS
PRECISION = 5e-3
"""Times decide the recipe, so a release may keep 8 bits a value, where what is held in memory is exact."""


def build(lake: Lake, run_id: str) -> Release:
    """A release of the lake as it is now, not live yet."""
    from jobs import build_index

    build_index.main(["--home", lake.home, "--run-id", run_id])
    return Release(lake, read_manifest(lake, read_candidate(lake, run_id)))


def make_live(lake: Lake, release: Release) -> None:
    release_id = release.manifest.release_id
    write_check(lake, release_id, Check(manifest_sha256(lake, release_id), [], 1.0, 10, "2026-11-18T00:00:00"))
    publish(lake, release_id, "test")


def assert_same(fresh: Release, built: Release) -> None:
    ids = built.pin_ids()
    np.testing.assert_array_equal(fresh.pin_ids(), ids)
    np.testing.assert_allclose(fresh.vectors_of(ids), built.vectors_of(ids), atol=PRECISION)
    assert fresh.describe(ids.tolist()) == built.describe(ids.tolist())
    assert sorted(zip(*fresh.boards(), strict=True)) == sorted(zip(*built.boards(), strict=True))
    queries = built.vectors_of(ids[::7])
    scores, _ = built.search(queries, 10)
    np.testing.assert_allclose(fresh.search(queries, 10)[0], scores, atol=PRECISION)
    board = int(built.boards()[1][0])
    tag = next(tag for row in built.describe(ids.tolist()).values() for tag in row["tags"] or ())
    for criteria in ({"board": board}, {"tag": tag}, {"pin_ids": ids[:40]}):
        among = built.select(**criteria)  # type: ignore[arg-type]
        assert len(fresh.select(**criteria)) == len(among)  # type: ignore[arg-type]
        wanted, _ = built.search(queries, 10, among)
        np.testing.assert_allclose(fresh.search(queries, 10, fresh.select(**criteria))[0], wanted, atol=PRECISION)  # type: ignore[arg-type]


@pytest.fixture
def lake(lake_of_three_nights: Lake, tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    return lake


def ask(live: LiveRelease) -> None:
    """A query's way through a release: what is found is described, has a vector and comes once."""
    release = live.release
    ids = release.pin_ids()[:20]
    _, found = release.search(release.vectors_of(ids), 10)
    pins = set(found.ravel().tolist()) - {-1}
    assert set(release.describe(sorted(pins))) == pins
    assert all(len(set(row)) == len(row) for row in found.tolist())
    assert release.neighbours(release.vector_of(int(ids[0])), 5, among=release.select(pin_ids=sorted(pins)))


def corrected_export(exports: Exports, folder: Path) -> int:
    """Day 3 without its deletions and its last pin, and with one title changed. Returns that pin."""
    day = folder / f"ds={DAY_3}"
    shutil.copytree(exports.folder / f"ds={DAY_3}", day)
    pins = [pin for pin in pq.read_table(day / "pins").to_pylist() if not pin["deleted"]][:-1]
    pins[0]["title"] = "a title that nobody has used before"
    schema = pa.schema([field.with_nullable(True) for field in EXPORT_SCHEMAS["pins"]])
    pq.write_table(pa.Table.from_pylist(pins, schema=schema), day / "pins" / "part-0.parquet")
    return int(pins[0]["pin_id"])


def test_the_live_release_is_the_lake_as_it_is_now(
    lake: Lake, exports: Exports, run_night: RunNight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import land_exports

    # Day 2 has not passed yet when the release is built: what a backfill adds lies behind day 3, which has.
    nights = read_rows(lake.open(NIGHTS))
    DeltaTable(lake.table_uri(NIGHTS)).delete(f"ds = '{DAY_2}'")
    first = build(lake, "first")
    assert first.manifest.days == [DAY_1, DAY_3]
    make_live(lake, first)
    live = LiveRelease(lake, every_s=0.5)
    with live, under_load(partial(ask, live)):
        assert_same(live.release, first)
        write_deltalake(lake.table_uri(NIGHTS), nights.filter(pc.equal(nights["ds"], DAY_2)), mode="append")
        passed = time.monotonic()
        while not (live.release.changes and live.release.changes.searchable):
            assert time.monotonic() - passed < 60, "a minute is the promise"
            time.sleep(0.1)
    second = build(lake, "second")
    assert set(second.pin_ids()) != set(first.pin_ids())
    assert_same(live.release, second)
    pin = next(int(pin) for pin in second.pin_ids() if pin not in set(first.pin_ids()))
    assert pinlake(["--home", lake.home, "search", "--pin", str(pin)]) == 0
    assert "changed since" in capsys.readouterr().out

    # While a night is at work, a pin that it has not come to stays; one that it deleted is gone; nobody's query fails.
    edited = corrected_export(exports, tmp_path / "exports")
    before = live.release
    common = ["--home", lake.home, "--ds", DAY_3, "--run-id", "corrected"]
    land_exports.main([*common, "--exports", str(tmp_path / "exports")])
    assert live.refresh()
    np.testing.assert_array_equal(live.release.vector_of(edited), before.vector_of(edited))
    assert run_night(lake, DAY_3, "corrected", folder=tmp_path / "exports") == 0
    with under_load(partial(ask, live)):
        assert live.refresh()
    assert live.release.describe([edited])[edited]["title"] == "a title that nobody has used before"
    with pytest.raises(ValueError, match="select again"):
        live.release.search(before.vector_of(edited)[None], 3, before.select(board=1))
    third = build(lake, "third")
    assert_same(live.release, third)

    # The next release has taken everything in.
    make_live(lake, third)
    assert live.refresh()
    assert live.release.manifest == third.manifest
    assert live.release.changes is not None
    assert (live.release.changes.searchable, len(live.release.changes.superseded)) == (0, 0)
    assert not live.refresh(), "nothing new, nothing done"
