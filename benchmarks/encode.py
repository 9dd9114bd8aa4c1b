"""How fast are pictures encoded, and how much of what the hardware could do is that?

    python -m benchmarks.encode                      # all rows on 1,000 photographs: some 25 minutes on 2 cores
    python -m benchmarks.encode --quick              # few photographs, to try the program out
    python -m benchmarks.encode --rows model,decode,pinlake
    python -m benchmarks.encode --device cuda        # the stream alone on a GPU, ViT-B/32 and ViT-L/14

**The claim.** On this machine's CPU, in the steady state, pinlake through Spark and with its Delta commits encodes at least
0.9 of the images/s that the model and the decoding reach together at their best; at least twice what clip-retrieval, Ray Data
and Daft reach as their documentation has them; and no less than the best of them at equal precision, with settings tuned for
this machine.

**The test.** Real JPEG photographs (benchmarks/photographs.py), the image tower of ViT-B/32 as open_clip builds it, one file of
weights for all rows (random ones: no weights of it are to be had here, and speed does not depend on them), fp32, open_clip's
transform, all cores. In one run:

    model       the forward pass alone, on ready tensors; the best of two layouts (a process with all cores, a process a core)
                and of several batch sizes. bf16 is told beside it: a CPU without AVX512-BF16 or AMX is slower with it
    decode      reading, decoding and transforming alone; JPEGs whole as open_clip does, and scaled as pinlake does
    ceiling     both on the same cores, one image after the other: 1 / (1 / model + 1 / decode), each at its best
    pinlake     an export day of pins without text, landed; then jobs/embed_pins.py by spark-submit, from start-up to exit
    clip-retrieval, ray, daft   the peers, each as documented and tuned, from start-up to exit (benchmarks/peers)

A program runs on few and on many photographs. What the additional ones cost is the steady state,
(N - n) / (seconds of N - seconds of n); what is left of the seconds of n is start-up: session, imports, loading the model, and
what a commit costs whatever its size. So nobody's start-up counts, and everything that each further image costs does:
pinlake's hashing, its staging and commits too. Memory is the peak sum of PSS over the program's processes, the larger run's.

Repetitions: pinlake and the best peer `--repetitions` times, other rows once. The figure is the median, the spread from
least to most. The ceiling is measured before and after: on a shared machine they may differ, and the better counts.

**Past the ceiling** (told, not judged): int8 weights and compilation, with the share of each photograph's ten nearest
neighbours that stay the same.

Exits with 0 where the claim holds, 1 where it does not, 2 where the rows could not be measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.encode_past import past_rows
from benchmarks.encode_programs import measure_program, peer_program, peer_rows, pinlake_row
from benchmarks.encode_report import PACKAGES, Report, judge
from benchmarks.encode_rows import (
    DECODE,
    FEW,
    MANY,
    MODEL,
    PINLAKE,
    Bench,
    Row,
    Sizes,
    ceiling_row,
    decode_rows,
    layouts,
    model_row,
    model_rows,
)
from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.environments import PEERS, peer_environment
from benchmarks.photographs import fetch_photographs
from benchmarks.results_of import keep
from benchmarks.spark import REPO, ProgramFailedError
from demo.debian import PackagesUnavailableError

QUICK_MANY, QUICK_FEW = 96, 32
PAST = "past"
ROWS = (MODEL, DECODE, PINLAKE, *PEERS, PAST)
BATCHES = (8, 16, 32)


def run_rows(bench: Bench, wanted: Sequence[str], quick: bool) -> tuple[list[Row], list[Row]]:
    """The rows of the table, and the model alone in all layouts."""
    models: list[Row] = []
    decodes: list[Row] = []
    programs: list[Row] = []
    batches = BATCHES[1:2] if quick else BATCHES
    if MODEL in wanted:
        models += model_rows(bench, ("fp32", "channels-last"), batches, 1)
        models += model_rows(bench, ("bf16",) if quick else ("bf16", "bf16-autocast"), (16,), 1, some_layouts=1)
    if DECODE in wanted:
        decodes = decode_rows(bench)
    if PINLAKE in wanted:
        programs.append(pinlake_row(bench, bench.sizes.repetitions))
    for name in PEERS:
        if name in wanted:
            programs += peer_rows(bench, name)
    peers = [row for row in programs if "/" in row.key]
    if peers and bench.sizes.repetitions > 1:
        best = max(peers, key=lambda row: row.rate)
        name, _, way = best.key.partition("/")
        program = peer_program(bench, name, peer_environment(name, bench.cache / "peers"), tuned=way == "tuned")
        again = measure_program(bench, best.key, best.title, program, bench.sizes.repetitions)
        programs[programs.index(best)] = again
    heads: list[Row] = []
    if models:
        best_model = max((row for row in models if not row.notes["variant"].startswith("bf16")), key=lambda row: row.rate)
        models.append(_again(bench, best_model))
        fp32 = [row for row in models if not row.notes["variant"].startswith("bf16")]
        heads.append(max(fp32, key=lambda row: row.rate))
    rows = [*heads, *decodes]
    if models and decodes:
        rows.append(ceiling_row(models, decodes))
    return [*rows, *programs], models


def _again(bench: Bench, row: Row) -> Row:
    """The best layout once more, after the programs."""
    processes, threads = layouts()[row.notes["layout"]]
    variant, layout, batch = (row.notes[name] for name in ("variant", "layout", "batch"))
    found = model_row(bench, variant, layout, processes, threads, batch, bench.sizes.repetitions)
    found.title += ", afterwards"
    return found


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=REPO / ".cache", help="photographs, weights and the peers' environments")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--images", type=int, default=MANY, help=f"photographs of a large run (default {MANY})")
    parser.add_argument("--repetitions", type=int, default=3, help="of pinlake and of the best peer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all figures there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MANY} photographs, once: to try the program out")
    args = parser.parse_args(argv)
    args.rows = args.rows.split(",")
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return args


def gpu(bench: Bench, args: argparse.Namespace, out: Callable[[str], None]) -> int:
    """The part of `--device cuda`; kept in benchmarks/results/encode_gpu.*."""
    from benchmarks.encode_gpu import gpu_holds, gpu_json, gpu_rows, gpu_text

    rows = gpu_rows(bench.photographs.paths[: bench.sizes.many], bench.work, bench.sizes.seconds)
    figures = {"machine": describe_machine(PACKAGES), "holds": gpu_holds(rows), "rows": gpu_json(rows)}
    text = f"{gpu_text(rows)}\n\n{machine_line(describe_machine(PACKAGES))}\n"
    out(text)
    keep(figures, text, args.json, None if args.quick else "encode_gpu")
    return 0 if gpu_holds(rows) else 1


def main(argv: Sequence[str] | None = None, out: Callable[[str], None] = print) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    sizes = Sizes(QUICK_MANY, QUICK_FEW, 3, 1) if args.quick else Sizes(args.images, FEW, 8, args.repetitions)
    started = time.monotonic()
    try:
        photographs = fetch_photographs(args.cache / "photographs")
        if len(photographs) < sizes.many:
            print(f"encode: there are {len(photographs)} photographs, not {sizes.many}", file=sys.stderr)
            return 2
        # Within the cache: photographs are linked, not copied, and links do not reach into another file system.
        with tempfile.TemporaryDirectory(prefix="encode-", dir=args.cache) as work:
            bench = Bench(photographs, args.cache.absolute(), Path(work).absolute(), sizes)
            if args.device == "cuda":
                return gpu(bench, args, out)
            bench.make_weights()
            rows, models = run_rows(bench, args.rows, args.quick)
            past = past_rows(bench, 16) if PAST in args.rows else []
            report = Report(bench, args.quick, rows, models, past, judge(rows), time.monotonic() - started)
    except (PackagesUnavailableError, ProgramFailedError) as error:
        print(f"encode: {error}", file=sys.stderr)
        return 2
    text, figures = report.to_text(), report.to_json()
    out(text)
    keep(figures, text, args.json, None if args.quick or set(args.rows) != set(ROWS) else "encode")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
