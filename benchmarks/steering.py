"""Does a user's taste help to find, by one word, what the user goes on to keep, and how far does that lead away from the word?

    python -m benchmarks.steering --home .pinlake       # on the demo's lake: a minute
    python -m benchmarks.steering --quick               # 5 pins a user instead of 20

**The claim.** Of pins that a user kept, more are among the 20 first of a search for one of their tags where the interests in
the user's other pins steer the search (assistant/steering.py), and the 20 are on average less than a hundredth less like the
word.

**The test.** Every user of a lake with ten pins or more. A fifth of the pins, drawn, is what the user goes on to keep;
interests are made of the others, as a night makes them, all saves of one age. A query is one tag of a held-out pin, drawn; pins
that the user has are left out. The weight was chosen on one half of the users, by a hash, as the largest of those tried that
kept the second part of the claim there; figures are of the other half. Intervals (95%) are of draws of whole users. The encoder
was trained on most of the demo's creators, and what a creator draws looks alike: users of a platform would see less of a gain.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assistant.steering import STEERING, steered
from assistant.turns import Interest
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from embedding.cli import format_table
from embedding.contracts import SAVES
from embedding.index.live import LiveRelease
from embedding.index.reader import Release
from embedding.index.recall import Floats, Ids
from embedding.index.searcher import Searcher
from embedding.tables.lake import Lake
from embedding.taste.interests import find_interests

WEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.8)
FOUND_IN, LOOKED_AT = 20, 100
LEAST_PINS, HELD_OUT, INTERESTS, A_USER = 10, 5, 8, 20
MOST_LOST = 0.01
NOW_MINUTES = 29_000_000


@dataclass(frozen=True)
class Asked:
    """A query: what the words find, and where the held-out pin is in it, -1 for nowhere."""

    user: int
    cosines_N: Floats  # noqa: N815 - a shape suffix
    vectors_ND: Floats  # noqa: N815
    interests: tuple[Interest, ...]
    wanted: int

    def judged(self, weight: float) -> tuple[float, float, float]:
        """Whether the pin is among the first, its reciprocal rank, and the first ones' mean cosine with the word."""
        order, _ = steered(self.cosines_N, self.vectors_ND, self.interests, weight)
        places = np.flatnonzero(order == self.wanted)
        rank = int(places[0]) + 1 if len(places) else 0
        return float(0 < rank <= FOUND_IN), 1 / rank if rank else 0.0, float(self.cosines_N[order[:FOUND_IN]].mean())


def saved_pins(lake: Lake, release: Release) -> dict[int, Ids]:
    """The pins of each user that the release holds, ascending."""
    rows = lake.snapshot(SAVES).to_pyarrow_table(columns=["user_id", "pin_id", "ds", "deleted"]).to_pylist()
    latest: dict[tuple[int, int], tuple[str, bool]] = {}
    for row in rows:
        pair = row["user_id"], row["pin_id"]
        latest[pair] = max(latest.get(pair, ("", False)), (row["ds"], row["deleted"]))
    held, pins = set(release.pin_ids().tolist()), defaultdict(list)
    for (user, pin), (_, deleted) in latest.items():
        if not deleted and pin in held:
            pins[user].append(pin)
    return {user: np.array(sorted(of), np.int64) for user, of in sorted(pins.items()) if len(of) >= LEAST_PINS}


