"""Quarantined pins tried again by reason and by pin, on the real lake."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from demo.days import DEMO_DAYS
from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, PINS, QUARANTINE, Reason
from embedding.tables.lake import Lake
from embedding.tables.nights import passed_days
from embedding.tables.scan import read_rows

DAY_2 = DEMO_DAYS[1]


def quarantined(lake: Lake) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_rows(lake.open(QUARANTINE)).to_pylist()
    return [row for row in rows if row["stage"] == "embed"]


@pytest.fixture(scope="module")
def released(released_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy, with a live release."""
    lake = Lake(str(tmp_path_factory.mktemp("requeue") / "lake"))
    shutil.copytree(released_lake.home, lake.home)
    return lake


def requeue(lake: Lake, run_id: str, *args: str) -> int:
    from jobs import requeue_pins

    return requeue_pins.main(["--home", lake.home, "--run-id", run_id, *args])


@pytest.mark.changes_pictures
def test_mended_pins_come_back_when_asked_for_and_all_others_stay_as_they_are(
    released: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    from jobs import embed_pins

    before = quarantined(released)
    versions = [released.open(contract).version() for contract in (PIN_EMBEDDINGS, QUARANTINE, NIGHTS)]
    missing = next(row for row in before if row["reason"] == Reason.MISSING_IMAGE)
    reasons = ",".join(sorted({row["reason"] for row in before}))
    with caplog.at_level("INFO"):
        assert requeue(released, "look", "--retry-reasons", reasons, "--dry-run") == 0
    assert f"{DAY_2}: 1 in quarantine for missing_image" in caplog.text
    assert requeue(released, "none", "--retry-reasons", "fetch_failed") == 0
    assert [released.open(contract).version() for contract in (PIN_EMBEDDINGS, QUARANTINE, NIGHTS)] == versions

    pins = read_rows(released.open(PINS), ["ds", "image_uri"]).to_pylist()
    good = next(row["image_uri"] for row in pins if row["image_uri"] and row["ds"] == DEMO_DAYS[0])
    mended = Path(unquote(missing["image_uri"].removeprefix("file://")))
    shutil.copy(unquote(good.removeprefix("file://")), mended)
    try:
        embed_pins.main(["--home", released.home, "--ds", DAY_2, "--run-id", "unasked"])
        assert [released.open(contract).version() for contract in (PIN_EMBEDDINGS, QUARANTINE)] == versions[:2]
        assert requeue(released, "mended", "--retry-pins", str(missing["pin_id"])) == 0
    finally:
        mended.unlink()
    after = quarantined(released)
    assert sorted(map(str, after)) == sorted(str(row) for row in before if row != missing), "same rows, of the same runs"
    found = [row for row in read_rows(released.open(PIN_EMBEDDINGS)).to_pylist() if row["pin_id"] == missing["pin_id"]]
    assert [(row["ds"], row["run_id"]) for row in found] == [(DAY_2, "mended")]
    assert passed_days(released, found[0]["embedding_version"]) == list(DEMO_DAYS)


def test_what_fails_again_stays_with_its_reason_of_today_and_what_was_replaced_stays_as_it_is(released: Lake) -> None:
    pins = read_rows(released.open(PINS), ["pin_id", "ds"]).to_pylist()
    replaced = {row["pin_id"] for row in pins if row["ds"] == DEMO_DAYS[2]}
    before = {row["pin_id"]: row for row in quarantined(released)}
    assert 0 < len(before.keys() & replaced) < len(before)
    assert requeue(released, "again", "--retry-quarantined") == 0
    after = {row["pin_id"]: row for row in quarantined(released)}
    assert {pin: row["reason"] for pin, row in after.items()} == {pin: row["reason"] for pin, row in before.items()}
    assert {row["run_id"] for pin, row in after.items() if pin not in replaced} == {"again"}
    assert [after[pin] for pin in replaced & after.keys()] == [before[pin] for pin in replaced & before.keys()]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "nothing is asked for"),
        (("--retry-reasons", "null_id"), "its row of the export must change first"),
        (("--retry-reasons", "no_reason"), "there is no such reason"),
        (("--retry-pins", "1;2"), "pin ids separated by commas"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        requeue(Lake("/nowhere"), "bad", *args)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err
