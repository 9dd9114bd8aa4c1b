"""Do people's boards teach an encoder what off-the-shelf encoders do not know?

    python -m benchmarks.encoder_quality                                   # on the newest set of $PINLAKE_HOME
    python -m benchmarks.encoder_quality --training-set .pinlake/training/2026-11-20-0123456789ab --features features.npz

**The claim.** PinCLIP finds at least 30% more board-mates (recall@10) than encoders off the shelf, with the interval clear of
zero, and more than each of its own ablations. The strict reading is against the *strongest* untrained use of its very towers,
whichever of rows b1 to b3 that is; the wide one against the picture tower alone, a generic picture encoder as a platform would
take it off the shelf. Both are told; the exit status is that of the strict one and of the ablations.

**The test.** A training set of jobs/build_training_set.py holds out whole creators, boards and groups of near-duplicates, which
is checked first. The encoders are trained here, afresh, on its training split; the weight of row b3 is chosen on its validation
split; every figure is about its test split, by which nothing is chosen here. Searches run over all pins of the set, as in
production.

    a   PinCLIP, trained by the recipe on image-text pairs and on neighbours from boards
    b1  its picture tower as it came          b2  its text tower as it came
    b3  both side by side, as unit vectors, the picture's weight chosen on the validation split: the strongest untrained use
    c   PinCLIP trained without the graph: on image-text pairs alone
    d   PinCLIP trained without text: pictures and boards alone
    e   8 x 8 pixels, less the mean of the training pins

Measures and intervals are those of embedding/encoder/judge.py. An interval is over creators, for one training: another seed,
or another split, moves the figures too, and that is not in it. Where few creators ask, or one asks much, it is a rough one.

Exits with 0 where the claim holds, 1 where it does not, 2 for bad input. `--quick` trains a tenth of the epochs, to try
the program out: its figures are marked, and not kept in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import keep
from embedding.cli import format_table
from embedding.contracts import EmbeddingVersion
from embedding.encoder.config import ConfigError, EncoderConfig, load_config
from embedding.encoder.features import PinVectors, Projections, TowerFeatures
from embedding.encoder.judge import (
    BOARD_MATES,
    BOARD_MATES_IN_TEST,
    CATEGORY,
    IMAGE_TO_TEXT_1,
    IMAGE_TO_TEXT_5,
    MEASURES,
    RESAMPLES,
    TEXT_TO_IMAGE_1,
    TEXT_TO_IMAGE_5,
    Difference,
    Floats,
    JudgedPins,
    Measured,
    board_mate_recall,
    difference,
    estimate,
    json_values,
    measure,
    pairs,
    prefix,
    unit,
)
from embedding.encoder.judged_pins import JudgedSet, TowerCache, pixel_vectors
from embedding.encoder.model import PinEncoder
from embedding.encoder.recipe import DEFAULT_RECIPE, Recipe, RecipeError, load_recipe
from embedding.encoder.sources import PinFeatures
from embedding.encoder.train import RECORD, load_start, train
from embedding.encoder.training_set import (
    TRAIN,
    VALIDATION,
    Manifest,
    TrainingSetError,
    leaks,
    read_manifest,
    read_pins,
    verify_files,
)
from embedding.tables.lake import Lake

GOAL = 0.30
PICTURE_WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
QUICK_SHARE, QUICK_RESAMPLES = 0.1, 200
PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "numpy", "pyarrow")

PINCLIP, PICTURE, TEXT, BOTH, NO_GRAPH, NO_TEXT, PIXELS = "a", "b1", "b2", "b3", "c", "d", "e"
OFF_THE_SHELF, ABLATIONS = (PICTURE, TEXT, BOTH), (NO_GRAPH, NO_TEXT)
HEADS = {
    BOARD_MATES: "mates@10",
    BOARD_MATES_IN_TEST: "in test",
    IMAGE_TO_TEXT_1: "i2t R@1",
    IMAGE_TO_TEXT_5: "i2t R@5",
    TEXT_TO_IMAGE_1: "t2i R@1",
    TEXT_TO_IMAGE_5: "t2i R@5",
    CATEGORY: "category",
}

Figures = dict[str, Measured]

log = logging.getLogger("pinlake")


class UsageError(Exception):
    """What was asked for cannot be measured; the message says why, and what to do."""


@dataclass(frozen=True)
class Row:
    """An encoder and what was measured of it. `title` is for people."""

    key: str
    title: str
    figures: Figures


@dataclass(frozen=True)
class Verdict:
    """One comparison of the claim. holds: None where it is told and not judged."""

    against: str
    sentence: str
    holds: bool | None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-set", type=Path, metavar="DIR", help="default: the newest of $PINLAKE_HOME/training")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="name or path of the recipe of rows a, c and d")
    parser.add_argument("--encoder", metavar="CONFIG", help="a finished encoder for row a, instead of training one")
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help="keeps what the towers say, which takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all figures there")
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, fewer resamples: to try the program out")
    return parser.parse_args(argv)


# -- input ---------------------------------------------------------------------------------------------------------------------


def open_set(folder: Path | None) -> JudgedSet:
    """The set, its files checked, and no creator, board or near-duplicate in two of its splits."""
    home, set_id = _newest_set() if folder is None else (folder.resolve().parent.parent, folder.resolve().name)
    lake = Lake(str(home))
    manifest = read_manifest(lake, set_id)
    pins = read_pins(lake, manifest, ["user_id", "board_id", "board_ids", "duplicate_group", "split", "picture", "text"])
    if faults := [*verify_files(lake, manifest), *leaks(pins)]:
        raise UsageError(f"{set_id} is of no use, it has {len(faults)} faults, the first: {faults[0]}")
    return JudgedSet.open(lake, manifest)


def _newest_set() -> tuple[Path, str]:
    home = Path(os.environ.get("PINLAKE_HOME", ".pinlake")).resolve()
    manifests = [path.parent.name for path in home.glob("training/*/manifest.json")]
    if not manifests:
        raise UsageError(f"there is no training set in {home / 'training'}: run `make train`, or give --training-set DIR")
    return home, max(manifests, key=lambda set_id: (lambda m: (m.ds, m.built_at))(read_manifest(Lake(str(home)), set_id)))


# -- encoders ------------------------------------------------------------------------------------------------------------------


class Contest:
    """The rows: each an encoder's vectors of every pin of the set, measured. Towers run once."""

    def __init__(self, judged: JudgedSet, recipe: Recipe, file: Path | None, work: Path) -> None:
        self.judged, self.recipe, self.work = judged, recipe, work
        self.pins: JudgedPins = judged.pins
        self.cache = TowerCache(judged, file)
        config, model, _ = load_start(recipe)
        self.base = PinEncoder.of_model(config, EmbeddingVersion(config.name, "0" * 12), model)
        self.projections = Projections(recipe.image_projection, recipe.text_projection)

    def features(self) -> TowerFeatures:
        """What the recipe's towers say, untrained."""
        return self.cache.features(self.base, self.projections)

    def trained(self, name: str, **changes: Any) -> PinVectors:
        """An encoder trained by the recipe with these changes, on the training split."""
        log.info("training %s", name)
        rows = np.flatnonzero(self.pins.splits_N == TRAIN)
        # Of the training split alone: a training starts from the features' principal components, and may see no test pin there.
        features = PinFeatures(self.pins.pin_ids_N[rows], self.features().take(rows))
        judged = self.judged
        config = train(judged.lake, judged.manifest.set_id, self.recipe.changed(**changes), self.work / name, features=features)
        return self.vectors(config)

    def vectors(self, config: EncoderConfig) -> PinVectors:
        return self.cache.vectors(config)

    def pinclip(self, given: str | None) -> tuple[str, PinVectors]:
        """Row a: its title, and its vectors."""
        if given is None:
            return "PinCLIP", self.trained("pinclip")
        config = load_config(given)
        return f"PinCLIP ({config.name}, given)", self.vectors(config)

    def untrained(self) -> list[Row]:
        """Rows b1 to b3."""
        features = self.features()
        picture_ND, text_ND = unit(features.image_NF), unit(features.text_NF)
        weight, both_ND = strongest_pair(picture_ND, text_ND, self.pins)
        names = tower_names(self.base.config)
        return [
            Row(PICTURE, f"picture tower alone ({names[0]})", measure(self.pins, picture_ND)),
            Row(TEXT, f"text tower alone ({names[1]})", measure(self.pins, text_ND)),
            Row(BOTH, f"both towers, picture x {weight:g}", measure(self.pins, both_ND)),
        ]


