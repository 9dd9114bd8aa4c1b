"""Records a training in MLflow, and registers an encoder that was judged better: it is the candidate from then on.

    spark-submit jobs/register_encoder.py --home .pinlake --run-id by-hand

1. The training of the run becomes a run of MLflow, whichever way it was judged; with `--record-only` that is all.
2. One that was judged better is copied into the lake's store of encoders, and becomes a version of MLflow's model with the
   alias `candidate`. Any other is refused with exit status 3, unless `--anyway` says that a person wants it.

Changes nothing of what serves; that is the DAG `encoder_migration`. Run again, it finds everything there. Needs no Spark
session.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from embedding.encoder.config import ConfigError, embedding_version, load_config
from embedding.encoder.store import add_encoder
from embedding.encoder.tracking import (
    CANDIDATE,
    CONFIG,
    TrackingError,
    Training,
    Verdict,
    read_training,
    record_training,
    register,
    set_alias,
)
from embedding.index.release import ReleaseError, live_version
from embedding.log_lines import tell
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs.session import EXIT_GATE_FAILED, arguments, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--record-only", action="store_true", help="record the training, register nothing")
    parser.add_argument("--anyway", action="store_true", help="register it though it was not judged better")
    return parser.parse_args(argv)


@contextmanager
def local_config(training: Training) -> Iterator[Path]:
    """The training's config on this machine, with the files that it names beside it."""
    if storage.is_local(training.uri):
        yield Path(training.uri) / CONFIG
        return
    with tempfile.TemporaryDirectory() as folder:
        storage.copy_folder(training.uri, folder)
        yield Path(folder) / CONFIG


def store_encoder(lake: Lake, training: Training) -> None:
    """Copies the encoder into the lake. Raises TrackingError if its files are not those that were trained and judged."""
    with local_config(training) as config:
        made = str(embedding_version(load_config(config)))
        if made != training.version:
            raise TrackingError(f"{training.uri} makes {made} now, the training made {training.version}: train it again")
        add_encoder(lake, config)


def make_candidate(lake: Lake, training: Training, mlflow_run: str) -> None:
    """Stores and registers the encoder, and says what comes next."""
    store_encoder(lake, training)
    version = training.version
    tags = {"training_set": str(training.facts.get("training_set", "")), "recipe": training.recipe}
    number = register(lake, version, {**tags, "verdict": training.verdict.value}, mlflow_run)
    if version == live_version(lake):
        log.info("%s (version %d in MLflow) serves already: there is nothing left to do", version, number)
        return
    set_alias(lake, CANDIDATE, version)
    log.info("%s is the candidate, version %d in MLflow. It serves nothing yet. To move all pins to it:", version, number)
    log.info("""  airflow dags trigger encoder_migration --conf '{"to": "%s"}'""", version)
    home = shlex.quote(lake.home)
    log.info("or begin with: spark-submit jobs/begin_migration.py --home %s --run-id by-hand --to %s", home, version)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    lake = Lake(args.home)
    training = read_training(lake, args.run_id)
    tell(embedding_version=training.version)
    mlflow_run = record_training(lake, training, args.run_id)
    log.info("%s: %s, run %s in MLflow", training.version, training.verdict.value, mlflow_run)
    if args.record_only:
        return 0
    if training.verdict != Verdict.ACCEPTED and not args.anyway:
        log.error("%s was not judged better than the live encoder, and is not registered (--anyway would)", training.version)
        for sentence in (training.judgement or {"sentences": ["it was not judged: run judge_encoder.py"]})["sentences"]:
            log.error("%s", sentence)
        return EXIT_GATE_FAILED
    make_candidate(lake, training, mlflow_run)
    return 0


if __name__ == "__main__":
    run_program(main, ConfigError, ReleaseError, TrackingError)
