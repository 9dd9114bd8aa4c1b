"""Do a person's saves, as the platform reads them, foresee what comes next better than what others would use?

    python -m benchmarks.taste            # both data sets, three orders each: some ten minutes
    python -m benchmarks.taste --quick    # one order

**The claim**, on each of two data sets: the recall@10 of held-out future items is at least 10% (relative) above the best of
popularity, the last item's neighbours, the mean of a user's vectors, ItemKNN and ALS (the last two by `implicit`).

**MovieLens-100K** (from the wheel of recbole 1.2.1), leave-last-out: of each of 943 users the last rating is asked for, among
all items that the user has not rated before; a rating is a save, whatever its value. Ours are the vectors that the graph alone
gives (embedding/taste/vectors.py). Nearly half of the last ratings share their second with the one before, so order among ties
is drawn.

**Openclipart's creators**: of everyone with five pictures or more the last fifth is asked for, among all 4,200 pictures that
the creator does not have, nor has nearly. Ours are the user's one vector (embedding/taste/sequence.py) and the interests
(embedding/taste/interests.py) together, in the space of the shipped encoder; mean and last item use the same encoder's vectors.
That both together are the claim was decided by the last fifth of what is known, in other orders. The packages say of few
pictures when they were drawn, so the order is drawn here. A picture has one creator, so methods that look at who else has an
item (ItemKNN, ALS, popularity) know nothing of one that is asked for; they are told. The encoder was trained on boards of some
of these creators: those of whom it was trained on nothing are told apart.

Beside them are told the user's vector on MovieLens, over vectors of the graph, and each of the two alone on creators.

Every method's settings are chosen on what is last of the known items, by recall@10; then it is trained on all that is known.
Figures are means over the draws of the order. Recall@k is the share of what is asked that is among the first k (of which no
more than k can be). Coverage is the share of items that anybody is shown among ten; diversity the mean of 1 - cosine within a
list, of columns of users (MovieLens) or pictures' vectors. Intervals are of a bootstrap over users, paired where methods are
compared.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import taste_clipart
from benchmarks import taste_methods as methods
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from benchmarks.taste_split import Method, Result, Split, contest, figures_of, ratio_of
from embedding.cli import format_table
from embedding.taste.foresight import LearningSetting
from embedding.taste.interests import Ids
from embedding.taste.sequence import UserSetting
from embedding.taste.vectors import GraphVectors, VectorSetting

log = logging.getLogger("pinlake")

PACKAGE = "recbole==1.2.1"
INTERACTIONS = "recbole/dataset_example/ml-100k/ml-100k.inter"
GAIN = 1.10
DRAWS = 3
POPULARITY, LAST, MEAN, KNN, ALS = "popularity", "last item", "mean vector", "ItemKNN (implicit)", "ALS (implicit)"
OTHERS = (POPULARITY, LAST, MEAN, KNN, ALS)
GRAPH, INTERESTS, LEARNED, BOTH = "graph vectors", "interests", "user vector", "interests and user vector"
GRAPH_VECTORS = VectorSetting(dim=128, window=20, decay=5.0, backwards=0.5)


@dataclass(frozen=True, eq=False)
class Contest:
    """A data set: splits of a draw (to choose settings on, to judge on) with the items' cosines, and what is compared."""

    name: str
    splits: Callable[[int], tuple[Split, Split, Any]]
    methods: list[Method]
    ours: str
    groups: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


def movielens(cache: Path) -> tuple[Ids, Ids, Ids]:
    """(users, items, seconds) of each rating, users and items from 0; fetched where they are missing."""
    file = cache / "recbole" / INTERACTIONS
    if not file.is_file():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", str(cache / "recbole"), PACKAGE], check=True)
    rows = np.loadtxt(file, np.int64, skiprows=1, usecols=(0, 1, 3), converters=float)
    return rows[:, 0] - 1, rows[:, 1] - 1, rows[:, 2]


