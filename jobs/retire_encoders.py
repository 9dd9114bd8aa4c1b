"""Retires encoder versions that served before: deletes their vectors, their quarantine and their releases.

    spark-submit jobs/retire_encoders.py --home .pinlake --run-id by-hand

A version is due when it has been the previous one for `--retention-days`: until then a rollback is one command. The live
version and a migration's candidate are never retired. `--encoder VERSION` looks at that one only, and retires it also where no
night keeps it fresh: an abandoned candidate. Killed at any point, it goes on when it is run again; what it has begun, nobody
can roll back to. The files of tables go with the tables' vacuum; the encoder itself, a small copy, stays in the lake.
Needs no Spark session.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from embedding.contracts import PIN_EMBEDDINGS, TABLES
from embedding.encoder.config import ConfigError
from embedding.encoder.store import (
    Role,
    is_retired,
    mark_retired,
    read_fresh,
    stored_version,
    stored_versions,
    unmark_fresh,
)
from embedding.index.release import ReleaseError, list_releases, live_version, pointer_lock
from embedding.index.retention import delete_release
from embedding.log_lines import tell
from embedding.tables.lake import Lake, partition_is, remove_partitions
from embedding.taste.user_models import delete_user_models
from jobs.session import arguments, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--encoder", help="look at this embedding version alone")
    parser.add_argument(
        "--retention-days",
        type=float,
        default=float(os.environ.get("PINLAKE_ENCODER_RETENTION_DAYS") or 7),
        help="days for which a previous version is kept (default $PINLAKE_ENCODER_RETENTION_DAYS, else 7)",
    )
    return parser.parse_args(argv)


def reason_to_stay(lake: Lake, version: str, retention: timedelta, asked_for: bool, now: datetime) -> str | None:
    """Why the version is not to be retired; None where it is, or where a retirement was begun."""
    if version == live_version(lake):
        return "it is live"
    fresh = read_fresh(lake, version)
    if is_retired(lake, version):
        # The marker of freshness goes last: where it is still there, an earlier run did not finish.
        return None if fresh or asked_for else "it is retired already"
    if fresh is None:
        return None if asked_for else "it never served"
    if fresh.role == Role.CANDIDATE:
        return "a migration to it is under way; `pinlake abandon` ends that"
    until = datetime.fromisoformat(fresh.since) + retention
    return f"it is kept for a rollback until {until.isoformat(timespec='minutes')}" if now < until else None


def retire(lake: Lake, version: str, run_id: str) -> None:
    """Deletes all that the version left. The marker comes first: from then on nothing goes back to it."""
    if not is_retired(lake, version):
        mark_retired(lake, version, run_id)
    releases = [manifest for manifest in list_releases(lake, []) if manifest.embedding_version == version]
    for manifest in releases:
        delete_release(lake, manifest.release_id)
    counts = {
        name: remove_partitions(lake, contract, partition_is(embedding_version=version), run_id=run_id)
        for name, contract in TABLES.items()
        if "embedding_version" in contract.partition_by
    }
    delete_user_models(lake, version)
    unmark_fresh(lake, version)
    log.info("%s: retired; %d days of vectors and %d releases deleted", version, counts[PIN_EMBEDDINGS.name], len(releases))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    retention = timedelta(days=args.retention_days)
    for version in [stored_version(lake, args.encoder)] if args.encoder else stored_versions(lake):
        tell(embedding_version=version)
        with pointer_lock(lake):  # no rollback in between
            stays = reason_to_stay(lake, version, retention, bool(args.encoder), datetime.now(UTC))
            if stays:
                log.info("%s stays: %s", version, stays)
            else:
                retire(lake, version, args.run_id)


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError)
