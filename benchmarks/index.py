"""Does an index of ten million pins build within 8 GB, and answer well?

    python -m benchmarks.index            # about 20 minutes, 30 GB of disk; its texts an hour, once
    python -m benchmarks.index --quick    # 100 thousand pins

**The claim.** From Delta tables of ten million vectors of 256 dimensions, `jobs/build_index.py` makes a release within 8 GB of
memory, of all processes together, on two cores. The release is searched memory-mapped and reaches the recall that it was tuned
for, over all pins and among a half, a tenth, a hundredth and a thousandth of them. A night that passes after it was built is
found within a minute.

**The test.** The tables are written by the library, with real vectors as far as they reach: those of benchmarks/texts.py, a
million short texts. Beyond them each vector is one of those with noise, at a cosine of 0.8 to it in the mean: near-duplicates,
as repins are, which makes ten million rows of a million and is no easier than as many texts would be: the ten nearest are
hard to tell apart. The job runs through spark-submit as Airflow submits it, from start-up to exit: it tries the recipes,
trains, fills, merges and measures. It runs in a control group that has 8 GB of memory, the files that the kernel caches for it
among them, and would be killed beyond. Where no control group can be made, the largest sum of PSS of its process tree counts,
which is printed anyway: it has mapped files in it, which the kernel drops where memory is short.

Then the release is opened as a reader opens it, and asked with 500 vectors that it does not hold, made in the same way.
Recall@10 is against exact search over the tables. Selections are by a hash of the pin id, which tells nothing of what a pin
shows, and one hundredth is chosen for being alike, which is the hard case: most queries lie far from all of it.

Last the release is made live and followed by a reader, and a night of one changed pin in a hundred is committed: half of them
new, half with another vector, a hundredth as many deleted. What counts is the time from that commit until the reader finds the
new ones and the deleted ones no more.

**The plan for a billion** is arithmetic over what was measured, in `plan`: shards, hosts, hours, money. Its assumptions are
named there; nothing of that size was run.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_lake import RUN, noisy, table_vectors, write_lake, write_night
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from benchmarks.spark import group_peak_bytes, memory_group, pss_bytes, submit
from benchmarks.texts import WANTED, read_texts_file, text_vectors
from embedding.cli import format_table
from embedding.contracts import EMBEDDING_DIM
from embedding.index.build import SHARD_BYTES
from embedding.index.live import LiveRelease
from embedding.index.reader import Release, Selection
from embedding.index.recall import Floats, Ids, Truth, exact_top_k, merged_top_k
from embedding.index.release import Check, manifest_sha256, publish, read_candidate, read_manifest, write_check
from embedding.index.tuning import TOP, omp_threads, single_query_ms
from embedding.tables.lake import Lake

QUERIES = 500
NEXT_DS = "2026-01-02"
FRESH_WITHIN_S = 60
GOAL_BYTES = 8 * 10**9
GOAL_RECALL = 0.95
MARGIN = 0.02
"""What a release may be below its goal: as in the gate (jobs/check_index.py)."""
SHARES = {"a half": 2, "a tenth": 10, "a hundredth": 100, "a thousandth": 1_000}
ALIKE = "a hundredth, alike"
PACKAGES = ("faiss-cpu", "pyspark", "deltalake", "pyarrow", "numpy")
SPARK = {
    # A program of many minutes, as on a cluster: the JVM's optimising compiler, generated code, adaptive execution.
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "64",
    "spark.sql.codegen.wholeStage": "true",
    "spark.sql.adaptive.enabled": "true",
    "spark.driver.maxResultSize": "2g",
}


@dataclass(frozen=True)
class Host:
    """What the plan for a billion counts with: an assumption, not a measurement. Prices are list prices of 2026, rounded."""

    cores: int = 32
    memory_gib: int = 256
    dollars_an_hour: float = 2.1


# -- what a reader gets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """How a set of pins is searched. `qps` by threads, of batches; milliseconds of single queries on one thread."""

    among: str
    pins: int
    recall_at_10: float
    qps: dict[int, float]
    p50_ms: float
    p99_ms: float


def kinds_of(ids: Ids, vectors_ND: Floats, anchor_D: Floats, alike_above: float) -> Iterator[tuple[str, Any]]:
    """Each kind of selection, and which rows are in it."""
    yield "all pins", np.ones(len(ids), bool)
    mixed = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
    for name, one_in in SHARES.items():
        yield name, mixed % np.uint64(one_in) == 0
    yield ALIKE, vectors_ND @ anchor_D > alike_above


def search_exactly(lake: Lake, queries_QD: Floats, anchor_D: Floats, alike_above: float) -> dict[str, tuple[Truth, Ids]]:
    """The true neighbours among each kind of selection, and its pins, in one pass over the table."""
    best: dict[str, tuple[Floats, Ids]] = {}
    members: dict[str, list[Ids]] = {}
    for vectors_ND, ids in table_vectors(lake):
        for name, mask in kinds_of(ids, vectors_ND, anchor_D, alike_above):
            members.setdefault(name, []).append(ids[mask])
            near = exact_top_k(queries_QD, [(np.ascontiguousarray(vectors_ND[mask]), ids[mask])], 100)
            best[name] = near if name not in best else merged_top_k([best[name], near], 100)
    nobody = np.full(len(queries_QD), -1, np.int64)
    return {name: (Truth.of(*near, nobody, TOP), np.concatenate(members[name])) for name, near in best.items()}


def ask(release: Release, queries_QD: Floats, truth: Truth, among: str, selection: Selection | None, pins: int) -> Answers:
    """Recall, throughput and latency of one kind of selection."""
    # Eleven, as for queries by pin: `Truth` takes the query itself out, or here the last.
    _, found = release.search(queries_QD, TOP + 1, selection)
    qps = {}
    for threads in (1, 2):
        seconds: list[float] = []
        with omp_threads(threads):
            while len(seconds) < 3 or (sum(seconds) < 2 and len(seconds) < 20):
                started = time.perf_counter()
                release.search(queries_QD, TOP, selection)
                seconds.append(time.perf_counter() - started)
        qps[threads] = round(len(queries_QD) / statistics.median(seconds), 1)
    milliseconds = single_query_ms(lambda query_1D: release.search(query_1D, TOP, selection), queries_QD[:200])
    p50, p99 = (round(float(np.percentile(milliseconds, share)), 2) for share in (50, 99))
    return Answers(among, pins, round(truth.recall(found), 4), qps, p50, p99)


def follow(lake: Lake, release: Release, texts_ND: Floats, texts: Sequence[str], rows: int) -> dict[str, Any]:
    """A reader that follows the lake, and a night that is committed meanwhile: how soon its pins find themselves."""
    manifest = release.manifest
    check = Check(manifest_sha256(lake, manifest.release_id), [], manifest.recall_at_10, QUERIES, manifest.built_at)
    write_check(lake, manifest.release_id, check)
    publish(lake, manifest.release_id, RUN)
    half, deleted = rows // 200, np.arange(rows // 2, rows // 2 + rows // 10_000) + 1
    ids = np.concatenate([np.arange(half), np.arange(rows, rows + half)]) + 1
    vectors_ND = noisy(np.asarray(texts_ND[(ids - 1) % len(texts_ND)]), seed=11)
    with LiveRelease(lake) as live:
        write_night(lake, manifest.embedding_version, NEXT_DS, [(vectors_ND, ids)], texts, deleted)
        committed = time.monotonic()
        while live.release.changes is None or live.release.changes.searchable < len(ids):
            if time.monotonic() - committed > 10 * FRESH_WITHIN_S:
                raise TimeoutError("the reader does not find the night")
            time.sleep(0.05)
        found_s, now = time.monotonic() - committed, live.release
    asked = np.arange(0, len(ids), max(1, len(ids) // QUERIES))
    _, nearest = now.search(vectors_ND[asked], 1)
    itself = float((nearest[:, 0] == ids[asked]).mean())
    gone = len(now.describe(deleted[:1_000].tolist())) == 0 and not np.isin(deleted, now.pin_ids()).any()
    answers = now.search(vectors_ND[asked], TOP)[1]
    return {
        "pins": len(ids),
        "deleted": len(deleted),
        "searchable_after_s": round(found_s, 1),
        "find_themselves": round(itself, 4),
        "deleted_are_gone": bool(gone and not np.isin(answers, deleted).any()),
    }


# -- the plan --------------------------------------------------------------------------------------------------------------


def plan(rows: int, measured: dict[str, Any], host: Host, qps: float) -> dict[str, Any]:
    """Shards, hosts, hours and money for so many rows and queries a second, from what `measured` says of fewer rows.

    Assumptions: the index takes as many bytes a vector; a build's work grows with the rows; each shard answers every query, at
    the measured cost a row; 80% of a host's memory is filled. The second and the third are upper bounds.
    """
    index_bytes = rows * measured["bytes_a_vector"]
    shards = ceil(index_bytes / SHARD_BYTES)
    shards_a_host = int(0.8 * host.memory_gib * 2**30 // SHARD_BYTES)
    for_memory = ceil(shards / shards_a_host)
    core_s_a_query = 1 / measured["qps_one_thread"] * rows / measured["rows"]
    for_load = ceil(qps * core_s_a_query / host.cores)
    serving = max(for_memory, for_load)
    grows = measured["cpu_s"] * rows / measured["rows"]
    build_host_hours = grows / host.cores / 3600
    found = {
        "rows": rows,
        "index_gib": round(index_bytes / 2**30, 1),
        "shards": shards,
        "shards_a_host": shards_a_host,
        "hosts_for_memory": for_memory,
        "queries_a_second": qps,
        "core_ms_a_query": round(core_s_a_query * 1_000, 1),
        "hosts_for_load": for_load,
        "hosts": serving,
        "latency_ms_on_a_host": round(core_s_a_query * 1_000 / serving / host.cores, 2),
        "build_host_hours": round(build_host_hours, 1),
        "build_dollars": round(build_host_hours * host.dollars_an_hour, 2),
        "serving_dollars_a_day": round(serving * host.dollars_an_hour * 24),
        "table_gib": round(rows * 4 * EMBEDDING_DIM / 2**30),
    }
    # The arithmetic is checked from its other end: what the hosts have holds what the plan puts on them.
    assert shards * SHARD_BYTES >= index_bytes
    assert serving * shards_a_host >= shards
    assert shards_a_host * SHARD_BYTES <= 0.8 * host.memory_gib * 2**30
    assert serving * host.cores >= qps * core_s_a_query
    return found


# -- the run ---------------------------------------------------------------------------------------------------------------


def measure(rows: int, folder: Path, cache: Path, heap: str) -> dict[str, Any]:
    texts_ND = text_vectors(cache, min(rows, WANTED))
    texts = read_texts_file(cache)[: len(texts_ND)]
    started = time.monotonic()
    lake, version = write_lake(folder, texts_ND, texts, rows)
    print(f"{rows:,} pins are in the tables after {time.monotonic() - started:.0f} s", flush=True)
    conf = SPARK | {"spark.driver.memory": heap, "spark.local.dir": str(folder / "spark")}
    with memory_group(GOAL_BYTES) as group:
        run = submit("jobs/build_index.py", "--home", lake.home, "--run-id", RUN, "--encoder", version, conf=conf, group=group)
        group_bytes = group_peak_bytes(group) if group else None
    manifest = read_manifest(lake, read_candidate(lake, RUN))
    print(f"built in {run.seconds:.0f} s: {manifest.factory}, {manifest.setting}", flush=True)
    before = pss_bytes(os.getpid())
    started = time.perf_counter()
    release = Release(lake, manifest)
    open_s = time.perf_counter() - started
    chosen = np.random.default_rng(5).choice(len(texts_ND), QUERIES, replace=False)
    queries_QD = noisy(np.asarray(texts_ND[np.sort(chosen)]), seed=7)
    anchor_D = np.asarray(texts_ND[int(chosen[0])])
    alike_above = float(np.quantile(np.asarray(texts_ND[:100_000]) @ anchor_D, 0.99))
    truths = search_exactly(lake, queries_QD, anchor_D, alike_above)
    answers = []
    for name, (truth, members) in truths.items():
        selection = None if name == "all pins" else release.select(pin_ids=members)
        answers.append(ask(release, queries_QD, truth, name, selection, len(members)))
        print(answers[-1], flush=True)
    measured = {
        "rows": rows,
        "seconds": round(run.seconds, 1),
        "cpu_s": round(run.cpu_s, 1),
        "peak_bytes": run.peak_bytes,
        "peak_unmapped_bytes": run.peak_unmapped_bytes,
        "group_peak_bytes": group_bytes,
        "factory": manifest.factory,
        "setting": str(manifest.setting),
        "why": manifest.choice.why if manifest.choice else "",
        "bytes_a_vector": round(manifest.index_bytes_a_vector, 1),
        "size_bytes": manifest.size_bytes,
        "shards": len(manifest.shards),
        "recall_at_build": manifest.recall_at_10,
        "open_s": round(open_s, 2),
        "reader_bytes": pss_bytes(os.getpid()) - before,
        "qps_one_thread": answers[0].qps[1],
        "answers": [asdict(answer) for answer in answers],
        "fresh": follow(lake, release, texts_ND, texts, rows),
    }
    print(measured["fresh"], flush=True)
    return measured | {"billion": plan(10**9, measured, Host(), qps=1_000), "host": asdict(Host())}


def judge(figures: dict[str, Any]) -> list[Verdict]:
    answers = {answer["among"]: answer for answer in figures["answers"]}
    peak, goal = figures["peak_bytes"] / 1e9, f"built within {GOAL_BYTES / 1e9:g} GB"
    if grouped := figures["group_peak_bytes"]:
        said = f"{goal}, the limit of its control group: {grouped / 1e9:.1f} GB with cached files"
        verdicts = [Verdict(said, grouped <= GOAL_BYTES)]
    else:
        verdicts = [Verdict(f"{goal}: {peak:.1f} GB (no control group could be made)", figures["peak_bytes"] <= GOAL_BYTES)]
    for name in ("all pins", *SHARES, ALIKE):
        recall = answers[name]["recall_at_10"]
        verdicts.append(
            Verdict(f"recall@10 among {name}: {recall:.3f}, goal {GOAL_RECALL} - {MARGIN}", recall >= GOAL_RECALL - MARGIN)
        )
    fresh = figures["fresh"]
    said = f"a night of {fresh['pins']:,} pins is searched within {FRESH_WITHIN_S} s: {fresh['searchable_after_s']} s"
    verdicts.append(Verdict(said, fresh["searchable_after_s"] <= FRESH_WITHIN_S))
    said = f"its pins find themselves: {fresh['find_themselves']:.3f}, and its {fresh['deleted']:,} deleted ones are gone"
    verdicts.append(Verdict(said, fresh["find_themselves"] >= GOAL_RECALL - MARGIN and fresh["deleted_are_gone"]))
    return verdicts


def describe(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    built = [
        ("recipe", f"{figures['factory']}; {figures['setting']}"),
        ("chosen for", figures["why"]),
        ("time, start-up to exit", f"{figures['seconds']:,.0f} s, {figures['cpu_s']:,.0f} s of CPU"),
        (
            "peak memory, all processes",
            f"{figures['peak_bytes'] / 1e9:.2f} GB (PSS); {figures['peak_unmapped_bytes'] / 1e9:.2f} GB but for mapped files",
        ),
        (
            "size",
            f"{figures['size_bytes'] / 1e9:.2f} GB in {figures['shards']} shards; {figures['bytes_a_vector']} bytes a vector",
        ),
        (
            "opened and verified",
            f"{figures['open_s']} s, {figures['reader_bytes'] / 1e9:.2f} GB more in the reader after all queries",
        ),
    ]
    rows = [
        (
            a["among"],
            f"{a['pins']:,}",
            f"{a['recall_at_10']:.3f}",
            *(f"{qps:,.0f}" for qps in a["qps"].values()),
            a["p50_ms"],
            a["p99_ms"],
        )
        for a in figures["answers"]
    ]
    head = ("searched among", "pins", "recall@10", "QPS, 1 thread", "QPS, 2 threads", "p50 ms", "p99 ms")
    billion = [(name.replace("_", " "), f"{value:,}") for name, value in figures["billion"].items()]
    said = [f"{'HOLDS' if v.holds else 'MISSED'}  {v.sentence}" for v in verdicts]
    return "\n".join(
        [
            machine_line(figures["machine"]),
            "",
            format_table(built, (f"{figures['rows']:,} pins", "")),
            "",
            format_table(rows, head),
            "",
            format_table(billion, ("the plan for a billion", f"hosts of {figures['host']}")),
            "",
            *said,
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="100,000 pins")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path(".cache/texts"))
    parser.add_argument("--folder", type=Path, help="where the lake goes (default: a temporary folder)")
    parser.add_argument("--heap", default="2g", help="memory of the JVM")
    args = parser.parse_args(argv)
    rows = 100_000 if args.quick else args.rows
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measure(rows, Path(folder), args.cache, args.heap)
    figures = {"machine": describe_machine(PACKAGES), "quick": args.quick} | figures
    verdicts = judge(figures)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text)
    keep(figures, text, args.json, "index" if not args.quick and args.rows == 10_000_000 else None)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
