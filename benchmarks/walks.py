"""Does what a walk over the pin-board graph costs depend on the walk, and not on the graph?

    python -m benchmarks.walks            # graphs of 1, 10 and 100 million edges: 8 minutes, 3 GB of disk
    python -m benchmarks.walks --quick    # 1 and 10 million

**The claim.** Related pins of three query pins (20,000 steps, one thread) take milliseconds over the memory-mapped shards
of a graph of 100 million edges, at most three times what they take in a graph a hundredth as large; twice the steps take
about twice the time; over a graph that a night of 1% changes has added to at most one and a half times that; and the walks find
what they stand for: nine tenths of the ten best pins of personalised PageRank, computed exactly.

**The test.** Synthetic graphs with realistic degrees: boards of log-normal size (median 14, up to 10,000), of one topic
each, whose pins are popular by a power law; a fifth of a board's pins is of any topic. They are written by the library's
own code, in shards, and opened by a process of its own, which walks from 300 sets of three pins, drawn by the edges as
users come upon them; the first look at each is counted apart, since then the pages of the files are mapped. The night adds
1% of the edges, nine tenths of them new, as popular as the others, and the rest taken away, by the library's own code as well;
walks over both graphs take turns. The peer is
personalised PageRank by sparse matrix products (SciPy, 20 iterations, the same restarts), which is what a graph library
does and whose cost is the graph's. Memory is what the walking process holds: all of it, and without the pages of the
mapped files.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from embedding.cli import format_table
from embedding.taste.graph import (
    BOARDS_SIDE,
    PINS_SIDE,
    Graph,
    GraphManifest,
    Increment,
    adjacency,
    degree_statistics,
    summed_degrees,
    write_arrays,
    write_piece,
)
from embedding.taste.patches import GONE, OTHER, Fresh, Touched, update_shard
from embedding.taste.walks import WalkSetting, walk

EDGES = (1_000_000, 10_000_000, 100_000_000)
EDGES_A_SHARD = 25_000_000
SETS, PINS_A_SET, EXACT_SETS, ITERATIONS = 300, 3, 5, 20
NIGHT = "night"
STEPS = (10_000, 20_000, 40_000)
TOP = 10
LEAST_OVERLAP, MOST_GROWTH, MOST_MS, MOST_OVER_A_NIGHT = 0.9, 3.0, 20.0, 1.5
CHANGED, REMOVED = 0.01, 0.1
"""Edges that a night changes, as a share of all, and those of them that go."""
EXACT_STEPS = 2_000_000
"""Steps for the comparison with PageRank: what a walk tends to."""


def make_graph(folder: Path, edges: int, seed: int = 1) -> GraphManifest:
    """Writes a synthetic graph of about so many edges below `folder`."""
    rng = np.random.default_rng(seed)
    boards, pins = edges // 25, edges // 5
    sizes = np.minimum(10_000, rng.lognormal(np.log(14), 1.08, boards)).astype(np.int64) + 1
    board_E = np.repeat(np.arange(boards, dtype=np.int32), sizes)
    total, topics = len(board_E), max(10, pins // 2_000)
    topic_E = (board_E.astype(np.int64) * 2_654_435_761 % topics).astype(np.int32)
    anywhere = rng.random(total, np.float32) < 0.2
    topic_E[anywhere] = rng.integers(0, topics, int(anywhere.sum()), np.int32)
    of_topic = (2_000 * rng.random(total, np.float32) ** 3).astype(np.int32)
    pin_E = np.minimum(topic_E * 2_000 + of_topic, pins - 1).astype(np.int32)
    saved_E = rng.integers(28_000_000, 30_000_000, total, np.int32)
    del topic_E, anywhere, of_topic
    starts, sides = {}, {}
    shards = -(-total // EDGES_A_SHARD)
    for side, nodes, of_E, to_E in ((PINS_SIDE, pins, pin_E, board_E), (BOARDS_SIDE, boards, board_E, pin_E)):
        bounds = [nodes * number // shards for number in range(shards + 1)]
        starts[side], degrees = bounds[:-1], []
        for number in range(shards):
            first, last = bounds[number], bounds[number + 1]
            mine = np.flatnonzero((of_E >= first) & (of_E < last))
            rows = adjacency(last - first, of_E[mine].astype(np.int64) - first, to_E[mine].astype(np.int64), saved_E[mine])
            write_piece(folder, side, number, np.arange(first, last, dtype=np.int64), rows)
            degrees.append(np.bincount(np.diff(rows.offsets)).tolist())
        sides[side] = degree_statistics(summed_degrees(degrees), total)
    manifest = GraphManifest(
        "synthetic", ".", ["2026-11-20"], {}, 10_000, starts, sides, {}, "benchmark", "2026-11-20T00:00:00"
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return manifest


def make_night(folder: Path, before: GraphManifest, seed: int = 2) -> GraphManifest:
    """What a night of changes makes of a graph, in a folder within the graph's."""
    rng, graph, night = np.random.default_rng(seed), Graph.open(folder, before), folder / NIGHT
    night.mkdir()
    changes = round(CHANGED * before.sides[PINS_SIDE].edges)
    pins, boards = _drawn_edges(graph, changes, rng)
    new = round(changes * (1 - REMOVED))
    boards[:new] = rng.permutation(boards[:new])  # as popular as they are, and not together
    of_E, place = np.unique(np.stack([pins, boards], axis=1), axis=0, return_index=True)
    saved_E = np.where(place < new, rng.integers(30_000_000, 30_001_440, len(of_E)), GONE)
    ends = {PINS_SIDE: of_E[:, 0], BOARDS_SIDE: of_E[:, 1]}
    none, patched = np.empty(0, np.int64), {}
    fresh = Fresh(dict.fromkeys(ends, none))
    for side, starts in before.starts.items():
        patched[side] = 0
        for number, span in enumerate(pairwise([*starts, len(graph.side(side))])):
            mine = np.flatnonzero((ends[side] >= span[0]) & (ends[side] < span[1]))
            touched = Touched(ends[side][mine], ends[OTHER[side]][mine], saved_E[mine], none)
            done = update_shard(graph, side, number, span, fresh, touched, before.max_degree)
            write_arrays(night, side, number, done.arrays)
            patched[side] += done.patched
    zeros = dict.fromkeys(ends, 0)
    increment = Increment(before.graph_id, 0, 0, zeros, zeros, zeros, patched)
    manifest = replace(before, graph_id="night", base=before.as_base, increment=increment)
    (night / "manifest.json").write_bytes(manifest.to_json())
    return manifest


