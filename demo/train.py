"""`make train`: the shipped encoder's weights, made anew from the demo's lake by the programs that `encoder_training` runs.

    python -m demo.train --home .pinlake

Builds the training set of the lake's latest state, trains by the recipe `pinclip-base` and puts the weights where the config of
that name looks for them. The lake's live encoder stays what it is: a lake keeps its own copy. Nothing is judged here: that is
benchmarks/encoder_quality.py for this encoder, and the DAG `encoder_training` for a lake's next one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.airflow import LAPTOP_SPARK_CONF
from embedding.contracts import NIGHTS
from embedding.encoder.config import DEFAULT_CONFIG, embedding_version, load_config
from embedding.encoder.recipe import DEFAULT_RECIPE, load_recipe
from embedding.encoder.tracking import training_uri
from embedding.tables.lake import Lake

REPO = Path(__file__).resolve().parents[1]
RUN_ID = "make-train"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Trains the shipped encoder on the demo's lake.")
    parser.add_argument("--home", type=Path, required=True, help="the lake that `make demo` filled")
    args = parser.parse_args(argv)
    lake = Lake(str(args.home))
    if not lake.exists(NIGHTS):
        print(f"{lake.home} has no nights to train on: run `make demo` first", file=sys.stderr)
        return 2
    folder = Path(training_uri(lake, RUN_ID))
    shutil.rmtree(folder, ignore_errors=True)
    for program, *arguments in (["build_training_set.py"], ["train_encoder.py", "--recipe", DEFAULT_RECIPE]):
        if status := submit(program, "--home", lake.home, "--run-id", RUN_ID, *arguments):
            return status
    target = load_recipe(DEFAULT_RECIPE).replaces
    assert target is not None, "the shipped recipe says which file it makes"
    unfinished = target.with_suffix(".partial")
    shutil.copyfile(folder / "weights.safetensors", unfinished)
    unfinished.replace(target)
    print(f"{target.relative_to(REPO)} is now {embedding_version(load_config(DEFAULT_CONFIG))}")
    return 0


def submit(program: str, *arguments: str) -> int:
    """Runs a Spark program on this machine; its exit status."""
    binaries = Path(sys.executable).parent
    conf = [word for name, value in LAPTOP_SPARK_CONF.items() for word in ("--conf", f"{name}={value}")]
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(REPO),
    }
    command = ["spark-submit", "--master", "local[*]", *conf, str(REPO / "jobs" / program), *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
