"""Checks a built release: files, rows, forgotten pins, canaries, recall@10 against exact search.

    spark-submit jobs/check_index.py --home .pinlake --run-id by-hand

Exits with 3 where it must not go live. Independent of the build: it opens the release as a reader does, and asks it other
queries than those it was tuned with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from embedding.index.build import RECALL_GOAL, TOP
from embedding.index.reader import Release
from embedding.index.recall import drop_self, recall_at_k
from embedding.index.release import (
    Check,
    Manifest,
    ReleaseError,
    manifest_sha256,
    read_candidate,
    read_manifest,
    verify_files,
    write_check,
)
from embedding.tables.lake import Lake
from jobs.current import CurrentState, current_pins, exact_neighbours, sample_pins, unsettled_pins
from jobs.session import EXIT_GATE_FAILED, arguments, log, run_program, spark_session

QUERIES = 300
SAME_VECTOR = 0.9999


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--min-recall", type=float, default=RECALL_GOAL - 0.02, help="smallest recall@10 that may go live")
    return parser.parse_args(argv)


def check_release(lake: Lake, manifest: Manifest, min_recall: float) -> Check:
    if damaged := verify_files(lake, manifest):
        return verdict(lake, manifest, damaged, recall=0.0, queries=0)
    failures: list[str] = []
    state = CurrentState(manifest.embedding_version, manifest.days, manifest.pins_version, manifest.pin_embeddings_version)
    spark = spark_session(f"check {manifest.release_id}")
    current = current_pins(spark, lake, state).persist()
    rows = current.count()
    release = Release(lake, manifest)
    vectors, described = release.count_rows()
    if not rows == manifest.rows == vectors == described:
        failures.append(
            f"rows differ: {rows} in the tables, {manifest.rows} in the manifest, {vectors} in the index, {described} described"
        )
    if forgotten := unsettled_pins(spark, lake, state).count():
        failures.append(
            f"{forgotten} living pins have neither a vector nor a reason under {manifest.embedding_version}: "
            f"run migrate_pins.py --to {manifest.embedding_version}, which looks for them"
        )
    queries_QD, ids = sample_pins(current, rows, QUERIES, seed=3)
    scores, found = release.search(queries_QD, TOP + 1)
    lost = int((scores[:, 0] < SAME_VECTOR).sum())
    if lost:
        failures.append(f"{lost} of {len(ids)} known pins are not found by their own vectors")
    recall = recall_at_k(drop_self(scores, found, ids)[0], exact_neighbours(current, queries_QD, ids))
    if recall < min_recall:
        failures.append(f"recall@10 {recall:.4f} is below {min_recall:.4f}")
    return verdict(lake, manifest, failures, recall, len(ids))


def verdict(lake: Lake, manifest: Manifest, failures: list[str], recall: float, queries: int) -> Check:
    return Check(
        manifest_sha256=manifest_sha256(lake, manifest.release_id),
        failures=failures,
        recall_at_10=round(recall, 4),
        queries=queries,
        checked_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    manifest = read_manifest(lake, read_candidate(lake, args.run_id))
    check = check_release(lake, manifest, args.min_recall)
    write_check(lake, manifest.release_id, check)
    for failure in check.failures:
        log.error("%s: %s", manifest.release_id, failure)
    log.info("%s: recall@10 %.4f over %d queries", manifest.release_id, check.recall_at_10, check.queries)
    return EXIT_GATE_FAILED if check.failures else 0


if __name__ == "__main__":
    run_program(main, ReleaseError)
