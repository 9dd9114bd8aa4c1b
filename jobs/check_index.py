"""Checks a built release: files, rows and ids against the tables, canaries, recall@10 with its interval, latency, overlap with
the live one.

    spark-submit jobs/check_index.py --home .pinlake --run-id by-hand

Exits with 3 where it must not go live. Independent of the build: it opens the release as a reader does, and asks it other
queries than those it was tuned with.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from embedding.encoder.config import ConfigError
from embedding.encoder.store import encoder_of_release
from embedding.index.history import record_check
from embedding.index.reader import Release
from embedding.index.recall import Truth, mean_interval
from embedding.index.release import (
    Check,
    Manifest,
    ReleaseError,
    manifest_sha256,
    read_candidate,
    read_manifest,
    read_pointer,
    release_uri,
    verify_files,
    write_check,
)
from embedding.index.tuning import RECALL_GOAL, TOP, single_query_ms
from embedding.log_lines import tell
from embedding.quality.releases import neighbour_overlap
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.argument_types import share
from jobs.current import (
    CurrentState,
    current_pins,
    described_pins,
    exact_neighbours,
    unsettled_pins,
)
from jobs.index_sample import Queries, sample_titles, sample_vectors, sampled, with_texts
from jobs.session import EXIT_GATE_FAILED, arguments, log, map_items, run_program, spark_session

QUERIES = 300
MAX_LOST = 0.01
"""Share of known pins that may not find themselves: a graph index leaves a few out of reach."""

_IDS = pa.schema([("pin_id", pa.int64())])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--min-recall", type=share, default=RECALL_GOAL - 0.02, help="smallest recall@10 that may go live")
    parser.add_argument("--max-p99-ms", type=float, default=100.0, help="longest time of one query in a hundred, one thread")
    parser.add_argument(
        "--min-overlap", type=share, default=0.5, help="smallest share of neighbours in common with the live release"
    )
    return parser.parse_args(argv)


@dataclass
class Findings:
    """What the checks found wrong, a sentence each, and the figures that they rest on."""

    failures: list[str] = field(default_factory=list)
    recall_at_10: float = 0.0
    queries: int = 0
    figures: dict[str, float] = field(default_factory=dict)


def check_release(lake: Lake, manifest: Manifest, args: argparse.Namespace) -> Findings:
    """All checks, each in a function of its own; where files are damaged, nothing else is looked at."""
    if damaged := verify_files(lake, manifest):
        return Findings(damaged)
    findings = Findings()
    state = CurrentState(manifest.embedding_version, manifest.days, manifest.pins_version, manifest.pin_embeddings_version)
    spark = spark_session(f"check {manifest.release_id}")
    described = described_pins(spark, lake, state, ("pin_id", "title")).persist()
    release = Release(lake, manifest)
    rows = check_rows(spark, lake, release, described, findings)
    if forgotten := unsettled_pins(spark, lake, state).count():
        findings.failures.append(
            f"{forgotten} living pins have neither a vector nor a reason under {manifest.embedding_version}: "
            f"run migrate_pins.py --to {manifest.embedding_version}, which looks for them"
        )
    current = current_pins(spark, lake, state, ("pin_id",))
    work_uri = f"{lake.releases_uri}/.checking-{manifest.release_id}"
    pins = sample_vectors(sampled(current, rows, QUERIES, seed=3), work_uri)
    queries = with_texts(*pins, sample_titles(described, rows, seed=4), encoder_of_release(lake, manifest).config)
    check_answers(release, queries, exact_neighbours(current, queries.vectors, queries.pin_ids), args, findings)
    check_overlap(lake, release, args.min_overlap, findings)
    return findings


def check_rows(spark: SparkSession, lake: Lake, release: Release, current: DataFrame, findings: Findings) -> int:
    """The pins of the index are those of the tables: as many, none twice, none unknown. Returns how many the tables have."""
    manifest, rows = release.manifest, current.count()
    vectors, described = release.count_rows()
    if not rows == manifest.rows == vectors == described:
        findings.failures.append(
            f"rows differ: {rows} in the tables, {manifest.rows} in the manifest, {vectors} in the index, {described} described"
        )
    root = release_uri(lake, manifest.release_id)
    indexed = map_items(spark, [f"{root}/{shard.ids_file}" for shard in manifest.shards], read_ids, _IDS)
    if twice := vectors - indexed.distinct().count():
        findings.failures.append(f"{twice} pins are in the index more than once")
    if unknown := indexed.join(current, "pin_id", "left_anti").count():
        findings.failures.append(f"{unknown} pins of the index are no current pins of the tables")
    return rows


def read_ids(uri: str) -> Iterator[pa.RecordBatch]:
    filesystem, path = storage.filesystem_of(uri)
    with filesystem.open_input_file(path) as file:
        ids = np.load(file, allow_pickle=False)
    yield from pa.table({"pin_id": ids}, schema=_IDS).to_batches(max_chunksize=100_000)


def check_answers(release: Release, queries: Queries, truth: Truth, args: argparse.Namespace, findings: Findings) -> None:
    """Pins find themselves; pins and words find their true neighbours, and fast enough."""
    _, found = release.search(queries.vectors, TOP + 1)
    lost = int((~(found == queries.pin_ids[:, None]).any(axis=1) & truth.rated & ~queries.by_text).sum())
    pins = int((~queries.by_text).sum())
    if lost > MAX_LOST * pins:
        findings.failures.append(f"{lost} of {pins} known pins are not found by their own vectors")
    recalls, by_text = truth.recalls(found), queries.by_text[truth.rated]
    for kind, mine in (("pins", recalls[~by_text]), ("words", recalls[by_text])):
        low, high = mean_interval(mine)
        if len(mine) and (recall := float(mine.mean())) < args.min_recall:
            said = f"recall@10 {recall:.4f} (95% interval {low:.4f} to {high:.4f}) by {kind} is below {args.min_recall:.4f}"
            findings.failures.append(said)
    if by_text.any():
        findings.figures["text_recall_at_10"] = float(recalls[by_text].mean())
    low, high = mean_interval(recalls)
    milliseconds = single_query_ms(lambda query_1D: release.search(query_1D, TOP + 1), queries.vectors)
    p50, p99 = (float(np.percentile(milliseconds, share)) for share in (50, 99))
    if p99 > args.max_p99_ms:
        findings.failures.append(f"one query in a hundred takes {p99:.1f} ms or more; {args.max_p99_ms:g} ms are allowed")
    findings.recall_at_10, findings.queries = truth.recall(found), len(recalls)
    findings.figures |= {"recall_low": low, "recall_high": high, "p50_ms": p50, "p99_ms": p99}


def check_overlap(lake: Lake, release: Release, min_overlap: float, findings: Findings) -> None:
    """A release of the same encoder finds mostly what the live one finds: its pins change by a night's work."""
    pointer = read_pointer(lake)
    if pointer is None or pointer.release_id == release.manifest.release_id:
        return
    before = read_manifest(lake, pointer.release_id)
    if before.embedding_version != release.manifest.embedding_version or before.format != release.manifest.format:
        return
    live = Release(lake, before)
    shares = neighbour_overlap(live, release, QUERIES)
    overlap = float(shares.mean()) if len(shares) else 0.0
    findings.figures["overlap_at_10"] = overlap
    if overlap < min_overlap:
        findings.failures.append(
            f"its neighbours overlap with those of the live release {pointer.release_id} by {overlap:.2f}, less than "
            f"{min_overlap:.2f}; after a change of most pins, check it again with --min-overlap 0"
        )


def verdict(lake: Lake, manifest: Manifest, findings: Findings) -> Check:
    return Check(
        manifest_sha256=manifest_sha256(lake, manifest.release_id),
        failures=findings.failures,
        recall_at_10=round(findings.recall_at_10, 4),
        queries=findings.queries,
        checked_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: round(value, 4) for name, value in findings.figures.items()},
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    manifest = read_manifest(lake, read_candidate(lake, args.run_id))
    tell(embedding_version=manifest.embedding_version, ds=manifest.days[-1])
    check = verdict(lake, manifest, check_release(lake, manifest, args))
    write_check(lake, manifest.release_id, check)
    record_check(lake, manifest, check)
    for failure in check.failures:
        log.error("%s: %s", manifest.release_id, failure)
    log.info("%s: recall@10 %.4f over %d queries", manifest.release_id, check.recall_at_10, check.queries)
    return EXIT_GATE_FAILED if check.failures else 0


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError)
