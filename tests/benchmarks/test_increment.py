"""The benchmark of increments: what its claim means, and that its lake is one that nights can go on from."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.increment import GOAL_PINS, Bytes, Night, Size, judge
from benchmarks.synthetic_lake import SHARES, SyntheticLake, day_name
from embedding.contracts import PIN_EMBEDDINGS, PINS, content_sha256, export_day_folder, pin_text
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits
from embedding.tables.exports import find_export
from embedding.tables.scan import read_rows

NIGHT = Night("2026-01-09", 10.0, 30.0, 10.0, 20.0, 0.5, 60.0, 3 * 10**9, 75, 20, 95)
AGAIN = replace(NIGHT, encoded=0, encode_s=0.0, write_s=0.0)
BYTES = Bytes(1, 1, 1, 1, 1, 1)


def size(pins: int, night: Night = NIGHT, again: Night = AGAIN, commits: int = 0) -> Size:
    return Size(pins, pins // 100, [night], again, {"pins": commits}, BYTES, {})


def held(*sizes: Size) -> list[bool]:
    return [verdict.holds for verdict in judge(sizes)]


def test_what_the_claim_means() -> None:
    assert NIGHT.overhead_s == 30.5
    assert held(size(100_000), size(GOAL_PINS)) == [True] * 5
    assert held(size(GOAL_PINS, replace(NIGHT, check_s=50.0))) == [False, True, True], "too slow"
    assert held(size(GOAL_PINS, replace(NIGHT, peak_bytes=7 * 10**9))) == [True, False, True], "too large"
    assert held(size(1_000), size(2_000, replace(NIGHT, land_s=50.0))) == [False, True, True], "grows faster than the table"
    assert held(size(1_000, again=NIGHT), size(1_000, commits=1))[1:] == [False, False], "a rerun that works"


def test_the_lake_and_its_exports_agree_on_what_is_known(tmp_path: Path) -> None:
    pins = 2_000
    lake = SyntheticLake(tmp_path, pins, share=0.1)
    lake.write_history(2)
    expected = lake.write_export(3)
    assert (expected.encoded, expected.reused, expected.deleted) == (150, 40, round(200 * SHARES["deleted"]))
    vectors = read_rows(lake.lake.open(PIN_EMBEDDINGS), ["pin_id", "ds", "content_sha256"])
    assert vectors.num_rows == pins + 190
    known = set(vectors["content_sha256"].to_pylist())
    file = next(file for file in find_export(str(lake.exports), day_name(3)) if file.entity == "pins")
    rows = [row for row in pq.read_table(file.uri).to_pylist() if not row["deleted"]]
    hashes = [_content(row) for row in rows]
    assert sum(content in known for content in hashes) == expected.reused
    assert len(set(hashes) - known) == expected.encoded
    assert read_rows(lake.lake.open(PINS), ["pin_id"]).num_rows == pins + 200
    assert Path(export_day_folder(str(lake.exports), day_name(3)), "_SUCCESS").exists()


def _content(row: dict[str, object]) -> str:
    picture = sha256(fetch_image(str(row["image_uri"]), ImageLimits())).digest()
    return content_sha256(picture, pin_text(row["title"], row["description"], row["tags"]))  # type: ignore[arg-type]
