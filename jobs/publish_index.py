"""Makes the release that this run built and checked the live one, by one atomic replacement of the pointer `LIVE`.

    spark-submit jobs/publish_index.py --home .pinlake --run-id by-hand

Needs no Spark session: it is submitted like the others so that it runs where they run, with what they may read.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedding.index.release import ReleaseError, publish, read_candidate
from embedding.tables.lake import Lake
from jobs.session import arguments, log, run_program


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, ds=False).parse_args(argv)
    lake = Lake(args.home)
    log.info("%s", publish(lake, read_candidate(lake, args.run_id), args.run_id))


if __name__ == "__main__":
    run_program(main, ReleaseError)
