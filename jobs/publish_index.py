"""Makes the release that this run built and checked the live one, by one atomic replacement of the pointer `LIVE`.

    spark-submit jobs/publish_index.py --home .pinlake --run-id by-hand

A release of another encoder than the live one's is refused, unless it is a cut-over: with `--cut-over` the run must have
compared the two (compare_encoders.py), and the version that serves until now is kept fresh for a rollback.
(docs/decisions/0005-one-pointer-moves-everything.md)

Needs no Spark session: it is submitted like the others so that it runs where they run, with what they may read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from embedding.encoder.config import ConfigError
from embedding.index.cut_over import cut_over
from embedding.index.history import record_publication
from embedding.index.release import ReleaseError, publish, read_candidate
from embedding.tables.lake import Lake
from jobs.session import arguments, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--cut-over", action="store_true", help="the release may be of another encoder than the live one's")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    publish_release = cut_over if args.cut_over else publish
    release_id = read_candidate(lake, args.run_id)
    log.info("%s", publish_release(lake, release_id, args.run_id))
    record_publication(lake, release_id, args.run_id)


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError)
