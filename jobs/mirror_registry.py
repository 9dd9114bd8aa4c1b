"""Sets MLflow's alias `live` to the version that the release pointer names, after a cut-over or a rollback.

    spark-submit jobs/mirror_registry.py --home .pinlake --run-id by-hand

The alias is for people to read: where it cannot be set, this says so and ends well, because the pointer has moved and what
serves is right (docs/decisions/0006-mlflow-records-the-pointer-decides.md). Run again later, it makes up for it. Needs no
Spark session.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedding.encoder.tracking import TrackingError, mirror_live
from embedding.index.release import ReleaseError
from embedding.tables.lake import Lake
from jobs.session import arguments, log, run_program


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, ds=False).parse_args(argv)
    try:
        log.info("%s", mirror_live(Lake(args.home)))
    except (TrackingError, ReleaseError) as error:
        log.warning("MLflow's alias `live` may be out of date; what serves is not affected. %s", error)


if __name__ == "__main__":
    run_program(main)
