"""Does the router choose as a person would: better than always quick, and than its rules alone?

    python -m benchmarks.router            # seconds
    python -m benchmarks.router --quick    # the same with fewer draws of the intervals

**The claim.** On requests whose kinds it never saw, rules and the learned model together choose the mode (quick or thinking)
more often as the label says than the more frequent mode always would, and than the rules alone, which answer quickly where they
are silent.

**The test.** The test part of assistant/data/requests.jsonl: families of requests that have no variant in the training part.
All were written for this file and labelled by who wrote them, and so were the rules; the figures say how well one judgement is
learned from one hand's words, and nothing about what users of a platform would write. Intervals (95%) are of draws of whole
families; a difference counts where its interval leaves out 0. The tool is judged beside, against `search_text` always, each
request in every situation in which it may be made: signed in or not, at the beginning or after another search.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assistant.router import MODES, TOOLS, Model, Router, by_rule
from assistant.train_router import Labelled, read_requests, situations
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from embedding.cli import format_table

Hits = NDArray[np.float64]
"""A request each: 1 where it is right, 0 where it is not; between them where it is right in some of its situations."""
LOW, HIGH = 2.5, 97.5


def drawn(hits_N: Hits, families: Sequence[str], draws: int) -> NDArray[np.float64]:
    """Accuracies (draws,) of requests drawn by whole families, the same draws for the same families."""
    names, family_of = np.unique(families, return_inverse=True)
    right, size = np.bincount(family_of, hits_N, len(names)), np.bincount(family_of, minlength=len(names))
    chosen = np.random.default_rng(0).integers(0, len(names), (draws, len(names)))
    accuracies: NDArray[np.float64] = right[chosen].sum(axis=1) / size[chosen].sum(axis=1)
    return accuracies


def accuracy(hits_N: Hits, families: Sequence[str], draws: int) -> dict[str, float]:
    low, high = np.percentile(drawn(hits_N, families, draws), [LOW, HIGH])
    return {"accuracy": float(hits_N.mean()), "low": float(low), "high": float(high)}


def gain(ours_N: Hits, theirs_N: Hits, families: Sequence[str], draws: int) -> dict[str, float]:
    """By how much ours is more often right, with the interval of the difference."""
    low, high = np.percentile(drawn(ours_N, families, draws) - drawn(theirs_N, families, draws), [LOW, HIGH])
    return {"gain": float(ours_N.mean() - theirs_N.mean()), "low": float(low), "high": float(high)}


def confusion(labels: Sequence[str], said: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """A row a label, a column an answer."""
    return [[sum(a == row and b == column for a, b in zip(labels, said, strict=True)) for column in names] for row in names]


def judge_modes(rows: Sequence[Labelled], model: Model, draws: int) -> dict[str, Any]:
    labels, families = [row.mode for row in rows], [row.family for row in rows]
    ours, bare = Router(model), Router()
    said: dict[str, list[str]] = {
        "always quick": ["quick"] * len(rows),
        "rules alone": [bare.route(row.request).mode for row in rows],
        "model alone": [MODES[model.thinking(row.request) >= 0.5] for row in rows],
        "rules and model": [ours.route(row.request).mode for row in rows],
    }
    hits = {name: np.array([a == b for a, b in zip(labels, modes, strict=True)], float) for name, modes in said.items()}
    spoken = np.array([by_rule(row.request) is not None for row in rows])
    router = hits["rules and model"]
    everywhere = in_situations(rows, lambda row: ours.route(row.request).mode == row.mode)
    return {
        "requests": len(rows),
        "families": len(set(families)),
        "accuracy": {name: accuracy(hit, families, draws) for name, hit in hits.items()},
        "everywhere": accuracy(everywhere, families, draws),
        "gain": {name: gain(router, hits[name], families, draws) for name in ("always quick", "rules alone")},
        "confusion": confusion(labels, said["rules and model"], MODES),
        "rules": {"speak": float(spoken.mean()), "right": float(router[spoken].mean()), "else": float(router[~spoken].mean())},
        "wrong": [f"{row.request.text!r} is {row.mode}" for row, hit in zip(rows, router, strict=True) if hit < 1],
    }


def judge_tools(rows: Sequence[Labelled], draws: int) -> dict[str, Any]:
    asking, router = [row for row in rows if row.tool in TOOLS], Router.shipped()
    hits = {
        "always search_text": in_situations(asking, lambda row: row.tool == "search_text"),
        "rules alone": in_situations(asking, lambda row: Router().tool(row.request).tool == row.tool),
        "rules and model": in_situations(asking, lambda row: router.tool(row.request).tool == row.tool),
    }
    families, every = [row.family for row in asking], [other for row in asking for other in situations(row)]
    return {
        "requests": len(asking),
        "accuracy": {name: accuracy(hit, families, draws) for name, hit in hits.items()},
        "confusion": confusion([row.tool for row in every], [router.tool(row.request).tool for row in every], TOOLS),
    }


def in_situations(rows: Sequence[Labelled], is_right: Callable[[Labelled], bool]) -> Hits:
    """Of each request, the share of its situations in which it is right."""
    return np.array([np.mean([is_right(other) for other in situations(row)]) for row in rows])


def routing_ms(rows: Sequence[Labelled], router: Router) -> float:
    """Median milliseconds of one request."""
    times = []
    for row in rows:
        started = time.perf_counter()
        router.route(row.request)
        times.append(1_000 * (time.perf_counter() - started))
    return float(np.median(times))


def judge(modes: dict[str, Any]) -> list[Verdict]:
    ours = modes["accuracy"]["rules and model"]
    said = f"{ours['accuracy']:.1%} ({ours['low']:.1%} to {ours['high']:.1%}) of {modes['requests']} modes are as labelled"
    return [
        Verdict(f"{said}: {found['gain']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%}) over {name}", found["low"] > 0)
        for name, found in modes["gain"].items()
    ]


def describe(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    lines = [machine_line(figures["machine"]), ""]
    for what, names in (("modes", MODES), ("tools", TOOLS)):
        found = figures[what]
        shares = [
            (name, f"{one['accuracy']:.1%}", f"{one['low']:.1%} to {one['high']:.1%}")
            for name, one in found["accuracy"].items()
        ]
        lines += [f"{what} of {found['requests']} held-out requests", format_table(shares, ("by", "as labelled", "95%")), ""]
        table = [(label, *map(str, row)) for label, row in zip(names, found["confusion"], strict=True)]
        lines += [format_table(table, ("label \\ router", *names)), ""]
    rules = figures["modes"]["rules"]
    lines.append(
        f"rules speak of {rules['speak']:.0%} of the requests, and are right in {rules['right']:.1%} of these; where they are "
        f"silent {rules['else']:.1%} are right. In every situation (signed in or not, at the beginning or later) "
        f"{figures['modes']['everywhere']['accuracy']:.1%} are. A request takes {figures['routing_ms']:.2f} ms."
    )
    return "\n".join([*lines, "", *(f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts), ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    rows, draws = [row for row in read_requests() if row.split == "test"], 2_000 if args.quick else 20_000
    modes = judge_modes(rows, Model.load(), draws)
    figures: dict[str, Any] = {
        "machine": describe_machine(("numpy", "torch")),
        "modes": modes,
        "tools": judge_tools(rows, draws),
        "routing_ms": routing_ms(rows, Router.shipped()),
    }
    verdicts = judge(modes)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text)
    keep(figures, text, args.json, None if args.quick else "router")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
