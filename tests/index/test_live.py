"""The live release under load: swapped again and again, no query fails, none is answered by two releases."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.index.live import LiveRelease
from embedding.index.recall import Ids
from embedding.index.release import Check, LivePointer, ReleaseError, manifest_sha256, publish, release_uri, write_check
from embedding.tables.lake import Lake
from tests.small_release import build_release, point_at, under_load, unit_vectors

ROWS, DIM, SWAPS = 3_000, 32, 100
VERSION = "test-0123456789ab"


def ids_of(number: int) -> Ids:
    """Ids that tell the release: no two releases share one."""
    return np.arange(ROWS, dtype=np.int64) * 4 + number


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path))
    for number, factory in ((1, "IVF32,PQ16x4fs,Refine(SQ8)"), (2, "IVF32,Flat")):
        name = f"r{number}"
        options: dict[str, Any] = {"embedding_version": VERSION, "factory": factory, "pins_version": number}
        build_release(lake, name, unit_vectors(ROWS, DIM), ids_of(number), **options)
        write_check(lake, name, Check(manifest_sha256(lake, name), [], 1.0, 10, "2026-11-18T00:00:00"))
    publish(lake, "r1", "run")
    return lake


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def serves(live: LiveRelease, release_id: str) -> bool:
    return live.release.manifest.release_id == release_id


def test_a_hundred_swaps_under_load_fail_and_mix_no_query(lake: Lake) -> None:
    queries = unit_vectors(ROWS, DIM)[:8]

    def ask() -> None:
        release = live.release
        number = int(release.manifest.release_id[1:])
        _, found = release.search(queries, 10)
        assert (found >= 0).all() and (found % 4 == number).all(), "an id of another release"
        assert release.describe([int(found[0, 0])])

    peaks = []
    with LiveRelease(lake, every_s=0.01) as live, under_load(ask) as answered:
        for swap in range(SWAPS):
            name = f"r{2 - swap % 2}"
            point_at(lake, LivePointer(name, embedding_version=VERSION))
            until(partial(serves, live, name))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert min(answered) > SWAPS / 4, "queries went on all the time"
    assert peaks[-1] - peaks[SWAPS // 5] < 50_000, "KiB: the peak of memory does not grow with the swaps"


def test_a_release_that_cannot_be_opened_is_told_once_and_not_taken(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    (Path(release_uri(lake, "r2")) / "index-00000.faiss").write_bytes(b"rubbish")
    with caplog.at_level(logging.ERROR, "pinlake"), LiveRelease(lake, every_s=0.01) as live:
        point_at(lake, LivePointer("r2", embedding_version=VERSION))
        until(lambda: bool(caplog.records))
        time.sleep(0.1)
        assert live.release.manifest.release_id == "r1"
        assert (live.release.search(unit_vectors(ROWS, DIM)[:3], 5)[1] % 4 == 1).all()
    assert [record.message for record in caplog.records if "index-00000.faiss is damaged" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    with pytest.raises(ReleaseError, match="is damaged"):
        live.refresh()