def strongest_pair(picture_ND: Floats, text_ND: Floats, pins: JudgedPins) -> tuple[float, Floats]:
    """The weight of PICTURE_WEIGHTS under which validation pins find most board-mates, and the vectors that it makes."""
    recalls = {
        weight: board_mate_recall(side_by_side(picture_ND, text_ND, weight), pins, split=VALIDATION).mean
        for weight in PICTURE_WEIGHTS
    }
    best = max(recalls, key=lambda weight: recalls[weight])
    return best, side_by_side(picture_ND, text_ND, best)


def side_by_side(picture_ND: Floats, text_ND: Floats, picture_weight: float) -> Floats:
    """Both unit vectors as one, the picture's multiplied by its weight; a pin with one of them has zeros for the other."""
    return unit(np.concatenate([picture_weight * picture_ND, text_ND], axis=1))


def tower_names(config: EncoderConfig) -> tuple[str, str]:
    """Short names of a config's towers."""
    vision, text = config.model["vision_cfg"], config.model["text_cfg"]
    picture = vision.get("timm_model_name") or f"{config.name}'s"
    words = Path(text["hf_model_name"]).parts[-2:] if text.get("hf_model_name") else (f"{config.name}'s",)
    return str(picture), next(part for part in words if part != "model")


def compete(contest: Contest, given: str | None) -> tuple[list[Row], PinVectors]:
    """All rows, and the vectors of row a."""
    title, pinclip = contest.pinclip(given)
    pins = contest.pins
    no_graph = contest.trained("no-graph", neighbour_weight=0.0)
    # Trained without text, an encoder has nothing to say about text: its pins are seen by their pictures.
    no_text = contest.trained("no-text", use_text=False)
    return [
        Row(PINCLIP, title, measure(pins, pinclip.fused_ND, pinclip.image_ND, pinclip.text_ND)),
        *contest.untrained(),
        Row(NO_GRAPH, "PinCLIP without graph", measure(pins, no_graph.fused_ND, no_graph.image_ND, no_graph.text_ND)),
        Row(NO_TEXT, "PinCLIP without text", measure(pins, no_text.image_ND)),
        Row(PIXELS, "8 x 8 pixels", measure(pins, pixel_vectors(contest.judged))),
    ], pinclip


