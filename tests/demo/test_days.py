from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image

from demo import days as demo_days
from demo.days import DEMO_DAYS, EXPECTED_QUARANTINE, MIN_PICTURES, ODD_PINS, Day, stable_id, write_day, write_days
from demo.openclipart import Clipart, clipart_root, read_clipart
from embedding.contracts import EXPORT_SCHEMAS, MAX_TEXT_CHARS, SUCCESS_MARKER, Reason, pin_text

EXPORTS_PAGE = Path(__file__).parents[2] / "docs" / "exports.md"

Rows = list[dict[str, Any]]


@pytest.fixture
def cliparts(clipart_tree: Path) -> list[Clipart]:
    return read_clipart(clipart_tree)


@pytest.fixture
def written(cliparts: list[Clipart], tmp_path: Path) -> list[Day]:
    return write_days(cliparts, tmp_path / "exports", tmp_path / "images")


def read_rows(exports_dir: Path, ds: str, entity: str) -> Rows:
    rows: Rows = pq.read_table(exports_dir / f"ds={ds}" / entity / "part-0.parquet").to_pylist()
    return rows


def local_path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_id(rows: Rows) -> dict[int, dict[str, Any]]:
    return {row["pin_id"]: row for row in rows}


# -- the contract -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ds", DEMO_DAYS)
@pytest.mark.parametrize("entity", sorted(EXPORT_SCHEMAS.keys() - {"users"}))  # nobody leaves the demo's platform
def test_every_file_fits_the_contract(written: list[Day], tmp_path: Path, ds: str, entity: str) -> None:
    table = pq.read_table(tmp_path / "exports" / f"ds={ds}" / entity / "part-0.parquet")
    contract = EXPORT_SCHEMAS[entity]
    assert table.num_rows or entity == "boards"
    assert table.schema.names == contract.names and table.schema.types == contract.types
    for column in contract:
        only_odd = entity == "pins" and ds == DEMO_DAYS[1] and column.name == "pin_id"
        if not column.nullable:
            assert table[column.name].null_count == (1 if only_odd else 0)


def test_each_day_has_its_marker_and_nothing_else_is_left(written: list[Day], tmp_path: Path) -> None:
    assert sorted(path.name for path in (tmp_path / "exports").iterdir()) == [f"ds={ds}" for ds in DEMO_DAYS]
    for ds in DEMO_DAYS:
        folder = tmp_path / "exports" / f"ds={ds}"
        assert sorted(path.name for path in folder.iterdir()) == [SUCCESS_MARKER, "boards", "pins", "saves"]


