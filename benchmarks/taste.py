"""Do vectors learned from the graph alone foresee what people take next better than what others would use?

    python -m benchmarks.taste            # MovieLens-100K, three orders of its tied ratings: a few minutes
    python -m benchmarks.taste --quick    # one order

**The claim.** On held-out future items the recall@10 of `embedding/taste/vectors.py` is at least 10% (relative) above the
best of popularity, the last item's neighbours, the mean of a user's vectors, ItemKNN and ALS (the last two by
`implicit`).

**The test.** MovieLens-100K (from the wheel of recbole 1.2.1), leave-last-out: of each of 943 users the last rating is
asked for, among all items that the user has not rated before; a rating is a save, whatever its value. Nearly half of the
last ratings share their second with the one before, so that order among ties is drawn, three times, and figures are means
over the draws. Every method's settings are chosen on the item before the last, by recall@10, with that item and the last
left out of training; then it is trained with all but the last. Others' later ratings are known to every method alike, as
is usual for this split. Coverage is the share of items that anybody is shown among ten; diversity the mean of 1 - cosine
of the items' columns of users. Intervals are of a bootstrap over users, paired where methods are compared.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, save_npz

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.environments import peer_environment
from benchmarks.results_of import Verdict, keep
from benchmarks.spark import run
from embedding.cli import format_table
from embedding.taste.interests import Floats, Ids
from embedding.taste.vectors import VectorSetting, graph_vectors, next_scores

log = logging.getLogger("pinlake")

PACKAGE = "recbole==1.2.1"
INTERACTIONS = "recbole/dataset_example/ml-100k/ml-100k.inter"
PROGRAM = Path(__file__).parent / "peers" / "taste_program.py"
GAIN = 1.10
DRAWS = 3
OURS = "graph vectors"
WINDOWS = ((10, 3.0, 0.2), (20, 5.0, 0.5), (50, 10.0, 0.5))
DIMS, DECAYS, POPULARITIES = (64, 128), (1.0, 3.0, 10.0), (0.0, 0.3, 1.0)


@dataclass(frozen=True)
class Split:
    """Of each user what is known, in the order of time, and the item that is asked for."""

    histories: list[Ids]
    asked: Ids
    items: int

    @property
    def matrix(self) -> Floats:
        """1 where a user has an item (U, I)."""
        found = np.zeros((len(self.histories), self.items), np.float32)
        for user, history in enumerate(self.histories):
            found[user, history] = 1
        return found


@dataclass(frozen=True)
class Method:
    """Settings by name, each with the scores (U, I) that it gives."""

    name: str
    settings: Callable[[Split], Iterator[tuple[str, Floats]]]


@dataclass(frozen=True)
class Result:
    """What a method found on one draw: `ranks` (U,) of the items asked for, from 0."""

    setting: str
    ranks: Ids
    coverage: float
    diversity: float


def movielens(cache: Path) -> tuple[Ids, Ids, Ids]:
    """(users, items, seconds) of each rating, users and items from 0; fetched where they are missing."""
    file = cache / "recbole" / INTERACTIONS
    if not file.is_file():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", str(cache / "recbole"), PACKAGE], check=True)
    rows = np.loadtxt(file, np.int64, skiprows=1, usecols=(0, 1, 3), converters=float)
    return rows[:, 0] - 1, rows[:, 1] - 1, rows[:, 2]


def in_order(users: Ids, items: Ids, seconds: Ids, draw: int) -> list[Ids]:
    """Each user's items in the order of time; what happened in the same second in an order that is drawn."""
    order = np.lexsort((np.random.default_rng(draw).permutation(len(users)), seconds, users))
    return np.split(items[order], np.flatnonzero(np.diff(users[order])) + 1)


def leave_out(ordered: Sequence[Ids], last: int, items: int) -> Split:
    """Asks for the `last` item from the end, and knows what came before."""
    return Split([items_[:-last] for items_ in ordered], np.array([items_[-last] for items_ in ordered]), items)


