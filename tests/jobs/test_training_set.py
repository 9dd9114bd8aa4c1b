"""A training set from real nights through Spark: nothing of what is held out leaks, nothing is lost in silence."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image, ImageEnhance

from demo.days import DEMO_DAYS
from embedding.contracts import BOARDS, NIGHTS, PINS, SAVES, Reason, TableContract
from embedding.encoder.training_set import (
    MANIFEST,
    NEAR_DUPLICATE_OF_HELD_OUT,
    Manifest,
    SetRecipe,
    TrainingSetError,
    leaks,
    read_manifest,
    read_pins,
    read_training_set,
    set_uri,
    stream_bags,
    verify_files,
)
from embedding.tables.lake import Lake, partition_version, replace_partition
from embedding.tables.scan import read_rows
from embedding.tables.staging import Stager

PLANTED_DAY, FAILED_DAY = "2026-11-21", "2026-11-22"
ORIGINAL, COPY, UNREADABLE, FAILED, BOARD = 101, 102, 103, 104, 201
RECIPE = SetRecipe(bag_size=2, bags_a_shard=8)


def share(user_id: int) -> float:
    """Where a creator lies in [0, 1), as the split's rule says."""
    return int(hashlib.sha256(f"{RECIPE.salt}/{user_id}".encode()).hexdigest()[:13], 16) / 2**52


def user_between(low: float, high: float) -> int:
    return next(user for user in range(1, 1000) if low <= share(user) < high)


TRAIN_USER = user_between(RECIPE.held_out_share + RECIPE.validation_share, 1)
TEST_USER = user_between(0, RECIPE.held_out_share)


def add_rows(lake: Lake, contract: TableContract, ds: str, rows: list[dict[str, Any]]) -> None:
    """Commits rows of a day, as a night's landing does."""
    common = {"ds": ds, "deleted": False, "export_sha256": "planted", "source_sha256": "planted", "run_id": "planted"}
    schema = pa.schema([field.with_nullable(True) for field in contract.schema])
    with Stager(lake.table_uri(contract), contract, {"ds": ds}) as stager:
        stager.add(pa.Table.from_pylist([{**common, **row} for row in rows], schema=schema))
        stager.flush()
    version = partition_version(lake.open(contract), {"ds": ds})
    replace_partition(lake, contract, {"ds": ds}, stager.files, expected_version=version, run_id="planted")


def add_night(lake: Lake, ds: str, status: str) -> None:
    latest = max(read_rows(lake.open(NIGHTS)).to_pylist(), key=lambda row: row["checked_at"])
    checked_at = latest["checked_at"] + timedelta(hours=1)
    row = latest | {"ds": ds, "status": status, "run_id": f"night-{ds}", "checked_at": checked_at}
    write_deltalake(lake.table_uri(NIGHTS), pa.Table.from_pylist([row], schema=NIGHTS.schema), mode="append")


def plant(lake: Lake, folder: Path) -> None:
    """One more night: someone's picture, saved again a little brighter and smaller by a creator who is held out; a save of
    the original to that creator's board; and a pin with nothing to read. A night after it fails."""
    original = Image.effect_noise((12, 12), 90).resize((240, 240), Image.Resampling.BICUBIC).convert("RGB")
    original.save(folder / "original.png")
    smaller = original.resize((180, 180), Image.Resampling.BICUBIC)
    ImageEnhance.Brightness(smaller).enhance(1.02).save(folder / "copy.jpg", quality=90)
    home_board = read_rows(lake.open(BOARDS), ["board_id"])["board_id"][0].as_py()
    pins = [
        {"pin_id": ORIGINAL, "user_id": TRAIN_USER, "board_id": home_board, "title": "First", "image_uri": "original.png"},
        {"pin_id": COPY, "user_id": TEST_USER, "board_id": BOARD, "title": "Second", "image_uri": "copy.jpg"},
        {"pin_id": UNREADABLE, "user_id": TEST_USER, "board_id": BOARD, "image_uri": "nowhere.png"},
    ]
    add_rows(lake, PINS, PLANTED_DAY, [pin | {"image_uri": str(folder / pin["image_uri"])} for pin in pins])
    add_rows(lake, BOARDS, PLANTED_DAY, [{"board_id": BOARD, "user_id": TEST_USER, "title": " Animals / Birds"}])
    a_train_pin = next(pin for pin in read_rows(lake.open(PINS)).to_pylist() if pin["user_id"] and share(pin["user_id"]) > 0.5)
    saved = [{"user_id": TEST_USER, "pin_id": pin_id, "board_id": BOARD} for pin_id in (ORIGINAL, a_train_pin["pin_id"])]
    add_rows(lake, SAVES, PLANTED_DAY, saved)
    add_night(lake, PLANTED_DAY, "passed")
    add_rows(lake, PINS, FAILED_DAY, [{"pin_id": FAILED, "user_id": 1, "board_id": home_board, "title": "too early"}])
    add_night(lake, FAILED_DAY, "failed")


