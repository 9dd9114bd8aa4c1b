"""Do the recipes that pinlake chooses beat the libraries that people would use instead?

    python -m benchmarks.ann            # about 40 minutes; the vectors take half an hour, once (benchmarks/texts.py)
    python -m benchmarks.ann --quick    # 50 thousand vectors

**The claim.** On the same vectors and the same two cores, at recall@10 of 0.90, 0.95 and 0.99: the recipe that pinlake chooses
under a budget of 160 bytes a vector answers more queries a second than every peer that fits in it, and the one that it chooses
without a budget at least as many as the best peer.

**The test.** A million vectors of real short texts (256 dimensions, benchmarks/texts.py), a thousand of which are the
queries, each asked for its ten nearest but itself, in one batch, on one thread and on two. Recall is against exact search.
pinlake chooses as a build does, with other queries: by trials on 50,000 of them at each goal, and of the graphs and the
best lists on all, nothing told by hand; the finished index is then swept as a build sweeps it, but that here the recall
itself counts, as it does for the peers, and not its interval's lower end; of the settings that reach a recall the fastest
counts. The same goes for the peers, each in an environment of its own, built as its documentation has it: autofaiss (with
the budget, and without), hnswlib, usearch, ScaNN, and exact search beside them. Bytes a vector are those of the stored
file; a release's file of pin ids, 8 more, is left out, as no peer keeps one. What autofaiss makes for the budget counts as
fitting, though it be a little larger. Queries a second are medians of repeated batches. Where nobody reaches a recall,
there is nothing to compare; a peer that fails fails the claim.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.environments import ANN_PEERS, peer_environment
from benchmarks.results_of import Verdict, keep
from benchmarks.spark import ProgramFailedError, run
from benchmarks.texts import text_vectors
from embedding.cli import format_table
from embedding.index.factory import deserialize, family_of, serialize, train_index
from embedding.index.recall import Floats, Ids, Truth, exact_top_k
from embedding.index.tuning import (
    ID_BYTES,
    TOP,
    OneIndex,
    SampleSweep,
    Wanted,
    candidates,
    choose,
    finalists,
    omp_threads,
    sweep,
    sweep_sample,
    training_rows,
)

log = logging.getLogger("pinlake")

RECALLS = (0.90, 0.95, 0.99)
THREADS = (1, 2)
BUDGET = 160.0
"""Bytes a vector of the stored index, the numbers of its rows included."""
QUERIES = 1_000
TRIAL_ROWS, TRIAL_QUERIES = 50_000, 500
PROGRAM = Path(__file__).parent / "peers" / "ann_program.py"
PACKAGES = ("faiss-cpu", "numpy")


@dataclass(frozen=True)
class Point:
    """One setting of one index: recall@10 and queries a second on so many threads."""

    setting: str
    threads: int
    recall_at_10: float
    qps: float


@dataclass(frozen=True)
class Row:
    """One index: pinlake's for a goal and a budget, or a peer's."""

    name: str
    factory: str
    build_s: float
    bytes_a_vector: float
    points: list[Point]
    goal: float | None = None
    budget: float | None = None
    why: str = ""

    def best(self, recall: float, threads: int) -> Point | None:
        """The fastest that reaches the recall."""
        reached = [p for p in self.points if p.recall_at_10 >= recall and p.threads == threads]
        return max(reached, key=lambda point: point.qps, default=None)


@dataclass(frozen=True)
class Data:
    """Vectors (N, D), queries (Q, D) with their numbers among the vectors, and the truth."""

    vectors: Floats
    queries: Floats
    query_ids: Ids
    truth: Truth


def make_data(cache: Path, rows: int) -> Data:
    vectors_ND = np.ascontiguousarray(text_vectors(cache, rows))
    query_ids = np.sort(np.random.default_rng(1).choice(rows, QUERIES, replace=False)).astype(np.int64)
    queries_QD = vectors_ND[query_ids]
    near = exact_top_k(queries_QD, [(vectors_ND, np.arange(rows, dtype=np.int64))], 100)
    return Data(vectors_ND, queries_QD, query_ids, Truth.of(*near, query_ids, TOP))


@dataclass(frozen=True)
class Asked:
    """What recipes are tried with: vectors (N, D) and their numbers, queries (Q, D), and the truth."""

    vectors: Floats
    ids: Ids
    queries: Floats
    truth: Truth


def asked_of(data: Data, numbers: Ids, asked: Ids) -> Asked:
    """So many of the vectors, and queries that are vectors too. No test's query is asked."""
    vectors_ND, queries_QD = data.vectors[numbers], data.vectors[asked]
    near = exact_top_k(queries_QD, [(vectors_ND, numbers)], 100)
    return Asked(vectors_ND, numbers, queries_QD, Truth.of(*near, asked, TOP))