# -- methods ---------------------------------------------------------------------------------------------------------------


def popularity(split: Split) -> Iterator[tuple[str, Floats]]:
    yield "", np.tile(split.matrix.sum(axis=0), (len(split.histories), 1))


def last_item(split: Split) -> Iterator[tuple[str, Floats]]:
    cosines = column_cosines(split.matrix)
    yield "cosine of users", cosines[[history[-1] for history in split.histories]]


def column_cosines(matrix_UI: Floats) -> Floats:
    """Cosines of items by who has them (I, I)."""
    unit = matrix_UI / np.maximum(1e-9, np.linalg.norm(matrix_UI, axis=0))
    found: Floats = unit.T @ unit
    return found


def mean_vector(split: Split) -> Iterator[tuple[str, Floats]]:
    """Of the same vectors as ours, all of a history alike."""
    for (window, decay, backwards), dim in itertools.product(WINDOWS, DIMS):
        vectors = graph_vectors(split.histories, split.items, VectorSetting(dim, window, decay, backwards))
        scores = np.stack([next_scores(history, vectors, 1e9) for history in split.histories])
        yield f"window {window}, {dim} dimensions", scores


def ours(split: Split) -> Iterator[tuple[str, Floats]]:
    seen = np.log1p(split.matrix.sum(axis=0))[None]
    for (window, decay, backwards), dim in itertools.product(WINDOWS, DIMS):
        vectors = graph_vectors(split.histories, split.items, VectorSetting(dim, window, decay, backwards))
        for forget in DECAYS:
            scores = np.stack([next_scores(history, vectors, forget) for history in split.histories])
            for weight in POPULARITIES:
                said = f"window {window}, {dim} dimensions, decay {forget:g}, popularity {weight:g}"
                yield said, scores + weight * float(scores.std()) * seen


def implicit_model(name: str, cache: Path) -> Callable[[Split], Iterator[tuple[str, Floats]]]:
    """A model of the library `implicit`, in an environment of its own."""

    def settings(split: Split) -> Iterator[tuple[str, Floats]]:
        with tempfile.TemporaryDirectory() as folder:
            save_npz(Path(folder) / "train.npz", csr_matrix(split.matrix))
            python = peer_environment("implicit", cache / "peers")
            run([str(python), str(PROGRAM), "--data", folder, "--out", folder], environment={"PYTHONPATH": ""})
            said = json.loads((Path(folder) / "settings.json").read_text())[name]
            yield from zip(said, np.load(Path(folder) / f"scores-{name}.npy"), strict=True)

    return settings


# -- judging ---------------------------------------------------------------------------------------------------------------


def ranks_of(split: Split, scores_UI: Floats) -> Ids:
    """The place of each item asked for among what the user does not have, from 0; of equal ones the middle."""
    scores = scores_UI.astype(np.float64)
    for user, history in enumerate(split.histories):
        scores[user, history] = -np.inf
    own = scores[np.arange(len(scores)), split.asked][:, None]
    found: Ids = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) // 2
    return found


def judged(split: Split, name: str, scores_UI: Floats, cosines_II: Floats) -> Result:
    scores = scores_UI.copy()
    for user, history in enumerate(split.histories):
        scores[user, history] = -np.inf
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    pairs = cosines_II[top[:, :, None], top[:, None, :]]
    alike = (pairs.sum(axis=(1, 2)) - 10) / 90
    return Result(name, ranks_of(split, scores_UI), len(np.unique(top)) / split.items, float(1 - alike.mean()))


def best_setting(method: Method, validation: Split) -> str:
    """By recall@10, then @50, on the items before the last."""
    found = [(ranks_of(validation, scores), name) for name, scores in method.settings(validation)]
    return max(found, key=lambda pair: ((pair[0] < 10).mean(), (pair[0] < 50).mean()))[1]


