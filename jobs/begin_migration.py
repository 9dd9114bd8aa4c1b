"""Begins the migration of all pins to another encoder: copies it into the lake and has nights embed each day under it too.

    spark-submit jobs/begin_migration.py --home .pinlake --run-id by-hand --to path/of/config.json

`--to` is a config's path or name, an embedding version of the lake, or `candidate`: the migration under way, else the newest
version of the lake that never served. Run again for the same version, it changes nothing. One migration at a time;
`pinlake abandon` ends one. What comes next is jobs/migrate_pins.py. Needs no Spark session.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from embedding.contracts import EMBEDDING_DIM
from embedding.encoder.config import ConfigError
from embedding.encoder.store import (
    CANDIDATE,
    LIVE,
    EncoderStoreError,
    Role,
    candidate_version,
    mark_fresh,
    newest_idle_version,
    open_encoder,
    stored_version,
    unmark_gone,
)
from embedding.index.release import ReleaseError, live_version, pointer_lock
from embedding.log_lines import tell
from embedding.tables.lake import Lake
from jobs.session import arguments, job_encoder, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--to", required=True, help="config's path or name, embedding version of the lake, or candidate")
    return parser.parse_args(argv)


def choose_version(lake: Lake, spec: str) -> str:
    """The version that `--to` means; a config is copied into the lake."""
    if spec != CANDIDATE:
        return stored_version(lake, spec)
    version = candidate_version(lake) or newest_idle_version(lake)
    if version is None:
        raise EncoderStoreError("there is no candidate in the lake: name a config with --to")
    return version


def begin(lake: Lake, spec: str, run_id: str) -> str:
    """Makes the version of `spec` the candidate; returns it."""
    live = live_version(lake)
    if live is None:
        raise ReleaseError("no release is live, so there is nothing to migrate: the first night takes $PINLAKE_ENCODER")
    job_encoder(lake, LIVE)  # the encoder that serves is kept in the lake too: it may have to serve again
    version = choose_version(lake, spec)
    tell(embedding_version=version)
    if version == live:
        raise ReleaseError(f"{version} is the live version already: there is nothing to migrate")
    dim = open_encoder(lake, version).config.dim
    if dim != EMBEDDING_DIM:
        raise EncoderStoreError(f"{version} makes vectors of {dim} dimensions, the tables hold {EMBEDDING_DIM}")
    with pointer_lock(lake):
        under_way = candidate_version(lake)
        if under_way == version:
            log.info("the migration to %s is under way already", version)
            return version
        if under_way:
            raise EncoderStoreError(f"a migration to {under_way} is under way: finish it, or end it with `pinlake abandon`")
        unmark_gone(lake, version)
        mark_fresh(lake, version, Role.CANDIDATE, run_id)
    log.info("from the next night on each day is embedded under %s too, beside %s", version, live)
    return version


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    begin(Lake(args.home), args.to, args.run_id)


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError)