def nested_rows(pinclip: PinVectors, pins: JudgedPins, dims: Sequence[int]) -> list[Row]:
    """Row a by prefixes of its vectors."""

    def cut(dim: int) -> Figures:
        return measure(pins, *(prefix(part, dim) for part in (pinclip.fused_ND, pinclip.image_ND, pinclip.text_ND)))

    usable = [dim for dim in dims if dim <= pinclip.fused_ND.shape[1]]
    return [Row(f"a/{dim}", f"first {dim} dimensions", cut(dim)) for dim in usable]


def seen_rows(pinclip: PinVectors, pins: JudgedPins) -> list[Row]:
    """Row a, the queries seen by picture, by text and by both, among fused pins; of pins that have both."""
    both_N = pins.has_image_N & pins.has_text_N
    ways = {"picture alone": pinclip.image_ND, "text alone": pinclip.text_ND, "both": pinclip.fused_ND}
    found = {way: board_mate_recall(pinclip.fused_ND, pins, asked_ND=asked).only(both_N) for way, asked in ways.items()}
    return [Row(f"a/{way}", f"asked by {way}", {BOARD_MATES: measured}) for way, measured in found.items()]


# -- the claim -----------------------------------------------------------------------------------------------------------------


def compare(rows: Sequence[Row], resamples: int) -> dict[str, Difference]:
    """How many more board-mates row a finds than each other row, by the other's key."""
    by_key = {row.key: row.figures[BOARD_MATES] for row in rows}
    return {key: difference(by_key[PINCLIP], other, resamples) for key, other in by_key.items() if key != PINCLIP}