def compare(methods: Sequence[Method], cache: Path, draws: int) -> dict[str, list[Result]]:
    users, items, seconds = movielens(cache / "movielens")
    results: dict[str, list[Result]] = {method.name: [] for method in methods}
    for draw in range(draws):
        ordered = in_order(users, items, seconds, draw)
        validation, test = (leave_out(ordered, last, int(items.max()) + 1) for last in (2, 1))
        cosines = column_cosines(test.matrix)
        for method in methods:
            chosen = best_setting(method, validation)
            scores = next(scores for name, scores in method.settings(test) if name == chosen)
            results[method.name].append(judged(test, chosen, scores, cosines))
            log.info(
                "draw %d, %s (%s): recall@10 %.4f", draw, method.name, chosen, (results[method.name][-1].ranks < 10).mean()
            )
    return results


def figures_of(results: Sequence[Result]) -> dict[str, Any]:
    """Means over the draws; the interval of recall@10 by a bootstrap over users."""
    hits = np.mean([result.ranks < 10 for result in results], axis=0)
    gains = np.mean([np.where(r.ranks < 10, 1 / np.log2(r.ranks + 2), 0.0) for r in results], axis=0)
    samples = hits[_resampled(len(hits))].mean(axis=1)
    return {
        "recall_at_10": float(hits.mean()),
        "interval": [float(np.percentile(samples, share)) for share in (2.5, 97.5)],
        "recall_at_50": float(np.mean([result.ranks < 50 for result in results])),
        "ndcg_at_10": float(gains.mean()),
        "coverage": float(np.mean([result.coverage for result in results])),
        "diversity": float(np.mean([result.diversity for result in results])),
        "settings": [result.setting for result in results],
    }


def _resampled(users: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, users, (2_000, users))


def ratio_of(one: Sequence[Result], other: Sequence[Result]) -> tuple[float, float, float]:
    """Recall@10 of one over the other's, with the 95% interval of a paired bootstrap over users."""
    a, b = (np.mean([result.ranks < 10 for result in results], axis=0) for results in (one, other))
    chosen = _resampled(len(a))
    ratios = a[chosen].mean(axis=1) / np.maximum(1e-9, b[chosen].mean(axis=1))
    return float(a.mean() / b.mean()), float(np.percentile(ratios, 2.5)), float(np.percentile(ratios, 97.5))


def describe(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    head = ("method", "recall@10", "95% interval", "recall@50", "nDCG@10", "coverage", "diversity", "setting of the first draw")
    lines = [
        (
            name,
            f"{f['recall_at_10']:.3f}",
            f"{f['interval'][0]:.3f} to {f['interval'][1]:.3f}",
            *(f"{f[key]:.3f}" for key in ("recall_at_50", "ndcg_at_10", "coverage", "diversity")),
            f["settings"][0],
        )
        for name, f in figures["methods"].items()
    ]
    said = [f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts]
    return "\n".join([machine_line(figures["machine"]), "", format_table(lines, head), "", *said, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one order of the tied ratings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    methods = [
        Method("popularity", popularity),
        Method("last item", last_item),
        Method("mean vector", mean_vector),
        Method("ItemKNN (implicit)", implicit_model("itemknn", args.cache)),
        Method("ALS (implicit)", implicit_model("als", args.cache)),
        Method(OURS, ours),
    ]
    results = compare(methods, args.cache, 1 if args.quick else DRAWS)
    figures: dict[str, Any] = {"machine": describe_machine(("numpy", "scipy"))}
    figures["methods"] = {name: figures_of(found) for name, found in results.items()}
    others = {name: found for name, found in figures["methods"].items() if name != OURS}
    best = max(others, key=lambda name: others[name]["recall_at_10"])
    ratio, low, high = ratio_of(results[OURS], results[best])
    said = f"MovieLens-100K: {ratio:.2f} ({low:.2f} to {high:.2f}) of the recall@10 of {best}, the best other; goal {GAIN:.2f}"
    verdicts = [Verdict(said, ratio >= GAIN)]
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text)
    keep(figures, text, args.json, None if args.quick else "taste")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