class Recipes:
    """What a build would choose, by budget and goal; and what it tried on all rows."""

    def __init__(self, data: Data) -> None:
        rows, self.dim = data.vectors.shape
        self.rows, self.data = rows, data
        others = np.setdiff1d(np.arange(rows, dtype=np.int64), data.query_ids)
        chosen = np.random.default_rng(2).permutation(others)
        asked, few = chosen[:TRIAL_QUERIES], chosen[TRIAL_QUERIES:][:TRIAL_ROWS]
        self.few = asked_of(data, few, asked)
        self.all = asked_of(data, np.arange(rows, dtype=np.int64), asked)
        self.built: dict[str, tuple[faiss.Index, float, SampleSweep]] = {}

    def factories(self, rows: int, budget: float | None) -> dict[str, str]:
        """What is plausible, by family."""
        return {family_of(name): name for name in candidates(rows, self.dim, _with_id(budget))}

    def choices(self) -> dict[tuple[float | None, float], tuple[str, str]]:
        """By budget and goal: the factory for all rows, and why."""
        names = dict.fromkeys(n for budget in (None, BUDGET) for n in self.factories(len(self.few.ids), budget).values())
        plausible = {family for budget in (None, BUDGET) for family in self.factories(self.rows, budget)}
        sweeps = []
        for name in (name for name in names if family_of(name) in plausible):
            wanted = Wanted(RECALLS[-1], THREADS[-1])
            few = self.few
            sweeps.append(sweep_sample(name, few.vectors, few.ids, few.queries, few.truth, wanted, goals=RECALLS))
            log.info("%s: %s", name, sweeps[-1].points)
        found = {}
        for budget in (BUDGET, None):
            for goal in RECALLS:
                found[budget, goal] = self.choice(sweeps, budget, goal)
                log.info("%s", found[budget, goal])
        return found

    def choice(self, sweeps: Sequence[SampleSweep], budget: float | None, goal: float) -> tuple[str, str]:
        """As `jobs/index_sample.py` chooses."""
        wanted, factories = Wanted(goal, THREADS[-1], _with_id(budget)), self.factories(self.rows, budget)
        trials = [s.trial(wanted) for s in sweeps if family_of(s.factory) in factories]
        chosen = choose(trials, self.rows, wanted, "benchmark")
        if again := finalists(trials, self.rows):
            finals = [self.tried_on_all(factories[family_of(name)]).trial(wanted) for name in again]
            chosen = choose(finals, self.rows, wanted, "benchmark")
        return factories[family_of(chosen.factory)], chosen.why

    def tried_on_all(self, factory: str) -> SampleSweep:
        """A finalist's sweep; its index is kept."""
        if factory not in self.built:
            index, build_s = build_index(self.data, factory)
            size = len(serialize(index)) / self.rows
            with omp_threads(THREADS[-1]):
                one, wanted = OneIndex(index, self.all.ids), Wanted(RECALLS[-1], THREADS[-1])
                points = sweep(one, factory, self.all.queries, self.all.truth, wanted, latencies=False, goals=RECALLS)
            self.built[factory] = index, build_s, SampleSweep(factory, self.rows, size + ID_BYTES, build_s, points)
            log.info("%s: %s", factory, points)
        return self.built[factory][2]

    def index(self, factory: str) -> tuple[faiss.Index, float]:
        """An index of all vectors, and the seconds of its build."""
        return self.built[factory][:2] if factory in self.built else build_index(self.data, factory)