def judge_claim(rows: Sequence[Row], differences: Mapping[str, Difference]) -> list[Verdict]:
    """The strict verdict first, then the wide one, then each ablation's, then the pixels', which is only told."""
    titles = {row.key: f"{row.key} ({row.title})" for row in rows}
    shelf = {row.key: row.figures[BOARD_MATES].mean for row in rows if row.key in OFF_THE_SHELF}
    strongest = max(shelf, key=lambda key: shelf[key])
    verdicts = [_against_shelf("strict", "the strongest off the shelf", strongest, titles, differences)]
    if strongest != PICTURE:
        wide = _against_shelf("wide", "a generic picture encoder", PICTURE, titles, differences)
        untrained = shelf[strongest] / shelf[PICTURE] - 1 if shelf[PICTURE] else float("inf")
        told = f"{wide.sentence}; but {strongest}, which is not trained either, has {untrained:+.1%} over it already"
        verdicts.append(replace(wide, sentence=told, holds=None))
    verdicts += [_against_ablation(key, titles, differences) for key in ABLATIONS]
    return [*verdicts, Verdict(PIXELS, f"told: over {titles[PIXELS]} {_by(differences[PIXELS])}", None)]


def _against_shelf(name: str, what: str, key: str, titles: Mapping[str, str], differences: Mapping[str, Difference]) -> Verdict:
    found = differences[key]
    holds = found.relative >= GOAL and found.is_above
    goal = f"goal {GOAL:+.0%}, interval clear of zero"
    return Verdict(key, f"{name}: {_word(holds)}: over {what}, {titles[key]}, {_by(found)}; {goal}", holds)


def _against_ablation(key: str, titles: Mapping[str, str], differences: Mapping[str, Difference]) -> Verdict:
    found = differences[key]
    doubt = "" if found.is_above or found.relative <= 0 else "; more, but not beyond doubt"
    sentence = f"ablation: {_word(found.is_above)}: over {titles[key]} {_by(found)}; goal more, clear of zero{doubt}"
    return Verdict(key, sentence, found.is_above)


def _word(holds: bool) -> str:
    return "HOLDS" if holds else "MISSED"


def _by(found: Difference) -> str:
    return f"{found.relative:+.1%} ({found.low:+.1%} to {found.high:+.1%})"


