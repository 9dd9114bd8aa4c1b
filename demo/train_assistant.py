"""`make trainassistant`: the weights through which the assistant's small model sees pins, made anew from the demo's lake.

    python -m demo.train_assistant --home .pinlake

Builds the encoder's training set of the lake's latest state, for its split, then the examples under the live encoder, then
trains on them. How good the result is: benchmarks/projector.py. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.train import REPO, submit
from embedding.contracts import NIGHTS
from embedding.tables.lake import Lake

RUN_ID = "make-trainassistant"
WEIGHTS_FOLDER = REPO / "assistant" / "weights" / "smollm2"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Trains what the assistant's small model sees pins through.")
    parser.add_argument("--home", type=Path, required=True, help="the lake that `make demo` filled")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER, help="where the weights go")
    parser.add_argument("--share", default="1.0", help="of the training: 0.1 to try it out")
    args = parser.parse_args(argv)
    lake = Lake(str(args.home))
    if not lake.exists(NIGHTS):
        print(f"{lake.home} has no nights to train on: run `make demo` first", file=sys.stderr)
        return 2
    training = ["train_projector.py", "--out", str(args.out), "--share", args.share]
    for program, *arguments in (["build_training_set.py"], ["build_conversations.py"], training):
        if status := submit(program, "--home", lake.home, "--run-id", RUN_ID, *arguments):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