def queries(lake: Lake, a_user: int) -> Iterator[Asked]:
    release = LiveRelease(lake).release
    words, rng = partial(Searcher(lake, LiveRelease(lake)).text_vector, release), np.random.default_rng(0)
    known: dict[str, Floats] = {}
    for user, pins in saved_pins(lake, release).items():
        drawn = rng.permutation(pins)[:500]
        later, before = np.split(drawn, [max(1, len(drawn) // HELD_OUT)])
        vectors_ND = release.vectors_of(before)
        found = find_interests(vectors_ND, np.full(len(before), NOW_MINUTES), NOW_MINUTES)[:INTERESTS]
        interests = tuple(Interest("", one.importance, vectors_ND[one.medoid]) for one in found)
        for pin, row in release.describe(later[:a_user].tolist()).items():
            if tags := [tag for tag in row["tags"] or () if tag and tag.strip()]:
                tag = tags[int(rng.integers(len(tags)))]
                known[tag] = known[tag] if tag in known else words(tag)
                yield query(release, known[tag], user, pin, before, interests)


def query(release: Release, word_D: Floats, user: int, pin: int, owned: Ids, interests: tuple[Interest, ...]) -> Asked:
    scores, ids = release.search(word_D[None, :], LOOKED_AT + len(owned))
    new = (ids[0] >= 0) & ~np.isin(ids[0], owned)
    cosines, pins = scores[0][new][:LOOKED_AT], ids[0][new][:LOOKED_AT]
    places = np.flatnonzero(pins == pin)
    return Asked(user, cosines, release.vectors_of(pins), interests, int(places[0]) if len(places) else -1)


def is_first_half(user: int) -> bool:
    return hashlib.sha256(str(user).encode()).digest()[0] % 2 == 0


def judge_weights(asked: Sequence[Asked], draws: int = 5_000) -> dict[str, Any]:
    """Of each weight: what it finds, and by how much more than 0 does, with the intervals of the differences."""
    names, user_of = np.unique([one.user for one in asked], return_inverse=True)
    chosen = np.random.default_rng(0).integers(0, len(names), (draws, len(names)))
    sizes = np.bincount(user_of)

    def interval(values_N: NDArray[np.float64]) -> list[float]:
        sums = np.bincount(user_of, values_N)
        low, high = np.percentile(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1), [2.5, 97.5])
        return [float(values_N.mean()), float(low), float(high)]

    judged = {weight: np.array([one.judged(weight) for one in asked]) for weight in (0.0, *WEIGHTS)}
    of_none = judged[0.0]
    return {
        "queries": len(asked),
        "users": len(names),
        "weights": {
            str(weight): {
                "found": float(of[:, 0].mean()),
                "gain": interval(of[:, 0] - of_none[:, 0]),
                "reciprocal_rank": float(of[:, 1].mean()),
                "cosine": float(of[:, 2].mean()),
                "lost": float(1 - of[:, 2].mean() / of_none[:, 2].mean()),
            }
            for weight, of in judged.items()
        },
    }


def best_weight(figures: dict[str, Any]) -> float:
    return max((weight for weight in WEIGHTS if figures["weights"][str(weight)]["lost"] < MOST_LOST), default=0.0)


def judge(figures: dict[str, Any]) -> list[Verdict]:
    ours, best = figures["reported"]["weights"][str(STEERING)], best_weight(figures["chosen_on"])
    found, low, high = ours["gain"]
    none = figures["reported"]["weights"]["0.0"]["found"]
    return [
        Verdict(f"{none + found:.1%} of held-out pins are among {FOUND_IN}, {found:+.1%} ({low:+.1%} to {high:+.1%})", low > 0),
        Verdict(f"{ours['lost']:.2%} less like the word, under {MOST_LOST:.0%}", ours["lost"] < MOST_LOST),
        Verdict(
            f"the shipped weight {STEERING:g} is the one that the other half of the users chooses ({best:g})", best == STEERING
        ),
    ]


def describe(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    lines = [machine_line(figures["machine"]), ""]
    for name in ("chosen_on", "reported"):
        half = figures[name]
        rows = [
            (
                weight,
                f"{of['found']:.1%}",
                "{:+.1%} ({:+.1%} to {:+.1%})".format(*of["gain"]),
                f"{of['reciprocal_rank']:.3f}",
                f"{of['cosine']:.3f}",
            )
            for weight, of in half["weights"].items()
        ]
        head = ("weight", f"among {FOUND_IN}", "more than unsteered", "reciprocal rank", "cosine with the word")
        lines += [f"{name}: {half['queries']} queries of {half['users']} users", format_table(rows, head), ""]
    return "\n".join([*lines, *(f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts), ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", default=os.environ.get("PINLAKE_HOME", ".pinlake"), help="a lake with a live release")
    parser.add_argument("--quick", action="store_true", help="fewer pins a user")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    asked = list(queries(Lake(args.home), 5 if args.quick else A_USER))
    figures: dict[str, Any] = {
        "machine": describe_machine(("numpy", "torch")),
        "chosen_on": judge_weights([one for one in asked if is_first_half(one.user)]),
        "reported": judge_weights([one for one in asked if not is_first_half(one.user)]),
    }
    verdicts = judge(figures)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text)
    keep(figures, text, args.json, None if args.quick else "steering")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
