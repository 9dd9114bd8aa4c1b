"""Compares the release that this run built under another encoder with the live one. Exits with 3 where it may not follow it.

    spark-submit jobs/compare_encoders.py --home .pinlake --run-id by-hand

1. *Coverage*: each pin of the live release is in the candidate, was deleted since, or is in quarantine under the candidate's
   version with its reason; few of the latter.
2. *Recall*: the candidate's recall@10 against exact search, from its check.
3. *Quality*: board-mates among a pin's ten nearest, under both encoders, with a 95% bootstrap interval of the difference. A
   candidate that is worse beyond doubt is refused, unless `--allow-worse`.

How far the neighbours of the two agree is told, and judged by nobody. The figures are printed and kept for
`publish_index.py --cut-over`. Needs no Spark session: both releases are asked as any reader asks them. Memory: the two
releases, and 16 bytes a pin.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from embedding.cli import format_table
from embedding.contracts import PINS, QUARANTINE
from embedding.encoder.config import ConfigError
from embedding.index.cut_over import Comparison, write_comparison
from embedding.index.reader import Release, open_live
from embedding.index.recall import Ids
from embedding.index.release import Manifest, ReleaseError, read_candidate, read_check, read_manifest
from embedding.index.tuning import RECALL_GOAL
from embedding.log_lines import tell
from embedding.quality.releases import compare_neighbours
from embedding.tables.lake import Lake, PartitionFilter, partition_is
from embedding.tables.scan import projected_schema, scan
from jobs.argument_types import share
from jobs.session import EXIT_GATE_FAILED, arguments, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--allow-worse", action="store_true", help="let a candidate pass whose board-mate recall is worse")
    parser.add_argument("--min-recall", type=share, default=RECALL_GOAL - 0.02, help="smallest recall@10 that may go live")
    parser.add_argument(
        "--max-lost", type=share, default=0.01, help="largest share of the live pins that the new encoder may quarantine"
    )
    parser.add_argument("--queries", type=int, default=500, help="pins whose neighbours are compared")
    parser.add_argument("--boards", type=int, default=500, help="boards whose pins are asked for their mates")
    return parser.parse_args(argv)


def rows_of(table: DeltaTable, columns: Sequence[str], where: PartitionFilter, pins: Ids) -> pa.Table:
    """Rows of some pins, found by reading a batch after the other."""
    wanted, schema = pa.array(pins), projected_schema(table, columns)
    batches = (batch.filter(pc.is_in(batch.column("pin_id"), value_set=wanted)) for batch in scan(table, columns, where))
    return pa.Table.from_batches([batch.cast(schema) for batch in batches], schema)


def explain_missing(lake: Lake, candidate: Manifest, missing: Ids) -> dict[str, int]:
    """Why pins of the live release are not in the candidate: deleted since, in quarantine, or for no reason at all.

    Reads the ids of all the candidate's days once; called only where pins are missing.
    """
    days, version = set(candidate.days), candidate.embedding_version
    pins = lake.open(PINS, candidate.pins_version)
    rows = rows_of(pins, ["pin_id", "ds", "deleted"], lambda partition: partition["ds"] in days, missing)
    latest = rows.sort_by([("pin_id", "ascending"), ("ds", "ascending")]).group_by("pin_id", use_threads=False)
    latest = latest.aggregate([("ds", "last"), ("deleted", "last")]).rename_columns(["pin_id", "ds", "deleted"])
    deleted = pc.sum(latest["deleted"]).as_py() or 0
    rejected = rows_of(lake.open(QUARANTINE), ["pin_id", "ds"], partition_is(embedding_version=version), missing)
    living = latest.filter(pc.invert(latest["deleted"])).select(["pin_id", "ds"])
    quarantined = living.join(rejected, ["pin_id", "ds"], join_type="left semi").num_rows
    return {"deleted_since": deleted, "quarantined": quarantined, "unexplained": len(missing) - deleted - quarantined}


def coverage(lake: Lake, live: Release, candidate: Release) -> dict[str, Any]:
    """Rows of both, and what became of the live pins that the candidate does not hold."""
    old, new = live.pin_ids(), candidate.pin_ids()
    missing = np.setdiff1d(old, new, assume_unique=True)
    nothing = {"deleted_since": 0, "quarantined": 0, "unexplained": 0}
    return {
        "live_rows": len(old),
        "candidate_rows": len(new),
        "days_missing": sorted(set(live.manifest.days) - set(candidate.manifest.days)),
        "missing": len(missing),
        **(explain_missing(lake, candidate.manifest, missing) if len(missing) else nothing),
    }


def judge(figures: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """The sentences for what keeps the candidate from following the live release; empty where nothing does."""
    failures = []
    if figures["days_missing"]:
        failures.append(f"not migrated yet: {', '.join(figures['days_missing'][:5])}; run migrate_pins.py again")
    if figures["unexplained"]:
        failures.append(f"{figures['unexplained']} live pins have no vector and no reason; run migrate_pins.py again")
    if figures["quarantined"] > args.max_lost * figures["live_rows"]:
        failures.append(f"{figures['quarantined']} live pins are in quarantine under the new version: see their reasons")
    if figures["candidate_recall_at_10"] < args.min_recall:
        failures.append(f"recall@10 {figures['candidate_recall_at_10']:.4f} is below {args.min_recall:.4f}")
    mates = figures["board_mates"]
    if mates and mates["is_worse"] and not args.allow_worse:
        failures.append(
            f"board-mate recall@10 is {mates['candidate']:.4f}, the live encoder's {mates['live']:.4f} (difference from "
            f"{mates['difference']['low']:+.4f} to {mates['difference']['high']:+.4f}); --allow-worse migrates all the same"
        )
    return failures


def describe(live: Manifest, candidate: Manifest, figures: dict[str, Any]) -> str:
    """The comparison as a table for people."""
    mates = figures["board_mates"] or {}
    rows = [
        ("embedding_version", live.embedding_version, candidate.embedding_version),
        ("pins", figures["live_rows"], figures["candidate_rows"]),
        ("recall@10", figures["live_recall_at_10"], figures["candidate_recall_at_10"]),
        ("board-mate recall@10", mates.get("live"), mates.get("candidate")),
    ]
    lines = [format_table(rows, ("", f"live {live.release_id}", f"candidate {candidate.release_id}"))]
    if mates:
        low, high = mates["difference"]["low"], mates["difference"]["high"]
        lines.append(
            f"board-mates: difference {low:+.4f} to {high:+.4f} (95%), {mates['pins']} pins of {mates['boards']} boards"
        )
    if figures["overlap_at_10"] is not None:
        lines.append(f"neighbours in common: {figures['overlap_at_10']:.0%} of the ten nearest, in the mean")
    names = ("missing", "deleted_since", "quarantined", "unexplained")
    lines.append("live pins not in the candidate: " + ", ".join(f"{figures[name]} {name}" for name in names))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    live, candidate = open_live(lake), Release(lake, read_manifest(lake, read_candidate(lake, args.run_id)))
    tell(embedding_version=candidate.manifest.embedding_version, ds=candidate.manifest.days[-1])
    checks = [read_check(lake, release.manifest.release_id) for release in (live, candidate)]
    recalls = [check.recall_at_10 if check else 0.0 for check in checks]
    figures = {"live_recall_at_10": recalls[0], "candidate_recall_at_10": recalls[1], "allow_worse": args.allow_worse}
    figures |= coverage(lake, live, candidate) | compare_neighbours(live, candidate, args.queries, args.boards)
    failures = judge(figures, args)
    old, new = live.manifest, candidate.manifest
    compared_at = datetime.now(UTC).isoformat(timespec="seconds")
    versions = (old.embedding_version, new.embedding_version)
    write_comparison(lake, args.run_id, Comparison(old.release_id, new.release_id, *versions, failures, figures, compared_at))
    print(describe(old, new, figures))
    for failure in failures:
        log.error("%s: %s", new.release_id, failure)
    return EXIT_GATE_FAILED if failures else 0


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError)