def in_order(users: Ids, items: Ids, seconds: Ids, draw: int) -> list[tuple[Ids, Ids]]:
    """Each user's items and their minutes in the order of time; what happened in the same second in an order that is drawn."""
    order = np.lexsort((np.random.default_rng(draw).permutation(len(users)), seconds, users))
    ends = np.flatnonzero(np.diff(users[order])) + 1
    return list(zip(np.split(items[order], ends), np.split(seconds[order] // 60, ends), strict=True))


def leave_out(ordered: Sequence[tuple[Ids, Ids]], last: int, items: int) -> Split:
    """Asks for the `last` item from the end, and knows what came before."""
    known = [found[:-last] for found, _ in ordered]
    asked = [found[-last : len(found) - last + 1] for found, _ in ordered]
    return Split(known, asked, known, items, [minutes[:-last] for _, minutes in ordered])


def movielens_contest(cache: Path) -> Contest:
    users, items, seconds = movielens(cache / "movielens")
    count = int(items.max()) + 1

    def splits(draw: int) -> tuple[Split, Split, Any]:
        ordered = in_order(users, items, seconds, draw)
        validation, test = (leave_out(ordered, last, count) for last in (2, 1))
        return validation, test, methods.column_cosines(test.matrix)

    learning = LearningSetting(rounds=10, cuts=2, window=10, window_days=1e6, patience=3)
    learned = methods.LearnedUsers(
        lambda split: methods.vectors_of(split, GRAPH_VECTORS), UserSetting(GRAPH_VECTORS.dim, max_pins=64), learning
    )
    implicit = methods.Implicit(cache)
    compared = [
        Method(POPULARITY, methods.popularity, False),
        Method(LAST, methods.last_by_users, False),
        Method(MEAN, methods.mean_of_graph_vectors),
        Method(KNN, implicit.model("itemknn")),
        Method(ALS, implicit.model("als")),
        Method(GRAPH, methods.by_graph_vectors),
        Method(LEARNED, learned, False),
    ]
    return Contest("MovieLens-100K", splits, compared, GRAPH)


def clipart_contest(cache: Path) -> Contest:
    found = taste_clipart.creators(cache)
    vectors_ID = found.vectors_ID
    log.info(
        "%d pictures, %d creators, %d of them new to the encoder", len(vectors_ID), len(found.pictures), sum(found.unseen_U)
    )

    groups = {"new to the encoder": found.unseen_U}
    groups["with ten pictures or more"] = np.array([len(pictures) >= 10 for pictures in found.pictures])

    def splits(draw: int) -> tuple[Split, Split, Any]:
        test = taste_clipart.hold_out(taste_clipart.in_order(found, draw), vectors_ID)
        return taste_clipart.hold_out(test.histories, vectors_ID), test, vectors_ID @ vectors_ID.T

    learning = LearningSetting(rounds=10, cuts=2, window=10_000, window_days=1e6, learning_rate=3e-4, patience=3)
    learned = methods.LearnedUsers(
        lambda _: GraphVectors(vectors_ID, vectors_ID), UserSetting(vectors_ID.shape[1], max_pins=64), learning
    )
    implicit = methods.Implicit(cache)
    compared = [
        Method(POPULARITY, methods.popularity, False),
        Method(LAST, methods.last_by_vectors(vectors_ID), False),
        Method(MEAN, methods.mean_of_vectors(vectors_ID), False),
        Method(KNN, implicit.model("itemknn")),
        Method(ALS, implicit.model("als")),
        Method(INTERESTS, methods.by_interests(vectors_ID)),
        Method(LEARNED, learned, False),
        Method(BOTH, methods.fused(learned.scores, methods.by_interests(vectors_ID, ("nearest",)))),
    ]
    return Contest("openclipart's creators", splits, compared, BOTH, groups)


# -- judging ---------------------------------------------------------------------------------------------------------------


def only(result: Result, users: NDArray[np.bool_]) -> Result:
    """The same of some users alone."""
    recall_at_10, recall_at_50 = np.where(users, result.recall_at_10, np.nan), np.where(users, result.recall_at_50, np.nan)
    gains = np.where(users, result.ndcg_at_10, np.nan)
    return replace(result, recall_at_10=recall_at_10, recall_at_50=recall_at_50, ndcg_at_10=gains)


def judge(one: Contest, draws: int) -> tuple[dict[str, Any], list[Verdict]]:
    """Figures of every method, and of groups of users; the verdict."""
    results: dict[str, list[Result]] = {method.name: [] for method in one.methods}
    for draw in range(draws):
        log.info("%s, order %d", one.name, draw)
        for name, result in contest(one.methods, *one.splits(draw)).items():
            results[name].append(result)
    figures: dict[str, Any] = {"methods": {name: figures_of(found) for name, found in results.items()}}
    best = max(OTHERS, key=lambda name: figures["methods"][name]["recall_at_10"])
    figures["over_the_best_other"] = {
        name: ratio_of(found, results[best]) for name, found in results.items() if name not in OTHERS
    }
    ratio, low, high = figures["over_the_best_other"][one.ours]
    said = f"{one.name}: {ratio:.2f} ({low:.2f} to {high:.2f}) of the recall@10 of {best}, the best other; goal {GAIN:.2f}"
    told = []
    for group, users in one.groups.items():
        own, other = ([only(result, users) for result in results[name]] for name in (one.ours, best))
        of_group = ratio_of(own, other)
        figures[group] = {"users": int(users.sum()), "ratio": of_group, one.ours: figures_of(own), best: figures_of(other)}
        told.append("{:.2f} ({:.2f} to {:.2f})".format(*of_group) + f" of {users.sum()} users {group}")
    return figures, [Verdict("; ".join([f"{one.ours}, {said}", *told]), ratio >= GAIN)]


def table(name: str, figures: Mapping[str, Any]) -> str:
    head = ("method", "recall@10", "95% interval", "recall@50", "nDCG@10", "95% interval", "coverage", "diversity", "setting")
    lines = [
        (
            method,
            f"{f['recall_at_10']:.3f}",
            "{:.3f} to {:.3f}".format(*f["recall_at_10_interval"]),
            f"{f['recall_at_50']:.3f}",
            f"{f['ndcg_at_10']:.3f}",
            "{:.3f} to {:.3f}".format(*f["ndcg_at_10_interval"]),
            f"{f['coverage']:.3f}",
            f"{f['diversity']:.3f}",
            f["settings"][0],
        )
        for method, f in figures["methods"].items()
    ]
    users = next(iter(figures["methods"].values()))["users"]
    return f"{name}: {users} users; settings are those of the first order\n\n{format_table(lines, head)}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one order")
    parser.add_argument("--only", choices=("movielens", "clipart"), help="one data set; nothing is kept")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    made = {"movielens": movielens_contest, "clipart": clipart_contest}
    figures: dict[str, Any] = {"machine": describe_machine(("numpy", "scipy", "torch")), "quick": args.quick}
    verdicts: list[Verdict] = []
    tables: list[str] = []
    for name in [args.only] if args.only else list(made):
        one = made[name](args.cache)
        figures[name], found = judge(one, 1 if args.quick else DRAWS)
        verdicts += found
        tables.append(table(one.name, figures[name]))
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    said = [f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts]
    text = "\n\n".join([machine_line(figures["machine"]), *tables, "\n".join(said)]) + "\n"
    print(text)
    keep(figures, text, args.json, None if args.quick or args.only else "taste")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