def _drawn_edges(graph: Graph, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of pins and boards of so many edges, boards by their size."""
    pins = rng.integers(0, len(graph.pins), count).astype(np.int32)
    boards = graph.pins.pick(pins, rng.random(count, np.float32))
    found = graph.boards.pick(boards, rng.random(count, np.float32))
    return found[found >= 0].astype(np.int64), boards[found >= 0].astype(np.int64)


# -- the walking process ---------------------------------------------------------------------------------------------------


def memory_bytes() -> dict[str, int]:
    """What this process holds, and what of it is its own: mapped files left out."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"rss": 1024 * int(lines["VmRSS"].split()[0]), "own": 1024 * int(lines["RssAnon"].split()[0])}


def query_sets(graph: Graph) -> np.ndarray:
    """Numbers of pins (SETS, PINS_A_SET): of a board each, and such as edges lead to."""
    rng = np.random.default_rng(7)
    boards = rng.integers(0, len(graph.boards), SETS).astype(np.int32)
    repeated = np.repeat(boards, PINS_A_SET)
    found: np.ndarray = graph.boards.pick(repeated, rng.random(len(repeated), np.float32)).reshape(SETS, PINS_A_SET)
    return found


def milliseconds(graph: Graph, sets: np.ndarray, setting: WalkSetting) -> np.ndarray:
    times = []
    for number, pins in enumerate(sets):
        started = time.perf_counter()
        walk(graph, pins, k=TOP, setting=setting, seed=number)
        times.append(1_000 * (time.perf_counter() - started))
    return np.array(times)


def page_rank(graph: Graph, pins: np.ndarray, restart: float) -> np.ndarray:
    """Personalised PageRank of every pin from one set, each query pin on its own and then as the walks combine them; and that
    takes ITERATIONS products with either direction's matrix a query pin."""
    to_boards, to_pins = _matrix(graph, PINS_SIDE), _matrix(graph, BOARDS_SIDE)
    roots = np.zeros(len(graph.pins))
    degrees = graph.pins.degrees(pins)
    share = degrees * (np.log(degrees).max() + 1 - np.log(degrees))
    for pin, weight in zip(pins, share / share.sum(), strict=True):
        start = np.zeros(len(graph.pins), np.float32)
        start[pin] = 1
        at, visits = start, np.zeros_like(start)
        for _ in range(ITERATIONS):
            here = restart * start + (1 - restart) * at if visits.any() else start
            at = to_pins @ (to_boards @ here)
            visits += at
        roots += np.sqrt(weight * visits)
    return roots**2


_matrices: dict[str, Any] = {}


def _matrix(graph: Graph, side: str) -> Any:
    """Transposed transition probabilities from one side to the other."""
    if side not in _matrices:
        here, there = (graph.pins, graph.boards) if side == PINS_SIDE else (graph.boards, graph.pins)
        shards = here._shards
        offsets = np.concatenate([[0], *(np.diff(shard.offsets) for shard in shards)]).cumsum()
        neighbours = np.concatenate([shard.neighbours for shard in shards])
        weights = np.repeat(1 / np.maximum(1, np.diff(offsets)), np.diff(offsets)).astype(np.float32)
        _matrices[side] = csr_matrix((weights, neighbours, offsets), shape=(len(here), len(there))).T
    return _matrices[side]


def walk_over(folder: Path) -> dict[str, Any]:
    """All figures of one graph, in a process of its own."""
    manifest = GraphManifest.from_json((folder / "manifest.json").read_bytes())
    started = time.perf_counter()
    graph = Graph.open(folder, manifest)
    said: dict[str, Any] = {
        "opened_s": time.perf_counter() - started,
        "sides": {k: asdict(v) for k, v in manifest.sides.items()},
    }
    sets = query_sets(graph)
    said["first_ms"] = float(np.median(milliseconds(graph, sets, WalkSetting())))
    said["ms"] = {}
    for steps in STEPS:
        times = milliseconds(graph, sets, WalkSetting(steps=steps))
        said["ms"][str(steps)] = {"p50": float(np.median(times)), "p99": float(np.percentile(times, 99))}
    night = Graph.open(folder / NIGHT, GraphManifest.from_json((folder / NIGHT / "manifest.json").read_bytes()), folder)
    by_turns: dict[str, list[np.ndarray]] = {"base": [], "night": []}
    for _ in range(4):  # the first round maps the night's pages
        for name, walked in (("base", graph), ("night", night)):
            by_turns[name].append(milliseconds(walked, sets, WalkSetting()))
    said["by_turns_ms"] = {name: float(np.median(times[1:])) for name, times in by_turns.items()}
    said["memory"] = memory_bytes()
    seconds: list[float] = []
    overlaps: dict[int, list[float]] = {20_000: [], EXACT_STEPS: []}
    _matrix(graph, PINS_SIDE), _matrix(graph, BOARDS_SIDE)
    for pins in (np.unique(pins) for pins in sets[:EXACT_SETS]):
        started = time.perf_counter()
        exact = page_rank(graph, pins, WalkSetting().restart)
        seconds.append(time.perf_counter() - started)
        exact[pins] = 0
        best = set(np.argsort(-exact)[:TOP].tolist())
        for steps, found in overlaps.items():
            found.append(len(best & set(walk(graph, pins, k=TOP, setting=WalkSetting(steps=steps)).pins.tolist())) / TOP)
    said["overlap_at_10"] = {str(steps): float(np.mean(found)) for steps, found in overlaps.items()}
    return said | {"page_rank_ms": 1_000 * float(np.median(seconds))}


# -- the comparison --------------------------------------------------------------------------------------------------------


def judge(graphs: Sequence[dict[str, Any]]) -> list[Verdict]:
    small, large = graphs[0], graphs[-1]
    p50 = [graph["ms"]["20000"]["p50"] for graph in (small, large)]
    edges = f"{large['sides']['pins']['edges']:,} edges"
    growth = p50[1] / p50[0]
    steps = large["ms"]["40000"]["p50"] / large["ms"]["10000"]["p50"]
    over = large["by_turns_ms"]["night"] / large["by_turns_ms"]["base"]
    overlap = {steps: float(np.mean([graph["overlap_at_10"][steps] for graph in graphs])) for steps in large["overlap_at_10"]}
    return [
        Verdict(f"{edges}: {p50[1]:.1f} ms in the median for 20,000 steps, at most {MOST_MS:g}", p50[1] <= MOST_MS),
        Verdict(f"{growth:.2f} times what the smallest graph takes, at most {MOST_GROWTH:g}", growth <= MOST_GROWTH),
        Verdict(f"four times the steps take {steps:.1f} times as long, 2 to 5", 2 <= steps <= 5),
        Verdict(
            f"{over:.2f} times as long after a night of 1% changes ({large['patched']:.1%} of the edges stand beside the "
            f"base), at most {MOST_OVER_A_NIGHT:g}",
            over <= MOST_OVER_A_NIGHT,
        ),
        Verdict(f"{large['page_rank_ms'] / p50[1]:,.0f} times as fast as PageRank there", large["page_rank_ms"] > p50[1]),
        Verdict(
            f"{overlap[str(EXACT_STEPS)]:.2f} of PageRank's ten best are found in {EXACT_STEPS:,} steps, at least "
            f"{LEAST_OVERLAP} (in 20,000 steps {overlap['20000']:.2f})",
            overlap[str(EXACT_STEPS)] >= LEAST_OVERLAP,
        ),
    ]


def describe(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    head = (
        "edges",
        "pins",
        "boards",
        "p50, p99, max of boards",
        "built s",
        "disk MB",
        "own MB",
        "first ms",
        "p50 ms",
        "p99 ms",
        "by turns",
        "after a night",
        "night MB",
        "PageRank ms",
    )
    lines = []
    for graph in figures["graphs"]:
        pins, boards, at = graph["sides"]["pins"], graph["sides"]["boards"], graph["ms"]["20000"]
        spread = f"{boards['degree_p50']}, {boards['degree_p99']}, {boards['degree_max']}"
        sizes = f"{graph['disk'] / 1e6:,.0f}", f"{graph['memory']['own'] / 1e6:,.0f}"
        turns = *(f"{graph['by_turns_ms'][name]:.1f}" for name in ("base", "night")), f"{graph['night_disk'] / 1e6:,.0f}"
        times = f"{graph['first_ms']:.1f}", f"{at['p50']:.1f}", f"{at['p99']:.1f}", *turns, f"{graph['page_rank_ms']:,.0f}"
        lines.append(
            (
                f"{pins['edges']:,}",
                f"{pins['nodes']:,}",
                f"{boards['nodes']:,}",
                spread,
                round(graph["built_s"]),
                *sizes,
                *times,
            )
        )
    said = [f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts]
    return "\n".join([machine_line(figures["machine"]), "", format_table(lines, head), "", *said, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the largest graph")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)  # the walking process
    args = parser.parse_args(argv)
    if args.walk:
        print(json.dumps(walk_over(args.walk)))
        return 0
    graphs = []
    for edges in EDGES[: 2 if args.quick else None]:
        with tempfile.TemporaryDirectory() as name:
            started = time.perf_counter()
            manifest = make_graph(Path(name), edges)
            built_s = time.perf_counter() - started
            increment = make_night(Path(name), manifest).increment
            assert increment
            patched = max(edges / manifest.sides[side].edges for side, edges in increment.patched.items())
            command = [sys.executable, "-m", "benchmarks.walks", "--walk", name]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            disk, night_disk = (
                sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
                for folder in (Path(name), Path(name, NIGHT))
            )
            graphs.append({"built_s": built_s, "disk": disk, "night_disk": night_disk, "patched": patched} | said)
    figures: dict[str, Any] = {"machine": describe_machine(("numpy", "scipy")), "graphs": graphs}
    verdicts = judge(graphs)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text)
    keep(figures, text, args.json, None if args.quick else "walks")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