# -- output --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All that is told, as values."""

    judged: JudgedSet
    recipe: Recipe
    quick: bool
    resamples: int
    rows: list[Row]
    nested: list[Row]
    seen: list[Row]
    differences: dict[str, Difference]
    verdicts: list[Verdict]
    seconds: float
    notes: list[str]

    @property
    def holds(self) -> bool:
        return all(verdict.holds is not False for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        manifest = self.judged.manifest
        return {
            "claim": f"board-mate recall@10 at least {GOAL:+.0%} over the strongest off-the-shelf row, and above each ablation",
            "holds": self.holds,
            "quick": self.quick,
            "machine": describe_machine(PACKAGES),
            "seconds": round(self.seconds, 1),
            "training_set": {"set_id": manifest.set_id, "counts": manifest.counts, "parameters": manifest.parameters},
            "recipe": self.recipe.to_dict(),
            "resamples": self.resamples,
            "notes": self.notes,
            "rows": [line for row in self.rows for line in _lines(row, self.resamples)],
            "nested_dimensions": [line for row in self.nested for line in _lines(row, self.resamples)],
            "seen_by": [line for row in self.seen for line in _lines(row, self.resamples)],
            "differences": [{"of": PINCLIP, "against": key, **json_values(found)} for key, found in self.differences.items()],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }

    def to_text(self) -> str:
        """Tables for people."""
        pins = self.judged.pins
        blocks = [
            "QUICK RUN: hardly trained, not to be cited" if self.quick else "",
            f"Encoders on the test split of {self.judged.manifest.set_id}: {len(pins)} pins are searched",
            _table(self.rows, self.resamples),
            self._legend(),
            "PinCLIP by its first dimensions, brought to length 1",
            _table(self.nested, self.resamples),
            "PinCLIP's pins asked by a part of what they have, among pins seen whole "
            f"({len(self.seen[0].figures[BOARD_MATES].values_Q)} queries with picture and text)",
            _table(self.seen, self.resamples, (BOARD_MATES,)),
            "Board-mates that PinCLIP finds, relative to each other row",
            self._difference_table(),
            *self.notes,
            "The claim\n" + "\n".join(f"  {verdict.sentence}" for verdict in self.verdicts),
            self._summary(),
            f"Measured in {self.seconds:.0f} s, training included, on\n{machine_line(describe_machine(PACKAGES))}",
        ]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def _legend(self) -> str:
        mates, votes = self.rows[0].figures[BOARD_MATES], self.rows[0].figures[CATEGORY]
        _, of_creator = np.unique(mates.creators_Q, return_counts=True)
        return (
            "In percent, with 95% intervals over creators. A pin that an encoder cannot read is a miss.\n"
            f"mates@10  board-mates among the ten nearest of all pins: {len(mates.values_Q)} queries of {len(of_creator)} "
            f"creators, {of_creator.max() / of_creator.sum():.0%} of one\n"
            "in test   the same among the ten nearest test pins\n"
            f"i2t, t2i  a picture's own text, a text's own picture, among {len(pairs(self.judged.pins))}; - without a common "
            "space (b: towers trained apart) or without text (d, e)\n"
            f"category  by the majority of the 5 nearest training pins: {len(votes.values_Q)} queries"
        )

    def _summary(self) -> str:
        missed = ", ".join(verdict.against for verdict in self.verdicts if verdict.holds is False)
        return "The claim holds." if self.holds else f"The claim does not hold: it misses over {missed}."

    def _difference_table(self) -> str:
        titles = {row.key: row.title for row in self.rows}
        cells = [
            (key, titles[key], _by(found), f"{100 * found.absolute.value:+.1f}") for key, found in self.differences.items()
        ]
        return format_table(cells, ("", "over", "relative (95%)", "points"))


def _lines(row: Row, resamples: int) -> list[dict[str, Any]]:
    about = {"encoder": row.key, "title": row.title}
    return [
        about | {"metric": name, "queries": len(found.rows_Q)} | json_values(estimate(found, resamples))
        for name, found in row.figures.items()
    ]


def _table(rows: Sequence[Row], resamples: int, names: Sequence[str] = MEASURES) -> str:
    def cell(row: Row, name: str) -> str:
        if name not in row.figures:
            return "-"
        found = estimate(row.figures[name], resamples)
        return f"{100 * found.value:.1f} ({100 * found.low:.0f}-{100 * found.high:.0f})"

    def key(row: Row) -> str:
        return row.key if "/" not in row.key else ""

    cells = [(key(row), row.title, *(cell(row, name) for name in names)) for row in rows]
    return format_table(cells, ("", "encoder", *(HEADS[name] for name in names)))


def given_notes(given: str | None, manifest: Manifest) -> list[str]:
    """What a reader must know of an encoder that was not trained here."""
    if given is None:
        return []
    record = load_config(given).source.with_name(RECORD)
    trained_on = json.loads(record.read_text(encoding="utf-8")).get("training_set") if record.is_file() else None
    if trained_on == manifest.set_id:
        return [f"Row a was trained on this set before, by {record}."]
    return [
        f"Row a was trained on {trained_on or 'an unknown set'}, not here: its figures are worth as much as that set's split "
        "has in common with this one's."
    ]


def run(args: argparse.Namespace, work: Path) -> Report:
    started = time.monotonic()
    judged = open_set(args.training_set)
    recipe = load_recipe(args.recipe)
    if args.quick:
        recipe = recipe.changed(epochs=recipe.epochs * QUICK_SHARE)
    resamples = QUICK_RESAMPLES if args.quick else RESAMPLES
    notes = given_notes(args.encoder, judged.manifest)
    rows, pinclip = compete(Contest(judged, recipe, args.features, work), args.encoder)
    differences = compare(rows, resamples)
    return Report(
        judged=judged,
        recipe=recipe,
        quick=args.quick,
        resamples=resamples,
        rows=rows,
        nested=nested_rows(pinclip, judged.pins, recipe.dims),
        seen=seen_rows(pinclip, judged.pins),
        differences=differences,
        verdicts=judge_claim(rows, differences),
        seconds=time.monotonic() - started,
        notes=notes,
    )


def main(argv: Sequence[str] | None = None, out: Callable[[str], None] = print) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="encoder-quality-") as work:
            report = run(args, Path(work))
    except (UsageError, TrainingSetError, RecipeError, ConfigError) as error:
        print(f"encoder_quality: {error}", file=sys.stderr)
        return 2
    text, figures = report.to_text(), report.to_json()
    out(text)
    keep(figures, text, args.json, None if report.quick or args.encoder else "encoder_quality")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
