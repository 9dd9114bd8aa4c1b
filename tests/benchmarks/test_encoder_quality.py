"""The benchmark of encoders: what its claim means, and a whole run on a hundred pins whose towers are planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import encoder_quality
from benchmarks.encoder_quality import BOTH, NO_GRAPH, NO_TEXT, PICTURE, PINCLIP, PIXELS, TEXT, Row, compare, judge_claim
from benchmarks.machine import describe_machine, machine_line
from embedding.encoder.judge import BOARD_MATES, MEASURES, Measured, example_pins, unit
from embedding.tables.lake import Lake
from tests.encoder.planted_set import plant_features, write_planted_set, write_tiny_recipe
from tests.encoder.written_set import SET_ID

OTHERS = (PICTURE, TEXT, BOTH, NO_GRAPH, NO_TEXT, PIXELS)


def row(key: str, recall: float, noise: float = 0.0) -> Row:
    values = recall + noise * np.random.default_rng(len(key) + ord(key[0])).normal(size=40)
    return Row(key, f"encoder {key}", {BOARD_MATES: Measured(values, np.arange(40), np.arange(40))})


def verdicts(pinclip: float, noise: float = 0.0, **others: float) -> dict[str, bool | None]:
    recalls = {PICTURE: 0.2, TEXT: 0.3, BOTH: 0.4, NO_GRAPH: 0.4, NO_TEXT: 0.3, PIXELS: 0.1} | others
    rows = [row(PINCLIP, pinclip, noise), *(row(key, recalls[key], noise) for key in OTHERS)]
    return {one.sentence.split(",")[0]: one.holds for one in judge_claim(rows, compare(rows, 200))}


def test_the_claim_holds_over_the_strongest_row_and_each_ablation() -> None:
    assert verdicts(0.53) == {
        "strict: HOLDS: over the strongest off the shelf": True,
        "wide: HOLDS: over a generic picture encoder": None,
        "ablation: HOLDS: over c (encoder c) +32.5% (+32.5% to +32.5%); goal more": True,
        "ablation: HOLDS: over d (encoder d) +76.7% (+76.7% to +76.7%); goal more": True,
        "told: over e (encoder e) +430.0% (+430.0% to +430.0%)": None,
    }


def test_a_gain_below_the_goal_misses_and_the_wide_reading_is_told_beside_it() -> None:
    found = list(verdicts(0.5).items())
    assert found[0] == ("strict: MISSED: over the strongest off the shelf", False)
    assert found[1] == ("wide: HOLDS: over a generic picture encoder", None)


def test_the_strongest_row_is_whichever_finds_most() -> None:
    assert verdicts(0.53, b2=0.5)["strict: MISSED: over the strongest off the shelf"] is False
    alone = verdicts(0.9, b1=0.6)
    assert not [sentence for sentence in alone if sentence.startswith("wide")], "it is the strict one already"


def test_a_large_gain_within_the_noise_is_a_miss() -> None:
    found = verdicts(0.53, noise=2.0)
    assert found["strict: MISSED: over the strongest off the shelf"] is False


def test_an_ablation_that_is_as_good_is_a_miss() -> None:
    found = verdicts(0.53, c=0.53)
    assert [holds for sentence, holds in found.items() if sentence.startswith("ablation: MISSED: over c")] == [False]


def test_the_pictures_weight_is_chosen_on_the_validation_split_alone() -> None:
    splits = [split for split in ("validation", "test") for _ in range(40)]
    boards = [place // 4 for place in range(80)]
    pins = example_pins(boards=boards, splits=splits)
    rng = np.random.default_rng(0)
    knows = unit(rng.normal(size=(20, 16)))[boards]
    noise = unit(rng.normal(size=(80, 16)))
    is_validation = np.array(splits)[:, None] == "validation"
    # On validation pins the text knows the boards and the picture nothing; on test pins it is the other way round.
    picture, text = np.where(is_validation, noise, knows), np.where(is_validation, knows, noise)
    weight, both = encoder_quality.strongest_pair(picture, text, pins)
    assert weight == min(encoder_quality.PICTURE_WEIGHTS)
    assert np.array_equal(both, encoder_quality.side_by_side(picture, text, weight))


def test_a_pin_with_one_modality_has_zeros_for_the_other() -> None:
    both = encoder_quality.side_by_side(np.array([[1, 0], [0, 0]], np.float32), np.array([[0, 0], [0, 1]], np.float32), 0.5)
    assert both.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_planted_set(Lake(str(tmp_path)))
    computed = plant_features(monkeypatch)
    files = {"--recipe": write_tiny_recipe(tmp_path), "--features": tmp_path / "f.npz", "--json": tmp_path / "figures.json"}
    arguments = [str(word) for pair in files.items() for word in pair]
    arguments += ["--quick", "--training-set", str(tmp_path / "training" / SET_ID)]
    status = encoder_quality.main(arguments)
    text = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert status == (0 if figures["holds"] else 1)
    assert text.startswith("QUICK RUN") and ("The claim holds" if figures["holds"] else "The claim does not hold") in text
    assert {line["encoder"] for line in figures["rows"]} == {PINCLIP, *OTHERS}
    assert [line["metric"] for line in figures["rows"] if line["encoder"] == PINCLIP] == list(MEASURES)
    assert all(line["low"] <= line["value"] <= line["high"] for line in figures["rows"])
    assert {line["queries"] for line in figures["rows"]} == {30}
    whole, first = (
        {line["metric"]: line["value"] for line in figures[table] if line["encoder"] == encoder}
        for table, encoder in (("rows", PINCLIP), ("nested_dimensions", "a/32"))
    )
    assert whole == pytest.approx(first)
    assert {line["encoder"] for line in figures["nested_dimensions"]} == {"a/32", "a/16", "a/8"}
    assert {line["title"] for line in figures["seen_by"]} == {"asked by picture alone", "asked by text alone", "asked by both"}
    assert {line["against"] for line in figures["differences"]} == set(OTHERS)
    assert figures["quick"] and figures["training_set"]["set_id"] == SET_ID and figures["machine"]["cores"] >= 1
    recalls = {line["encoder"]: line["value"] for line in figures["rows"] if line["metric"] == BOARD_MATES}
    assert recalls[PICTURE] > 2 * recalls[PIXELS], "the planted towers know the boards, the pixels know nothing"
    assert len(computed) == 1, "all rows share the towers"
    encoder_quality.main([*arguments, "--encoder", str(tmp_path / "config.json")])
    assert len(computed) == 1, "and a second run the first one's file"
    assert "Row a was trained on an unknown set, not here" in capsys.readouterr().out


@pytest.mark.parametrize("given", [[], ["--training-set", "nowhere"]])
def test_without_a_set_it_says_how_to_get_one(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PINLAKE_HOME", str(tmp_path))
    assert encoder_quality.main(given) == 2
    said = capsys.readouterr().err
    assert ("make train" in said) if not given else ("no training set nowhere" in said)


def test_a_set_with_a_fault_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_planted_set(Lake(str(tmp_path)))
    folder = tmp_path / "training" / SET_ID
    (folder / "train" / "part-00000.parquet").unlink()
    assert encoder_quality.main(["--training-set", str(folder)]) == 2
    assert "train/part-00000.parquet is missing" in capsys.readouterr().err


def test_the_machine_is_named() -> None:
    machine = describe_machine(["numpy", "no-such-package"])
    assert machine["versions"] == {"numpy": np.__version__, "no-such-package": "not installed"}
    assert machine["cpu"] in machine_line(machine) and f"numpy {np.__version__}" in machine_line(machine)
