"""Trains the projector through which the assistant's language model sees pins; of the small model LoRA weights besides.

    spark-submit jobs/train_projector.py --home .pinlake --run-id by-hand --out weights/
    spark-submit jobs/train_projector.py ... --language-model Qwen3-VL-2B-Instruct/ --device cuda:0 --share 20

Reads the examples that this run made (jobs/build_conversations.py), those of the training split alone. What is done, and why:
assistant/training/train.py. A training that was killed goes on from its checkpoint when the same run is started again. It
takes half an hour on one core for the small model, needs no Spark session, and holds the examples' vectors in memory. Qwen3-VL
stays as published: its projector alone learns, and is locked to the name of its folder.

Leaves projector.json and projector.safetensors in `--out`, and adapter.* where there is one; locked to encoder and model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from assistant.brains import qwen3_vl, smollm2
from assistant.brains.prompts import Prompter, smollm2_vocabulary
from assistant.training.conversations import KINDS, TITLE, WORD, ConversationsError, read_examples, read_manifest
from assistant.training.train import TrainingSetting, save_weights, start, train
from embedding.encoder.training_set import TRAIN
from embedding.log_lines import tell
from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.tables.storage import is_local
from jobs.build_conversations import made_uri
from jobs.session import arguments, log, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__, ds=False)
    parser.add_argument("--conversations", metavar="ID", help="default: the examples that this run made")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the finished weights")
    parser.add_argument("--language-model", type=Path, metavar="FOLDER", help="Qwen3-VL as published (default: the small one)")
    parser.add_argument("--device", default="cpu", help="for Qwen3-VL")
    parser.add_argument("--share", type=float, default=1.0, help="of the training: 0.1 reads a tenth of the tokens")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lake = Lake(args.home)
    if not is_local(lake.home):
        raise ConversationsError("the training's checkpoint is a file: mount the store, and give its path as --home")
    uri = made_uri(lake, args.run_id)
    if not args.conversations and not storage.exists(uri):
        raise ConversationsError(f"run {args.run_id} has made no examples: run build_conversations.py with that --run-id first")
    wanted = args.conversations or json.loads(storage.read_bytes(uri))["conversations_id"]
    manifest = read_manifest(lake, wanted)
    tell(embedding_version=manifest.embedding_version)
    examples = read_examples(lake, manifest, TRAIN, KINDS)
    steps = round(TrainingSetting.name_steps * min(1.0, args.share))
    setting = TrainingSetting(scale_tokens=args.share, name_steps=steps, seed=args.seed)
    language_model: Any
    if args.language_model:
        setting = replace(setting, lora_rank=0)
        language_model, name, tokenizer, vocabulary = qwen3_vl.load_to_train(args.language_model, args.device)
    else:
        language_model, packaged = smollm2.load()
        name, tokenizer = smollm2.LANGUAGE_MODEL, packaged.backend_tokenizer
        vocabulary = smollm2_vocabulary(tokenizer)
    prompter = Prompter(tokenizer, vocabulary, setting.tokens_a_pin)
    named = [example for example in examples if example.kind in (TITLE, WORD)]
    seeing = start(language_model, name, manifest.embedding_version, prompter, named, setting)
    folder = Path(lake.run_uri("training", args.run_id)) / f"projector-{manifest.conversations_id}"
    folder.mkdir(parents=True, exist_ok=True)
    train(seeing, examples, prompter, setting, folder)
    save_weights(seeing, args.out, setting, {"conversations": manifest.conversations_id})
    log.info("%s: locked to %s and %s", args.out, manifest.embedding_version, name)


if __name__ == "__main__":
    run_program(main, ConversationsError, smollm2.LanguageModelError, qwen3_vl.WeightsError)
