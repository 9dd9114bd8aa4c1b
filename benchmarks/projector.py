"""Does a small language model see pins that it never saw as pictures?

    python -m benchmarks.projector --home .pinlake        # a lake with examples of jobs/build_conversations.py

**The claim.** SmolLM2-135M, which reads a pin as K tokens projected from the night's vector, answers closed questions about
pins of held-out creators at least 30% (relative) better than the same model, with the same LoRA weights, that is shown no pin;
the 95% interval of each gain is clear of zero.

**The test.** Closed questions of the test split: no creator, board or near-duplicate of it was trained on. In none of them
stands the answer, or the pin's own words, in the prompt.

    title        which of four titles is this pin's         chance 25%
    tag          which of four tags does it have            chance 25%
    same_board   are two pins on one board                  chance 50%
    fits         does a pin fit a request                   chance 50%
    retrieval    which of 100 titles is this pin's          chance 1%

    pins         vectors as they are: of picture and text. These have read the title that is asked for
    pictures     vectors of the pictures alone, encoded without any text: the harder, and the fairer, row
    none         no pin in the prompt, all else as it is; for the questions about pins, and for those about pictures
    shuffled     the vector of another pin of the test split
    text         SmolLM2 as it came, no pin: the prompt tells in words what the question does not ask for (of a title the
                 tags, of a tag the title, of a board and of a request both)
    cosine       no language model: the encoder's own vectors of pin and text (or of two pins) compared, which is what
                 retrieval alone knows; for pins, and for pictures

An answer is the one that the model finds likeliest. Likeliest can be counted by the sum or the mean of its tokens, and with or
without what it has where no pin is shown; yes or no has a threshold. Each row uses what serves it best on the validation split.
The same kinds of question were trained on, from other pins. Intervals: 2,000 bootstrap draws over pins, for one training.

Exits with 0 where the claim holds for all four kinds, with `pins` and with `pictures`; 1 where not; 2 for bad input. `--quick`
asks a tenth of the questions; its figures are not kept in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assistant.brains import smollm2
from assistant.brains.adapter import CONFIG as ADAPTER
from assistant.brains.adapter import add_adapter
from assistant.brains.prompts import Data, Prompter, Segment, Template, reply, smollm2_vocabulary, turn
from assistant.brains.small import WEIGHTS_FOLDER
from assistant.brains.wording import Shown, ask_fits, ask_same_board, ask_tags, ask_title
from assistant.projector import CONFIG as PROJECTOR
from assistant.projector import Projector, ProjectorError
from assistant.training.batches import Encoded, encode, encode_example
from assistant.training.conversations import (
    FITS,
    SAME_BOARD,
    TAG,
    TAGS,
    TITLE,
    ConversationsError,
    Example,
    read_examples,
    read_manifest,
)
from assistant.training.seeing import Seeing
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from embedding.cli import format_table
from embedding.encoder.model import PinEncoder
from embedding.encoder.store import open_encoder
from embedding.encoder.training_set import TEST, VALIDATION
from embedding.tables.lake import Lake

GOAL, DRAWS = 0.30, 2_000
PINS, VALIDATION_PINS, RETRIEVED = 200, 80, 100
KINDS = (TITLE, TAG, SAME_BOARD, FITS)
CHANCE = {TITLE: 0.25, TAG: 0.25, SAME_BOARD: 0.5, FITS: 0.5}
NONE = {"pins": "none", "pictures": "none, pictures"}
ROWS = ("pins", "pictures", *NONE.values(), "shuffled", "text", "cosine", "cosine, pictures")
PACKAGES = ("torch", "transformers", "numpy")

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scores:
    """Of one question: sums of log-probabilities of its answers, how many tokens they have, and the sums without a pin."""

    sums: Floats
    tokens: Floats
    before: Floats


RULES: dict[str, Callable[[Scores], Floats]] = {
    "sum": lambda one: one.sums,
    "mean": lambda one: one.sums / one.tokens,
    "gain": lambda one: one.sums - one.before,
    "mean gain": lambda one: (one.sums - one.before) / one.tokens,
}


@dataclass(frozen=True)
class Judged:
    """right_Q: whether each question was answered rightly. about_Q: its pin."""

    right_Q: npt.NDArray[np.bool_]  # noqa: N815
    about_Q: npt.NDArray[np.int64]  # noqa: N815
    rule: str

    def by_pin(self) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for pin, right in zip(self.about_Q.tolist(), self.right_Q.tolist(), strict=True):
            before = found.get(pin, (0, 0))
            found[pin] = before[0] + right, before[1] + 1
        return found


class Judge:
    """The models, and what they say of questions. words: by pin, its title and its tags, for the row `text`."""

    def __init__(
        self, ours: Seeing, base: Seeing, encoder: PinEncoder, prompter: Prompter, words: Mapping[int, tuple[str, str]]
    ):
        self.ours, self.base, self.encoder, self.prompter, self.words = ours, base, encoder, prompter, words
        self._known: dict[tuple[bool, str], list[tuple[Floats, Floats]]] = {}

    def scores(self, row: str, examples: Sequence[Example]) -> list[Scores]:
        if row.startswith("cosine"):
            return self._cosines(examples)
        model = self.base if row == "text" else self.ours
        asks = dict.fromkeys(NONE.values(), self._without) | {"text": self._in_words}
        ask = asks.get(row, self._with_pins)
        found = self._score(model, [ask(one) for one in examples])
        known = [(np.zeros_like(sums), counts) for sums, counts in found]
        if examples[0].kind in (TITLE, TAG):
            before = self._bare if row == "text" else self._without
            known = self._score(model, [before(one) for one in examples])
        return [Scores(sums, tokens, prior) for (sums, tokens), (prior, _) in zip(found, known, strict=True)]

    def _score(self, model: Seeing, encoded: Sequence[Encoded]) -> list[tuple[Floats, Floats]]:
        """As Seeing.score; what several rows ask without a pin is asked once."""
        if any(len(one.prompt.pins) for one in encoded):
            return [*model.score(encoded)]
        key = (model is self.base, repr([(one.prompt.ids, one.choices) for one in encoded]))
        if key not in self._known:
            self._known[key] = [*model.score(encoded)]
        return self._known[key]

    def _encoded(self, segments: Sequence[Segment], example: Example) -> Encoded:
        return encode(segments, example.choices, example.right, self.prompter)

    def _with_pins(self, example: Example) -> Encoded:
        return encode_example(example, self.prompter)

    def _without(self, example: Example) -> Encoded:
        nothing = Shown(None)
        asks = {
            TITLE: lambda: ask_title(nothing),
            TAG: lambda: ask_tags(nothing),
            SAME_BOARD: lambda: ask_same_board(nothing, nothing),
            FITS: lambda: ask_fits(nothing, example.words),
        }
        return self._encoded(asks[example.kind](), example)

    def _in_words(self, example: Example) -> Encoded:
        told = [self.words.get(pin, ("", "")) for pin in example.pins]
        sentences = {
            TITLE: lambda: f"A picture is tagged: {told[0][1]}. What is its title? Answer with the title alone.",
            TAG: lambda: f"A picture is called: {told[0][0]}. Name a tag for it. Answer with the tag alone.",
            SAME_BOARD: lambda: (
                f"One picture: {_both(told[0])}. Another picture: {_both(told[-1])}. Do they belong to the same "
                "collection? Answer yes or no."
            ),
            FITS: lambda: f"A picture: {_both(told[0])}. Does it fit the request: {example.words}? Answer yes or no.",
        }
        return self._encoded((*turn("user", Data(sentences[example.kind]())), *reply()), example)

    def _bare(self, example: Example) -> Encoded:
        words = {TITLE: "What is the title of a picture?", TAG: "Name a tag for a picture."}.get(
            example.kind, "Answer yes or no."
        )
        return self._encoded((*turn("user", Template(words)), *reply()), example)

    def _cosines(self, examples: Sequence[Example]) -> list[Scores]:
        """Of yes or no: the cosine for yes, 0 for no."""
        texts = sorted({text for one in examples for text in (one.words, *one.choices) if text})
        known = dict(zip(texts, self.encoder.encode_texts(texts), strict=True))
        found = []
        for one in examples:
            if one.kind in (TITLE, TAG):
                cosines = np.array([one.vectors_ND[0] @ known[choice] for choice in one.choices])
            else:
                other = one.vectors_ND[1] if one.kind == SAME_BOARD else known[one.words]
                cosines = np.array([one.vectors_ND[0] @ other, 0.0])
            found.append(Scores(cosines, np.ones(len(cosines)), np.zeros(len(cosines))))
        return found


def _both(words: tuple[str, str]) -> str:
    return ", ".join(part for part in words if part)


# -- judging ---------------------------------------------------------------------------------------------------------------


def answers(rule: str, threshold: float, scores: Sequence[Scores], closed: bool) -> npt.NDArray[np.int64]:
    """The chosen answer of each question; of yes (0) or no (1) by the threshold of their difference."""
    values = [RULES[rule](one) for one in scores]
    if closed:
        return np.array([0 if value[0] - value[1] >= threshold else 1 for value in values])
    return np.array([int(np.argmax(value)) for value in values])


def calibrate(scores: Sequence[Scores], examples: Sequence[Example]) -> tuple[str, float]:
    """The rule, and the threshold of yes, that find the most right answers of the validation split."""
    right = np.array([one.right for one in examples])
    closed = examples[0].kind in (SAME_BOARD, FITS)
    tried = []
    for rule in ("sum",) if closed else RULES:
        gaps = [float(RULES[rule](one)[0] - RULES[rule](one)[1]) for one in scores]
        for threshold in np.quantile(gaps, np.linspace(0.02, 0.98, 49)) if closed else [0.0]:
            found = float((answers(rule, float(threshold), scores, closed) == right).mean())
            tried.append((found, rule, float(threshold)))
    best = max(found for found, _, _ in tried)
    good = [one for one in tried if one[0] == best]
    return good[len(good) // 2][1:]


def judge_row(judge: Judge, row: str, validation: Sequence[Example], test: Sequence[Example]) -> Judged:
    rule, threshold = calibrate(judge.scores(row, validation), validation)
    chosen = answers(rule, threshold, judge.scores(row, test), test[0].kind in (SAME_BOARD, FITS))
    about_Q = np.array([one.about for one in test])
    return Judged(chosen == np.array([one.right for one in test]), about_Q, rule)


def interval(with_: Judged, without: Judged | None = None) -> dict[str, float]:
    """Accuracy with its 95% interval; or, with another row, the relative gain over it. Draws are over pins."""
    ours = with_.by_pin()
    pins = list(ours)
    rng = np.random.default_rng(0)
    drawn_RP = rng.integers(len(pins), size=(DRAWS, len(pins)))

    def accuracy(counts: dict[int, tuple[int, int]]) -> tuple[float, Floats]:
        table = np.array([counts.get(pin, (0, 0)) for pin in pins], np.float64)
        sums = table[drawn_RP].sum(axis=1)
        return float(table[:, 0].sum() / table[:, 1].sum()), sums[:, 0] / sums[:, 1]

    value, draws = accuracy(ours)
    if without is not None:
        other, other_draws = accuracy(without.by_pin())
        value, draws = value / other - 1, draws / other_draws - 1
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """Each question with the vectors of the one half the list away."""
    half = len(examples) // 2
    return [replace(one, vectors_ND=examples[(place + half) % len(examples)].vectors_ND) for place, one in enumerate(examples)]


def retrieve(judge: Judge, examples: Sequence[Example]) -> dict[str, Judged]:
    """Of pins with different titles, whether theirs is found first among all: by the gain of its tokens, and by cosine."""
    titles = [one.choices[one.right] for one in examples]
    asked = [replace(one, choices=tuple(titles), right=place) for place, one in enumerate(examples)]
    alone = encode(ask_title(Shown(None)), titles, 0, judge.prompter)
    before = judge.ours.score([alone])[0][0]
    found = judge.ours.score([encode_example(one, judge.prompter) for one in asked])
    gains = np.array([int(np.argmax((sums - before) / tokens)) for sums, tokens in found])
    cosines = np.array([int(np.argmax(one.sums)) for one in judge.scores("cosine", asked)])
    right, about_Q = np.arange(len(asked)), np.array([one.about for one in asked])
    return {"model": Judged(gains == right, about_Q, "mean gain"), "cosine": Judged(cosines == right, about_Q, "cosine")}


# -- the whole -------------------------------------------------------------------------------------------------------------


def of_pins(examples: Sequence[Example], kind: str, alone: bool, pins: int) -> list[Example]:
    """The questions of a kind about the first so many pins."""
    own = [one for one in examples if one.kind == kind and one.alone == alone]
    some = set(list(dict.fromkeys(one.about for one in own))[:pins])
    return [one for one in own if one.about in some]


def measure(judge: Judge, test: Sequence[Example], validation: Sequence[Example], share: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"questions": {}, "retrieval": {}}
    for kind in KINDS:
        judged: dict[str, Judged] = {}
        for row in ROWS:
            alone = row.endswith("pictures")
            sides = [
                of_pins(examples, kind, alone, round(share * count))
                for examples, count in ((validation, VALIDATION_PINS), (test, PINS))
            ]
            sides = [shuffled(side) for side in sides] if row == "shuffled" else sides
            judged[row] = judge_row(judge, row, *sides)
            said = interval(judged[row])
            print(f"{kind}, {row}: {said['value']:.1%} of {len(judged[row].right_Q)} ({judged[row].rule})", file=sys.stderr)
        figures["questions"][kind] = {
            row: {"accuracy": interval(one), "questions": len(one.right_Q), "rule": one.rule} for row, one in judged.items()
        } | {"gain": {row: interval(judged[row], judged[none]) for row, none in NONE.items()}}
    for row, alone in (("pins", False), ("pictures", True)):
        titled = {one.choices[one.right].casefold(): one for one in test if one.kind == TITLE and one.alone == alone}
        found = retrieve(judge, list(titled.values())[: round(share * RETRIEVED)])
        figures["retrieval"][row] = {name: interval(one) | {"of": len(one.right_Q)} for name, one in found.items()}
    return figures


def judge_claim(figures: Mapping[str, Any]) -> list[Verdict]:
    verdicts = []
    for kind, rows in figures["questions"].items():
        for row, gain in rows["gain"].items():
            low, high = gain["low"], gain["high"]
            found = f"{gain['value']:+.0%} over no pin ({low:+.0%} to {high:+.0%})"
            verdicts.append(
                Verdict(f"{kind}, {row}: {found}, at least {GOAL:+.0%}, clear of zero", gain["value"] >= GOAL and low > 0)
            )
    return verdicts


def describe(figures: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    def cell(found: Mapping[str, float]) -> str:
        return f"{found['value']:.1%} ({found['low']:.0%}–{found['high']:.0%})"

    rows = [[row, *(cell(figures["questions"][kind][row]["accuracy"]) for kind in KINDS)] for row in ROWS]
    rows.append(["chance", *(f"{CHANCE[kind]:.0%}" for kind in KINDS)])
    retrieval = [
        [row, cell(found["model"]), cell(found["cosine"]), f"{1 / found['model']['of']:.0%}"]
        for row, found in figures["retrieval"].items()
    ]
    counts = ", ".join(f"{kind} {figures['questions'][kind]['pins']['questions']}" for kind in KINDS)
    lines = [
        machine_line(figures["machine"]),
        f"weights {figures['weights']}; questions: {counts}",
        "",
        format_table(rows, ["row", *KINDS]),
        "",
        format_table(retrieval, ["which of all titles", "model", "cosine", "chance"]),
        "",
        *(f"{'HOLDS ' if verdict.holds else 'MISSED'} {verdict.sentence}" for verdict in verdicts),
    ]
    return "\n".join(lines) + "\n"


def open_judge(lake: Lake, weights: Path, conversations: str | None) -> tuple[Judge, list[Example], list[Example]]:
    """The judge, and the examples of test and validation that the weights' own training left out. Raises what a reader may."""
    said = json.loads((weights / ADAPTER).read_text())
    version, name = json.loads((weights / PROJECTOR).read_text())["embedding_version"], smollm2.LANGUAGE_MODEL
    manifest = read_manifest(lake, conversations or str(said.get("conversations")))
    if manifest.embedding_version != version:
        raise ProjectorError(f"the weights are for {version}, the examples hold vectors of {manifest.embedding_version}")
    test, validation = (read_examples(lake, manifest, split, (*KINDS, TAGS)) for split in (TEST, VALIDATION))
    words: dict[int, tuple[str, str]] = {}
    for one in (*test, *validation):
        title, tags = words.get(one.about, ("", ""))
        if one.kind == TITLE:
            title = one.choices[one.right]
        if one.kind == TAGS:
            tags = one.choices[0]
        words[one.about] = title, tags
    projector = Projector.load(weights, version, name)
    base, tokenizer = smollm2.load()
    ours, _ = smollm2.load()
    add_adapter(ours, weights, language_model=name, embedding_version=version)
    backend = tokenizer.backend_tokenizer
    prompter = Prompter(backend, smollm2_vocabulary(backend), projector.config.tokens)
    placeholder = prompter.vocabulary.placeholder
    encoder = PinEncoder.load(open_encoder(lake, version).config)
    seeing, unseeing = Seeing(ours, projector, placeholder).eval(), Seeing(base, projector, placeholder).eval()
    return Judge(seeing, unseeing, encoder, prompter, words), test, validation


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", default=".pinlake", help="the lake that the weights were trained on")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FOLDER)
    parser.add_argument("--conversations", metavar="ID", help="default: the examples that the weights were trained on")
    parser.add_argument("--quick", action="store_true", help="a tenth of the questions")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        judge, test, validation = open_judge(Lake(args.home), args.weights, args.conversations)
    except (OSError, KeyError, ValueError, ConversationsError, ProjectorError, smollm2.LanguageModelError) as error:
        print(error, file=sys.stderr)
        return 2
    figures = measure(judge, test, validation, 0.1 if args.quick else 1.0)
    sha256 = json.loads((args.weights / PROJECTOR).read_text())["sha256"]
    figures |= {"machine": describe_machine(PACKAGES), "weights": sha256[:12]}
    verdicts = judge_claim(figures)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text)
    keep(figures, text, args.json, None if args.quick else "projector")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