def _with_id(budget: float | None) -> float | None:
    """A budget as a build counts it: with the pin ids."""
    return None if budget is None else budget + ID_BYTES


def build_index(data: Data, factory: str) -> tuple[faiss.Index, float]:
    """An index of all vectors, as a shard holds it, and the seconds that it took."""
    rows, dim = data.vectors.shape
    started = time.perf_counter()
    with omp_threads(THREADS[-1]):
        order = np.random.default_rng(3).permutation(rows)[: training_rows(factory)]
        index = deserialize(train_index(factory, dim, data.vectors[order]))
        for start in range(0, rows, 50_000):
            index.add(data.vectors[start : start + 50_000])
    log.info("%s: built in %.0f s", factory, time.perf_counter() - started)
    return index, time.perf_counter() - started


def pinlake_rows(data: Data) -> list[Row]:
    """An index a recipe that was chosen for any goal and budget."""
    recipes = Recipes(data)
    started = time.perf_counter()
    choices = recipes.choices()
    log.info("recipes chosen in %.0f s", time.perf_counter() - started)
    measured: dict[str, Row] = {}
    rows = []
    for (budget, goal), (factory, why) in choices.items():
        if factory not in measured:
            measured[factory] = measured_row(data, factory, *recipes.index(factory))
        rows.append(replace(measured[factory], name="pinlake", goal=goal, budget=budget, why=why))
    return rows


def measured_row(data: Data, factory: str, index: faiss.Index, build_s: float) -> Row:
    """An index's sweep on each number of threads."""
    points, ids = [], np.arange(len(data.vectors), dtype=np.int64)
    for threads in THREADS:
        wanted = Wanted(RECALLS[-1], threads)
        one = OneIndex(index, ids)
        for p in sweep(one, factory, data.queries, data.truth, wanted, latencies=False, goals=RECALLS, certain=False):
            points.append(Point(str(p.setting), threads, p.recall_at_10, p.qps))
    return Row("pinlake", factory, build_s, len(serialize(index)) / len(data.vectors), points)


def exact_row(data: Data) -> Row:
    """Exhaustive search by FAISS, the ceiling of recall and the floor of speed."""
    index = faiss.IndexFlatIP(data.vectors.shape[1])
    started = time.perf_counter()
    index.add(data.vectors)
    build_s = time.perf_counter() - started
    points = []
    for threads in THREADS:
        with omp_threads(threads):
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                index.search(data.queries, TOP + 1)
                seconds.append(time.perf_counter() - started)
        points.append(Point("all rows", threads, 1.0, len(data.queries) / statistics.median(seconds)))
    return Row("exact search", "IndexFlatIP", build_s, 4.0 * index.d, points)


