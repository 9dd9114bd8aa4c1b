"""Makes the release that this run built and checked the live one, by one atomic replacement of the pointer `LIVE`.

    spark-submit jobs/publish_index.py --home .pinlake --run-id by-hand

A release of another encoder than the live one's is refused, unless it is a cut-over: with `--cut-over` the run must have
compared the two (compare_encoders.py), and the version that serves until now is kept fresh for a rollback.
(docs/decisions/0005-one-pointer-moves-everything.md)

Then the oldest releases go: `--keep-releases` of each embedding version stay, besides those that the pointer names, and so does
everything younger than the live one. What builds left that were killed days ago goes too.

Needs no Spark session: it is submitted like the others so that it runs where they run, with what they may read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial

from embedding.encoder.config import ConfigError
from embedding.index.cut_over import cut_over
from embedding.index.history import record_publication
from embedding.index.release import ReleaseError, pointer_lock, publish, read_candidate, read_manifest
from embedding.index.retention import RELEASES_KEPT, abandoned_folders, delete_release, superseded_releases
from embedding.log_lines import tell
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.argument_types import whole_number
from jobs.session import arguments, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--cut-over", action="store_true", help="the release may be of another encoder than the live one's")
    parser.add_argument(
        "--keep-releases",
        type=partial(whole_number, least=1),
        default=os.environ.get("PINLAKE_RELEASES_KEPT") or str(RELEASES_KEPT),
        help=f"how many of a version stay (default $PINLAKE_RELEASES_KEPT, else {RELEASES_KEPT})",
    )
    return parser.parse_args(argv)


def clean_up(lake: Lake, keep: int) -> None:
    """Deletes the releases that are kept no longer, and what killed builds left."""
    with pointer_lock(lake):  # no rollback in between
        for manifest in superseded_releases(lake, keep):
            delete_release(lake, manifest.release_id)
            log.info("release %s is deleted: %d newer ones are kept", manifest.release_id, keep)
    for folder in abandoned_folders(lake):
        storage.delete_folder(folder)
        log.info("%s is deleted: a build or a check that was killed left it", folder)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    publish_release = cut_over if args.cut_over else publish
    release_id = read_candidate(lake, args.run_id)
    manifest = read_manifest(lake, release_id)
    tell(embedding_version=manifest.embedding_version, ds=manifest.days[-1])
    log.info("%s", publish_release(lake, release_id, args.run_id))
    record_publication(lake, release_id, args.run_id)
    clean_up(lake, args.keep_releases)


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError)