def test_the_marker_is_the_last_file_written(cliparts: list[Clipart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    planned = demo_days.plan_days(cliparts, tmp_path / "images", DEMO_DAYS)
    monkeypatch.setattr("demo.days.pq.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_day(planned[0], tmp_path / "exports")
    assert not list((tmp_path / "exports").rglob(SUCCESS_MARKER))
    monkeypatch.undo()
    assert (write_day(planned[0], tmp_path / "exports") / SUCCESS_MARKER).exists()


def test_moments_lie_within_the_day(written: list[Day], tmp_path: Path) -> None:
    for ds in DEMO_DAYS:
        for entity, column in {"pins": "updated_at", "boards": "created_at", "saves": "saved_at"}.items():
            moments: list[datetime] = [row[column] for row in read_rows(tmp_path / "exports", ds, entity)]
            assert {moment.date() for moment in moments} <= {date.fromisoformat(ds)}


def test_pins_and_saves_name_boards_that_exist(written: list[Day]) -> None:
    owners: dict[int, int] = {}
    for day in written:
        owners |= {board.board_id: board.user_id for board in day.boards}
        assert all(owners[pin.board_id] == pin.user_id for pin in day.pins)
        assert all(owners[save.board_id] == save.user_id for save in day.saves)
        assert len({(s.user_id, s.pin_id, s.board_id) for s in day.saves}) == len(day.saves)
        live = [pin for pin in day.pins if not pin.deleted and pin.created_at == pin.updated_at and pin.pin_id]
        assert {(p.pin_id, p.board_id) for p in live} <= {(s.pin_id, s.board_id) for s in day.saves}


# -- repeatable -------------------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(written: list[Day], cliparts: list[Clipart], tmp_path: Path) -> None:
    exports, images = file_bytes(tmp_path / "exports"), file_bytes(tmp_path / "images")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_days(list(reversed(cliparts)), tmp_path / "exports", tmp_path / "images") == written
    assert file_bytes(tmp_path / "exports") == exports and file_bytes(tmp_path / "images") == images
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.stat().st_mtime_ns == times[path] for path in files), "a day that is the same is left alone"


def test_a_changed_day_replaces_the_old_one(written: list[Day], tmp_path: Path) -> None:
    folder = write_day(replace(written[0], pins=written[0].pins[:5]), tmp_path / "exports")
    assert len(read_rows(tmp_path / "exports", DEMO_DAYS[0], "pins")) == 5
    assert (folder / SUCCESS_MARKER).exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [f"ds={ds}" for ds in DEMO_DAYS]


def test_ids_depend_on_names_alone() -> None:
    assert stable_id("pin", "food/fruit/apple.png") == 1_776_442_344_264_736_761
    assert stable_id("a", "b") != stable_id("ab")
    assert all(0 <= stable_id("pin", str(number)) < 2**63 for number in range(1_000))


# -- what happens -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_change_is_there(written: list[Day]) -> None:
    first, second, third = ({kind: len(ids) for kind, ids in day.kinds.items()} for day in written)
    assert first == {"new": 48, "repinned": first["repinned"]} and first["repinned"] > 0
    assert set(second) == {
        "new", "repinned", "text_edited", "image_edited", "moved", "deleted", "quarantined", "odd", "superseded",
    }  # fmt: skip
    assert set(third) >= {"new", "text_edited", "image_edited", "moved", "deleted", "mended"}
    assert len(written[1].saves) > len([pin for pin in written[1].pins if not pin.deleted]) - 5


def test_changes_are_what_they_say(written: list[Day]) -> None:
    before = {pin.pin_id: pin for day in written[:1] for pin in day.pins}
    after = {pin.pin_id: pin for pin in written[1].pins}
    kinds = written[1].kinds

    def content(pin: demo_days.Pin) -> tuple[str | None, str]:
        return pin.image_uri, pin_text(pin.title, pin.description, pin.tags)

    for pin_id in kinds["text_edited"]:
        assert after[pin_id].image_uri == before[pin_id].image_uri and content(after[pin_id]) != content(before[pin_id])
    for pin_id in kinds["image_edited"]:
        old, new = before[pin_id], after[pin_id]
        assert content(old)[1] == content(new)[1] and old.image_uri and new.image_uri
        with Image.open(local_path(old.image_uri)) as old_image, Image.open(local_path(new.image_uri)) as new_image:
            assert old_image.size == new_image.size[::-1] and old_image.getpixel((0, 0)) != new_image.getpixel((0, 0))
    for pin_id in kinds["moved"]:
        assert content(after[pin_id]) == content(before[pin_id]) and after[pin_id].board_id != before[pin_id].board_id
    for pin_id in kinds["deleted"]:
        assert after[pin_id].deleted and content(after[pin_id]) == (None, "")
    assert all(after[pin_id].updated_at > before[pin_id].updated_at for pin_id in before.keys() & after.keys())


def test_repins_show_known_bytes_and_text_on_another_board(written: list[Day]) -> None:
    known: dict[tuple[bytes, str], int] = {}
    for day in written:
        repins = [pin for pin in day.pins if pin.pin_id in day.kinds["repinned"]]
        ordinary = [pin for pin in day.pins if pin.pin_id in day.kinds["new"]]
        for pin in [*ordinary, *repins]:
            assert pin.image_uri
            key = local_path(pin.image_uri).read_bytes(), pin_text(pin.title, pin.description, pin.tags)
            assert (key in known) == (pin in repins)
            assert known.setdefault(key, pin.board_id) != pin.board_id or pin not in repins


def test_no_pin_changes_after_its_deletion(written: list[Day]) -> None:
    gone = set(written[1].kinds["deleted"])
    assert gone and not gone & {pin.pin_id for pin in written[2].pins}
    assert not gone & {save.pin_id for day in written[1:] for save in day.saves}


# -- odd and broken rows ------------------------------------------------------------------------------------------------------


def test_expected_quarantine_counts_the_broken_rows(written: list[Day]) -> None:
    kinds = written[1].kinds
    null_ids = sum(pin.pin_id is None for pin in written[1].pins)
    assert sum(EXPECTED_QUARANTINE.values()) == len(kinds["quarantined"]) + len(kinds["superseded"]) + null_ids
    assert len(kinds["odd"]) == sum(reason is None for reason in ODD_PINS.values())
    assert set(EXPECTED_QUARANTINE) <= set(Reason)


def test_broken_rows_are_broken_as_said(written: list[Day], tmp_path: Path) -> None:
    images = tmp_path / "images"
    with Image.open(images / "truncated.png") as image, pytest.raises(OSError, match="truncated"):
        image.load()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(images / "page.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(images / "huge.png")
    assert (images / "empty.png").stat().st_size == 0 and not (images / "missing.png").exists()
    assert (images / "huge.png").stat().st_size < 2**20
    rows = read_rows(tmp_path / "exports", DEMO_DAYS[1], "pins")
    repeated = [pin_id for pin_id, count in Counter(row["pin_id"] for row in rows).items() if count > 1]
    assert repeated == written[1].kinds["superseded"]
    assert max(len(row["title"] or "") for row in rows) > MAX_TEXT_CHARS
    empty = [
        r for r in rows if not r["deleted"] and not r["image_uri"] and not pin_text(r["title"], r["description"], r["tags"])
    ]
    assert len(empty) == 1 and any((row["image_uri"] or "").startswith("gopher:") for row in rows)


def test_odd_pictures_can_be_decoded(written: list[Day], tmp_path: Path) -> None:
    images = tmp_path / "images"
    modes = {}
    for name in ("animated.gif", "cmyk.jpg", "deep.png", "palette.png", "turned.jpg", "mended.png"):
        with Image.open(images / name) as image:
            modes[name] = image.mode
            image.load()
            assert name != "animated.gif" or getattr(image, "n_frames", 1) == 2
            assert name != "turned.jpg" or image.getexif()[0x0112] == 6
            assert name != "palette.png" or "transparency" in image.info
    assert modes["cmyk.jpg"] == "CMYK" and modes["deep.png"].startswith("I;16") and modes["palette.png"] == "P"


def test_the_third_day_mends_a_broken_picture(written: list[Day], tmp_path: Path) -> None:
    (mended,) = written[2].kinds["mended"]
    assert mended in written[1].kinds["quarantined"]
    row = by_id(read_rows(tmp_path / "exports", DEMO_DAYS[2], "pins"))[mended]
    with Image.open(local_path(row["image_uri"])) as image:
        image.load()


# -- arguments --------------------------------------------------------------------------------------------------------------


def test_a_limit_keeps_every_kind(cliparts: list[Clipart], written: list[Day], tmp_path: Path) -> None:
    small = write_days(cliparts, tmp_path / "small", tmp_path / "images", limit=MIN_PICTURES)
    assert [set(day.kinds) for day in small[:2]] == [set(day.kinds) for day in written[:2]]
    ordinary = sum(len(day.kinds["new"]) for day in small)
    assert ordinary == MIN_PICTURES < sum(len(day.kinds["new"]) for day in written)


def test_other_days_may_be_named(cliparts: list[Clipart], tmp_path: Path) -> None:
    days = write_days(cliparts, tmp_path / "exports", tmp_path / "images", ("2027-01-30", "2027-01-31", "2027-02-01"))
    assert {pin.updated_at.date().isoformat() for pin in days[2].pins} == {"2027-02-01"}


@pytest.mark.parametrize("days", [("2026-11-18",), ("2026-11-19", "2026-11-18", "2026-11-20"), ("a", "b", "c")])
def test_days_must_be_three_in_order(cliparts: list[Clipart], tmp_path: Path, days: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"days in order|not a day"):
        write_days(cliparts, tmp_path / "exports", tmp_path / "images", days)


def test_too_few_pictures_are_refused(cliparts: list[Clipart], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"needs {MIN_PICTURES}"):
        write_days(cliparts, tmp_path / "exports", tmp_path / "images", limit=MIN_PICTURES - 1)


# -- docs/exports.md ----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", EXPORTS_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(EXPORTS_PAGE), "exec"), {})
    from embedding.tables.exports import find_export, judge_rows, read_export_file

    files = find_export(str(tmp_path / "exports"), "2026-11-18")
    assert {file.entity: file.num_rows for file in files} == {"pins": 1, "boards": 1, "saves": 1}
    for file in files:
        for batch in read_export_file(file.entity, file.uri):
            assert judge_rows(file.entity, batch)["reason"].to_pylist() == [None]


def test_the_page_names_every_column_and_odd_row() -> None:
    page = EXPORTS_PAGE.read_text(encoding="utf-8")
    for entity, schema in EXPORT_SCHEMAS.items():
        section = page.split(f"### {entity}\n")[1].split("\n#")[0]
        assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == schema.names
    for name, reason in ODD_PINS.items():
        assert f"| {name} | {f'`{reason}`' if reason else 'embedded'}" in page
    assert all(f"`{reason}`" in page for reason in Reason)


# -- the real packages --------------------------------------------------------------------------------------------------------


def test_the_real_clip_art(tmp_path: Path) -> None:
    root = clipart_root(Path(os.environ.get("PINLAKE_DEMO_CACHE", ".cache/openclipart")))
    if not root.is_dir():
        pytest.skip("no clip art: run python -m demo.openclipart --cache .cache/openclipart, or set PINLAKE_DEMO_CACHE")
    real = read_clipart(root)
    assert len(real) > 5_000 and sum(bool(c.text) for c in real) > 0.95 * len(real)
    started_s = time.perf_counter()
    days = write_days(real, tmp_path / "exports", tmp_path / "images", limit=120)
    assert time.perf_counter() - started_s < 10
    huge = next(pin for pin in days[1].pins if pin.title == "623 megapixels")
    assert huge.image_uri and local_path(huge.image_uri).is_relative_to(root.absolute())
    assert set(days[1].kinds) >= {"new", "repinned", "text_edited", "image_edited", "moved", "deleted", "quarantined", "odd"}
    assert max(Counter(pin.board_id for pin in days[0].pins).values()) >= 3