@dataclass(frozen=True)
class Built:
    """A lake with a training set, and what the set holds."""

    lake: Lake
    manifest: Manifest
    pins: pa.Table
    bags: list[dict[str, Any]]

    @property
    def by_id(self) -> dict[int, dict[str, Any]]:
        return {pin["pin_id"]: pin for pin in self.pins.to_pylist()}


def build(lake: Lake, run_id: str) -> Built:
    from jobs import build_training_set

    options = ["--bag-size", str(RECIPE.bag_size), "--bags-a-shard", str(RECIPE.bags_a_shard)]
    build_training_set.main(["--home", lake.home, "--run-id", run_id, "--ds", FAILED_DAY, *options])
    manifest = read_manifest(lake, read_training_set(lake, run_id))
    pins = read_pins(lake, manifest, splits=["train", "validation", "test", "dropped"])
    return Built(lake, manifest, pins, [bag for batch in stream_bags(lake, manifest) for bag in batch.to_pylist()])


@pytest.fixture(scope="module")
def built(lake_of_three_nights: Lake, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("planted")
    lake = Lake(str(folder / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    plant(lake, folder)
    return build(lake, "first")


def test_no_creator_board_or_duplicate_group_is_in_two_splits(built: Built) -> None:
    assert leaks(built.pins) == []
    assert all(built.manifest.counts["pins"][split] for split in ("train", "validation", "test"))
    for pin in built.by_id.values():
        where = share(pin["user_id"])
        rule = "test" if where < 0.3 else "validation" if where < 0.45 else "train"
        assert pin["split"] in (rule, "dropped")
        assert not (rule == "test" and pin["split"] == "dropped")


def test_a_picture_saved_again_by_a_held_out_creator_is_not_trained_on(built: Built) -> None:
    original, copy = built.by_id[ORIGINAL], built.by_id[COPY]
    assert (original["split"], copy["split"]) == ("dropped", "test")
    assert original["duplicate_group"] == copy["duplicate_group"] == ORIGINAL
    assert original["picture"] != copy["picture"]
    assert built.manifest.dropped[NEAR_DUPLICATE_OF_HELD_OUT] >= 1
    assert (copy["category"], copy["board_id"], copy["board_ids"]) == ("animals", BOARD, [BOARD])
    assert all(BOARD not in pin["board_ids"] for pin in built.by_id.values() if pin["split"] != "test")
    trained_on = {pin["pin_id"] for bag in built.bags for pin in [*bag["pins"], *bag["negatives"]]}
    assert trained_on <= {pin["pin_id"] for pin in built.by_id.values() if pin["split"] == "train"}


def test_every_current_pin_of_a_night_that_passed_is_there_or_counted(built: Built) -> None:
    latest: dict[int, dict[str, Any]] = {}
    for row in sorted(read_rows(built.lake.open(PINS)).to_pylist(), key=lambda row: row["ds"]):
        if row["ds"] != FAILED_DAY:
            latest[row["pin_id"]] = row
    alive = {pin_id for pin_id, row in latest.items() if not row["deleted"]}
    assert built.manifest.days == [*DEMO_DAYS, PLANTED_DAY]
    assert set(built.by_id) == alive - {UNREADABLE}
    assert built.manifest.dropped[Reason.MISSING_IMAGE] == 1
    assert Counter(built.pins["split"].to_pylist()) == built.manifest.counts["pins"]
    assert built.manifest.counts["bags"]["train"] == len(built.bags)
    assert verify_files(built.lake, built.manifest) == []


def test_a_pin_whose_picture_cannot_be_used_keeps_its_text(built: Built) -> None:
    without = [pin for pin in built.by_id.values() if pin["picture"] is None]
    assert {Reason.MISSING_IMAGE, Reason.EMPTY_IMAGE, Reason.NOT_AN_IMAGE} <= set(built.manifest.unusable_pictures)
    # One pin of the demo has no picture to begin with.
    assert len(without) == sum(built.manifest.unusable_pictures.values()) + 1
    assert all(pin["text"] and pin["thumbnail"] is None for pin in without)
    for pin in built.by_id.values():
        if pin["picture"] is not None:
            with Image.open(io.BytesIO(pin["picture"])) as picture:
                assert (picture.format, picture.mode) == ("PNG", "RGB")
                assert max(picture.size) <= RECIPE.picture_side


def test_each_pin_of_a_training_board_is_in_one_bag_of_it(built: Built) -> None:
    trained = [pin for pin in built.by_id.values() if pin["split"] == "train"]
    expected = {(pin["pin_id"], board) for pin in trained for board in pin["board_ids"]}
    found = [(pin["pin_id"], bag["board_id"]) for bag in built.bags for pin in bag["pins"]]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert max(len(bag["pins"]) for bag in built.bags) == RECIPE.bag_size
    weights = Counter[int]()
    for bag in built.bags:
        for pin in bag["pins"]:
            whole = built.by_id[pin["pin_id"]]
            assert {name: pin[name] for name in ("picture", "text", "duplicate_group")} == {
                name: whole[name] for name in ("picture", "text", "duplicate_group")
            }
            weights[pin["pin_id"]] += round(pin["weight"] * 1_000_000)
    assert all(abs(weight - 1_000_000) < 5 for weight in weights.values())


def test_negatives_are_of_the_category_and_of_other_boards_owners_and_groups(built: Built) -> None:
    owners = {row["board_id"]: row["user_id"] for row in read_rows(built.lake.open(BOARDS)).to_pylist()}
    trained = [pin for pin in built.by_id.values() if pin["split"] == "train"]
    for bag in built.bags:
        groups = {pin["duplicate_group"] for pin in bag["pins"]}
        allowed = {
            pin["pin_id"]
            for pin in trained
            if pin["category"] == bag["category"]
            and bag["board_id"] not in pin["board_ids"]
            and pin["user_id"] != owners[bag["board_id"]]
            and pin["duplicate_group"] not in groups
        }
        chosen = [pin["pin_id"] for pin in bag["negatives"]]
        assert len(chosen) == len(set(chosen)) == min(RECIPE.negatives, len(allowed))
        assert set(chosen) <= allowed
    assert any(bag["negatives"] for bag in built.bags)


def test_a_finished_set_is_found_and_an_unfinished_one_made_again_to_the_same_bytes(
    built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pinlake"):
        assert build(built.lake, "again").manifest == built.manifest
    assert "exists already" in caplog.text
    folder = Path(set_uri(built.lake, built.manifest.set_id))
    (folder / MANIFEST).unlink()
    (folder / "train" / "part-99999.parquet").write_bytes(b"left by an attempt that died")
    rebuilt = build(built.lake, "rebuilt")
    assert rebuilt.manifest.files == built.manifest.files
    assert len(rebuilt.manifest.files) > 3
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")} == {f.path for f in built.manifest.files}


def test_a_day_before_every_night_that_passed_is_refused(built: Built) -> None:
    from jobs import build_training_set
    from jobs.inputs import LATEST, NothingPassedError, choose_inputs

    assert choose_inputs(built.lake, LATEST).days == [*DEMO_DAYS, PLANTED_DAY]
    assert choose_inputs(built.lake, DEMO_DAYS[1]).days == list(DEMO_DAYS[:2])
    with pytest.raises(NothingPassedError, match="no night up to 2026-11-01 has passed its gate"):
        build_training_set.main(["--home", built.lake.home, "--run-id", "early", "--ds", "2026-11-01"])


def test_links_are_followed_to_their_end(spark_environment: None) -> None:
    from jobs.pictures import follow
    from jobs.session import spark_session

    chain = [5, 3, 8, 1, 9, 2, 7, 4, 6, 0]
    links = [(f"a{one}", f"a{other}") for one, other in pairwise(chain)] + [("b1", "b0"), ("b1", "b2")]
    followed = follow(spark_session("test").createDataFrame(links, "content string, other string")).collect()
    assert {row.content: row.label for row in followed} == {f"a{n}": "a0" for n in chain} | {f"b{n}": "b0" for n in range(3)}
    assert len(followed) == 13


def test_a_set_that_leaks_is_refused(spark_environment: None) -> None:
    from jobs.session import spark_session
    from jobs.splits import count_splits

    columns = "pin_id bigint, user_id bigint, board_ids array<bigint>, duplicate_group bigint, split string"
    pins = [(1, 1, [1], 1, "train"), (2, 2, [1, 2], 2, "test"), (3, 2, [], 1, "validation"), (4, 1, [2], 1, "dropped")]
    with pytest.raises(TrainingSetError, match="in two of train, validation and test") as refusal:
        count_splits(spark_session("test").createDataFrame(pins, columns))
    assert all(named in str(refusal.value) for named in ("1 creators", "1 boards", "1 duplicate_groups"))
