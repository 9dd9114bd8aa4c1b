"""The judge of a trained encoder beside the live one: who wins, what is told, and what is left for the steps that follow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding.encoder.config import embedding_version, load_config
from embedding.encoder.judge import BOARD_MATES, IMAGE_TO_TEXT_5, MEASURES, TEXT_TO_IMAGE_5, Measured, difference
from embedding.encoder.tracking import Verdict, read_training, training_uri
from embedding.tables.lake import Lake
from jobs import judge_encoder
from jobs.judge_encoder import Decision, decide
from jobs.session import EXIT_GATE_FAILED
from tests.encoder.planted_set import plant_features, write_planted_set, write_tiny_encoder
from tests.encoder.written_set import SET_ID

RUN = "by hand"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with a training set, and two encoders of the same towers: one whose head loses nothing, one that loses much."""
    folder = tmp_path_factory.mktemp("platform")
    write_planted_set(Lake(str(folder / "lake")))
    write_tiny_encoder(folder / "good")
    write_tiny_encoder(folder / "poor", rank=2)
    return folder


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that towers ran."""
    return plant_features(monkeypatch)


def judged(platform: Path, candidate: str, live: str, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit status and what judgement.json says, once the run has trained `candidate` and `live` serves."""
    lake = Lake(str(platform / "lake"))
    folder = Path(training_uri(lake, RUN))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(platform / candidate, folder)
    version = str(embedding_version(load_config(folder / "config.json")))
    record = {"embedding_version": version, "training_set": SET_ID, "recipe": {}}
    (folder / "training.json").write_text(json.dumps(record))
    config = str(platform / live / "config.json")
    status = judge_encoder.main(["--home", lake.home, "--run-id", RUN, "--against", config, *more])
    return status, json.loads((folder / "judgement.json").read_text())


def test_a_better_encoder_passes(platform: Path, computed: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    status, judgement = judged(platform, "good", "poor")
    assert (status, judgement["better"], computed) == (0, True, [1]), "the towers that both share ran once"
    assert [(row["encoder"], row["metric"]) for row in judgement["rows"]] == [
        (name, metric) for name in ("candidate", "live") for metric in MEASURES
    ]
    assert all(row["low"] <= row["value"] <= row["high"] for row in judgement["rows"])
    assert judgement["difference"]["metric"] == BOARD_MATES and judgement["difference"]["low"] > 0
    assert BOARD_MATES in capsys.readouterr().out
    training = read_training(Lake(str(platform / "lake")), RUN)
    assert training.verdict == Verdict.ACCEPTED


def test_a_worse_encoder_is_stopped_with_the_table_that_says_why(
    platform: Path, computed: list[int], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status, judgement = judged(platform, "poor", "good")
    assert status == EXIT_GATE_FAILED and not judgement["better"]
    assert judgement["difference"]["high"] < 0
    assert BOARD_MATES in capsys.readouterr().out
    assert "is not better: board-mate recall@10 is" in caplog.text and "falls beyond doubt" in caplog.text
    assert read_training(Lake(str(platform / "lake")), RUN).verdict == Verdict.REJECTED


def test_the_live_encoder_itself_is_no_candidate(platform: Path, computed: list[int]) -> None:
    status, judgement = judged(platform, "good", "good")
    assert status == EXIT_GATE_FAILED and not judgement["better"] and not computed
    assert "there is nothing to replace" in judgement["sentences"][0] and judgement["rows"] == []


def test_a_margin_asks_for_more(platform: Path, computed: list[int]) -> None:
    status, judgement = judged(platform, "good", "poor", "--margin", "100")
    assert status == EXIT_GATE_FAILED and "the low end must be above +10000.0%" in judgement["sentences"][0]


def test_the_towers_themselves_run_where_nothing_is_planted(platform: Path) -> None:
    status, judgement = judged(platform, "good", "poor")
    assert status in (0, EXIT_GATE_FAILED)
    assert all(0 <= row["value"] <= 1 for row in judgement["rows"])


def decision(mates: float, to_text: float = 0.0, to_image: float = 0.0, noise: float = 0.0) -> Decision:
    """Of a candidate whose figures are these much above the live encoder's."""
    rng, rows = np.random.default_rng(0), np.arange(50)
    gains = {BOARD_MATES: mates, IMAGE_TO_TEXT_5: to_text, TEXT_TO_IMAGE_5: to_image}
    live = {name: Measured(np.full(50, 0.5), rows, rows) for name in gains}
    candidate = {name: Measured(0.5 + gain + noise * rng.normal(size=50), rows, rows) for name, gain in gains.items()}
    return decide(candidate, live, {name: difference(candidate[name], live[name]) for name in gains}, margin=0.0)


def test_better_is_better_beyond_doubt() -> None:
    assert decision(0.1).better
    assert not decision(0.0).better and not decision(-0.1).better
    within_noise = decision(0.001, noise=0.3)
    assert not within_noise.better and "the low end must be above +0.0%" in within_noise.faults[0]


def test_what_is_gained_on_boards_may_not_be_lost_between_picture_and_text() -> None:
    assert decision(0.1, to_text=0.05).better
    assert decision(0.1, to_text=-0.01, noise=0.2).better, "a fall within the noise is none"
    assert decision(0.1, to_text=-0.1).faults == [
        "picture to text R@5 is 0.4000, the live encoder's 0.5000 (difference from -0.1000 to -0.1000): it falls beyond doubt"
    ]
    assert not decision(0.1, to_image=-0.1).better
