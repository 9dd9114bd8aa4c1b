"""Judges the encoder that this run trained beside the live one. Exits with 3 where it is not better.

    spark-submit jobs/judge_encoder.py --home .pinlake --run-id by-hand

Both see every pin of the training set; asked are those of its test split, whose creators, boards and near-duplicates no
training of the set has seen (embedding/encoder/judge.py says what is measured). The candidate must

1. find more board-mates among a pin's ten nearest: the 95% interval of the paired difference lies above `--margin`;
2. lose nothing between picture and text: in neither direction does R@5 fall with its interval clear of zero.

What was found stands in judgement.json beside the encoder, whichever way it ends. Takes minutes: the towers run over all pins,
once if both encoders share them. Needs no Spark session. Memory: the features of all pins, and the pictures of one file.

An interval is over creators, for one training. Weights that were trained elsewhere, on pins that are in this test split, would
be flattered, and nothing here can tell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from embedding.cli import format_table
from embedding.encoder.config import ConfigError, EncoderConfig, load_config
from embedding.encoder.judge import (
    BOARD_MATES,
    IMAGE_TO_TEXT_5,
    MEASURES,
    TEXT_TO_IMAGE_5,
    Difference,
    Measured,
    difference,
    estimate,
    json_values,
    measure,
)
from embedding.encoder.judged_pins import JudgedSet, TowerCache
from embedding.encoder.store import CANDIDATE, LIVE
from embedding.encoder.tracking import JUDGEMENT, TrackingError, Training, read_training
from embedding.encoder.training_set import TrainingSetError, read_manifest, read_training_set, verify_files
from embedding.index.release import ReleaseError
from embedding.log_lines import tell
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.register_encoder import local_config
from jobs.session import ENCODER_HELP, EXIT_GATE_FAILED, arguments, job_encoder, log, run_program

MUST_NOT_FALL = {IMAGE_TO_TEXT_5: "picture to text R@5", TEXT_TO_IMAGE_5: "text to picture R@5"}

Figures = Mapping[str, Measured]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--training-set", metavar="ID", help="judge on this set (default: the one that was trained on)")
    parser.add_argument("--against", default=LIVE, metavar="ENCODER", help=f"the encoder to beat: {ENCODER_HELP}")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.0,
        help="the low end of the relative difference in board-mate recall must be above this (0.05: 5%% better; default 0)",
    )
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is better, and why, a sentence a reason."""

    better: bool
    sentences: list[str]
    faults: list[str]


def open_set(lake: Lake, training: Training, run_id: str, wanted: str | None) -> JudgedSet:
    """The training's own set, unless another one is wanted; its files checked."""
    set_id = wanted or training.facts.get("training_set") or read_training_set(lake, run_id)
    manifest = read_manifest(lake, str(set_id))
    if faults := verify_files(lake, manifest):
        raise TrainingSetError(f"{set_id}: {faults[0]}; build the set again")
    return JudgedSet.open(lake, manifest)


def measure_encoder(cache: TowerCache, config: EncoderConfig, judged: JudgedSet) -> Figures:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vectors = cache.vectors(config, device)
    return measure(judged.pins, vectors.fused_ND, vectors.image_ND, vectors.text_ND)


def decide(candidate: Figures, live: Figures, found: Mapping[str, Difference], margin: float) -> Decision:
    """The rule of this module's docstring."""
    mates = found[BOARD_MATES]
    is_above = mates.low > margin
    said = (
        f"board-mate recall@10 is {candidate[BOARD_MATES].mean:.4f}, the live encoder's {live[BOARD_MATES].mean:.4f}: "
        f"{mates.relative:+.1%} ({mates.low:+.1%} to {mates.high:+.1%}, 95%)"
    )
    needed = f"; the low end must be above {margin:+.1%}"
    sentences = [said if is_above else said + needed]
    faults = [] if is_above else list(sentences)
    for name, title in MUST_NOT_FALL.items():
        points = found[name].absolute
        said = (
            f"{title} is {candidate[name].mean:.4f}, the live encoder's {live[name].mean:.4f} (difference from "
            f"{points.low:+.4f} to {points.high:+.4f})"
        )
        sentences.append(said)
        if found[name].is_below:
            faults.append(f"{said}: it falls beyond doubt")
    return Decision(not faults, sentences, faults)


def describe(candidate: Figures, live: Figures, found: Mapping[str, Difference]) -> str:
    """All measures as a table for people."""

    def cell(measured: Measured) -> str:
        one = estimate(measured)
        return f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})"

    def change(one: Difference) -> str:
        return f"{one.absolute.value:+.4f} ({one.absolute.low:+.4f} to {one.absolute.high:+.4f})"

    rows = [
        (name, len(candidate[name].rows_Q), cell(candidate[name]), cell(live[name]), change(found[name])) for name in MEASURES
    ]
    return format_table(rows, ("measure", "queries", CANDIDATE, LIVE, "difference (95%)"))


def figures_as_rows(name: str, figures: Figures) -> list[dict[str, Any]]:
    return [{"encoder": name, "metric": metric, **json_values(estimate(found))} for metric, found in figures.items()]


def write_judgement(training: Training, against: str, set_id: str | None, decision: Decision, **figures: Any) -> None:
    judgement = {
        "better": decision.better,
        "embedding_version": training.version,
        "against": against,
        "training_set": set_id,
        "sentences": decision.sentences + [fault for fault in decision.faults if fault not in decision.sentences],
        "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **figures,
    }
    storage.write_atomic(f"{training.uri}/{JUDGEMENT}", (json.dumps(judgement, indent=1, allow_nan=False) + "\n").encode())


def judge(lake: Lake, training: Training, args: argparse.Namespace) -> Decision:
    """Measures both, prints the table, leaves judgement.json."""
    live = job_encoder(lake, args.against)
    tell(embedding_version=training.version)
    if live.version == training.version:
        sentence = f"{training.version} is the encoder that it would be judged against: there is nothing to replace"
        same = Decision(False, [sentence], [sentence])
        write_judgement(training, live.version, None, same, rows=[])
        return same
    judged = open_set(lake, training, args.run_id, args.training_set)
    cache = TowerCache(judged)
    with local_config(training) as config:
        candidate_figures = measure_encoder(cache, load_config(config), judged)
    live_figures = measure_encoder(cache, live.config, judged)
    found = {name: difference(candidate_figures[name], live_figures[name]) for name in MEASURES}
    decision = decide(candidate_figures, live_figures, found, args.margin)
    print(f"{training.version} (candidate) beside {live.version}, on {judged.manifest.set_id}")
    print(describe(candidate_figures, live_figures, found))
    write_judgement(
        *(training, live.version, judged.manifest.set_id, decision),
        rows=[*figures_as_rows(CANDIDATE, candidate_figures), *figures_as_rows(LIVE, live_figures)],
        difference={"metric": BOARD_MATES, **json_values(found[BOARD_MATES])},
    )
    return decision


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    training = read_training(lake, args.run_id)
    decision = judge(lake, training, args)
    for fault in decision.faults:
        log.error("%s is not better: %s", training.version, fault)
    if decision.better:
        log.info("%s is better: %s", training.version, decision.sentences[0])
    return 0 if decision.better else EXIT_GATE_FAILED


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError, TrackingError, TrainingSetError)
