"""Trains an encoder on the training set that this run made, on pyspark's TorchDistributor.

    spark-submit jobs/train_encoder.py --home .pinlake --run-id by-hand --recipe pinclip-base --processes 1

The same program trains on one CPU, on one GPU or on many: `--processes` says how many, `--gpu` that each has one of Spark's
GPUs. With a `local[*]` master the processes run on this machine; with any other they are tasks of a barrier stage, and the
home must be a folder that all of them share. What a process does is embedding/encoder/train.py; a training that was killed
goes on from its checkpoint when the same run is started again.

Leaves the encoder and its record in `<home>/training/encoders/<run>/`; nothing reads it before it is judged.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from pyspark.ml.torch.distributor import TorchDistributor

import embedding.encoder.recipe
from embedding.encoder.recipe import DEFAULT_RECIPE, RecipeError, load_recipe
from embedding.encoder.tracking import training_uri
from embedding.encoder.training_set import TrainingSetError, read_manifest, read_training_set
from embedding.log_lines import tell
from embedding.tables.lake import Lake
from embedding.tables.storage import is_local
from jobs.session import arguments, log, run_program, spark_session

RECORD = "training.json"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--training-set", metavar="ID", help="default: the one that this run made")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="name or path of a recipe")
    parser.add_argument("--processes", type=int, default=1, help="how many processes train together")
    parser.add_argument("--gpu", action="store_true", help="each process takes one of Spark's GPUs")
    parser.add_argument("--seed", type=int, help="another seed than the recipe's")
    parser.add_argument("--epochs", type=float, help="another number of epochs than the recipe's")
    return parser.parse_args(argv)


def training_program(package: ModuleType = embedding.encoder.recipe) -> str:
    """The file that each process runs, beside the recipes; it is not imported here, since it brings torch."""
    return str(Path(str(package.__file__)).with_name("train.py"))


def program_arguments(lake: Lake, args: argparse.Namespace, set_id: str, folder: str) -> list[str]:
    words = [f"--home={lake.home}", f"--training-set={set_id}", f"--out={folder}", f"--run-id={args.run_id}"]
    optional = {"recipe": args.recipe, "seed": args.seed, "epochs": args.epochs}
    return [*words, *(f"--{name}={value}" for name, value in optional.items() if value is not None)]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    if not is_local(lake.home):
        raise TrainingSetError("the training's processes share a folder: mount the store, and give its path as --home")
    if args.processes < 1:
        raise RecipeError(f"--processes must be at least 1, not {args.processes}")
    load_recipe(args.recipe)  # a mistake in it is told here, not by a process far away
    set_id = args.training_set or read_training_set(lake, args.run_id)
    tell(ds=read_manifest(lake, set_id).ds)
    folder = training_uri(lake, args.run_id)
    if (Path(folder) / RECORD).is_file():
        log.info("%s: trained already", folder)
        return
    spark = spark_session(f"train {args.recipe}")
    # Threads that spin while they wait take the cores from whatever else runs there.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    local = str(spark.sparkContext.master).startswith("local")
    distributor = TorchDistributor(num_processes=args.processes, local_mode=local, use_gpu=args.gpu)
    started = time.monotonic()
    distributor.run(training_program(), *program_arguments(lake, args, set_id, folder))
    if not (Path(folder) / RECORD).is_file():
        raise TrainingSetError(f"the training left no {RECORD} in {folder}; its last words are above")
    log.info("%s: trained in %.0f s", folder, time.monotonic() - started)


if __name__ == "__main__":
    run_program(main, RecipeError, TrainingSetError)