def peer_row(data: Data, folder: Path, library: str, cache: Path, budget: float | None) -> Row:
    """A peer, in an environment and a process of its own. Raises ProgramFailedError."""
    python, out = peer_environment(library, cache / "peers"), folder / f"{library}-{budget}"
    options = ["--budget", str(budget)] if budget else []
    command = [str(python), str(PROGRAM), "--library", library, "--data", str(folder), "--out", str(out)]
    run([*command, "--threads", str(THREADS[-1]), *options], environment={"PYTHONPATH": ""})
    said: dict[str, Any] = json.loads((out / "points.json").read_text())
    points = []
    for number, point in enumerate(said["points"]):
        index, _, setting = point["setting"].partition("; ")
        recall = data.truth.recall(np.load(out / f"found-{number}.npy"))
        points.append(Point(setting, point["threads"], round(recall, 4), round(point["qps"], 1)))
    log.info("%s: %s", library, points)
    return Row(library, index, said["build_s"], said["bytes_a_vector"], points, budget=budget)


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """One verdict a budget, recall and number of threads at which anybody answers."""
    verdicts = []
    peers = [row for row in rows if row.name != "pinlake"]
    for row in (row for row in rows if row.name == "pinlake"):
        assert row.goal is not None
        # What was built for the budget counts, though it be a little larger.
        fitting = [p for p in peers if row.budget is None or p.budget == row.budget or p.bytes_a_vector <= row.budget]
        for threads in THREADS:
            ours = row.best(row.goal, threads)
            answers = [(peer.name, p.qps) for peer in fitting if (p := peer.best(row.goal, threads))]
            name, theirs = max(answers, key=lambda answer: answer[1], default=("", 0.0))
            where = f"recall@10 {row.goal:.2f}, {threads} thread{'s' * (threads > 1)}, "
            where += f"{row.budget:g} bytes a vector" if row.budget else "no budget"
            if ours is None and not answers:
                verdicts.append(Verdict(f"{where}: nobody reaches it", True))
            elif ours is None:
                verdicts.append(Verdict(f"{where}: {name} answers {theirs:,.0f}/s, pinlake does not reach it", False))
            elif not answers:
                verdicts.append(Verdict(f"{where}: {ours.qps:,.0f}/s, and no peer reaches it", True))
            else:
                said = f"{where}: {ours.qps:,.0f}/s, {ours.qps / theirs:.2f} of {name}'s {theirs:,.0f}/s"
                verdicts.append(Verdict(said, ours.qps > theirs if row.budget else ours.qps >= theirs))
    return verdicts


def describe(figures: dict[str, Any], rows: Sequence[Row], verdicts: Sequence[Verdict]) -> str:
    lines = []
    for row in rows:
        goals = [row.goal] if row.goal else list(RECALLS)
        for goal in goals:
            best = [row.best(goal, threads) for threads in THREADS]
            qps = [f"{point.qps:,.0f}" if point else "-" for point in best]
            setting = next((point.setting for point in best if point), "")
            lines.append(
                (
                    f"{goal:.2f}",
                    row.budget or "",
                    row.name,
                    row.factory,
                    round(row.bytes_a_vector),
                    round(row.build_s),
                    *qps,
                    setting,
                )
            )
    lines.sort(key=lambda line: (line[0], line[2] != "pinlake"))
    head = ("recall", "budget", "by", "index", "bytes a vector", "build s", "QPS, 1 thread", "QPS, 2 threads", "setting")
    about = f"{figures['rows']:,} vectors of 256 dimensions, {QUERIES:,} queries"
    said = [f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts]
    return "\n".join([machine_line(figures["machine"]), about, "", format_table(lines, head), "", *said, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="50,000 vectors")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--only", nargs="*", default=["pinlake", "exact", *ANN_PEERS], help="which of them (then not kept)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    wanted_rows = 50_000 if args.quick else args.rows
    data = make_data(args.cache / "texts", wanted_rows)
    rows = pinlake_rows(data) if "pinlake" in args.only else []
    rows += [exact_row(data)] if "exact" in args.only else []
    failed: list[Verdict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "vectors.npy", data.vectors)
        np.save(folder / "queries.npy", data.queries)
        for library in (library for library in ANN_PEERS if library in args.only):
            for budget in (BUDGET, None) if library == "autofaiss" else (None,):
                try:
                    rows.append(peer_row(data, folder, library, args.cache, budget))
                except ProgramFailedError as error:  # told at the end, and the others go on
                    log.error("%s", error)
                    failed.append(Verdict(f"{library} was compared: {str(error).splitlines()[-1]}", False))
    figures = {"machine": describe_machine(PACKAGES), "rows": wanted_rows, "peers": {n: list(r) for n, r in ANN_PEERS.items()}}
    verdicts = judge(rows) + failed
    figures |= {"indexes": [asdict(row) for row in rows], "verdicts": [asdict(verdict) for verdict in verdicts]}
    text = describe(figures, rows, verdicts)
    print(text)
    whole = not args.quick and args.rows >= 1_000_000 and len(args.only) == 2 + len(ANN_PEERS)
    keep(figures, text, args.json, "ann" if whole else None)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
