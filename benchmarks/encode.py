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
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.environments import PEERS, peer_environment
from benchmarks.photographs import Photographs, fetch_photographs
from benchmarks.spark import REPO, ProcessTree, ProgramFailedError, Run, run, submit
from demo.debian import PackagesUnavailableError
from embedding.cli import format_table
from embedding.contracts import EXPORT_SCHEMAS, PIN_EMBEDDINGS, SUCCESS_MARKER, export_day_folder
from embedding.tables.lake import Lake

GOAL_CEILING, GOAL_DOCUMENTED, GOAL_TUNED = 0.9, 2.0, 1.0
MANY, FEW = 1_000, 128
QUICK_MANY, QUICK_FEW = 96, 32
DS = "2026-11-18"
ARCHITECTURE = "ViT-B-32"
RESULTS = Path(__file__).parent / "results" / "encode"
PACKAGES = ("torch", "open_clip_torch", "pillow", "pyspark", "deltalake", "pyarrow")

MODEL, DECODE, CEILING, PINLAKE, PAST = "model", "decode", "ceiling", "pinlake", "past"
ROWS = (MODEL, DECODE, PINLAKE, *PEERS, PAST)
BATCHES = (8, 16, 32)
PAST_IMAGES = 512

log = logging.getLogger("pinlake")


@dataclass(frozen=True)
class Sizes:
    """How many photographs, how many seconds a part is measured, and how often what is judged."""

    many: int
    few: int
    seconds: float
    repetitions: int


@dataclass
class Row:
    """What was measured of one way. rates: images/s, a repetition each. startup_s: of a program; None of a part."""

    key: str
    title: str
    rates: list[float]
    peak_bytes: int
    startup_s: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Images/s: the median."""
        return statistics.median(self.rates)

    def cells(self) -> tuple[str, ...]:
        """As text."""
        spread = f"{min(self.rates):.1f}-{max(self.rates):.1f}" if len(self.rates) > 1 else "one run"
        startup = "-" if self.startup_s is None else f"{self.startup_s:.1f}"
        return self.title, f"{self.rate:.1f}", spread, f"{self.peak_bytes / 2**30:.2f}", startup

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"rate": self.rate}


@dataclass(frozen=True)
class Verdict:
    """One comparison of the claim."""

    sentence: str
    holds: bool


# -- what all rows share -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The photographs, the weights and a folder to work in."""

    photographs: Photographs
    cache: Path
    work: Path
    sizes: Sizes

    @property
    def weights(self) -> Path:
        return self.cache / "encode" / f"{ARCHITECTURE.lower()}-random.pt"

    def folder(self, count: int) -> Path:
        """A folder of the first `count` photographs."""
        folder = self.work / f"photographs-{count}"
        if not folder.is_dir():
            self.photographs.link_into(folder, count)
        return folder

    def config(self, jpeg_decoding: str = "scaled") -> Path:
        """pinlake's config of the encoder."""
        path = self.work / f"{jpeg_decoding}.json"
        values = {
            "name": f"{ARCHITECTURE.lower()}-random",
            "model": ARCHITECTURE,
            "weights": [{"file": str(self.weights)}],
            "precision": "fp32",
            "jpeg_decoding": jpeg_decoding,
        }
        path.write_text(json.dumps(values), encoding="utf-8")
        return path

    def make_weights(self) -> None:
        """Random weights with a fixed seed, once for all rows and runs. In a process: torch stays out of this one."""
        if self.weights.is_file():
            return
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.weights.with_suffix(".unfinished")
        program = (
            "import sys, torch, open_clip; torch.manual_seed(0); "
            f"torch.save(open_clip.create_model({ARCHITECTURE!r}).state_dict(), sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", program, str(unfinished)], check=True, capture_output=True)
        unfinished.rename(self.weights)


def cores() -> int:
    return int(describe_machine()["cores"])


# -- parts ---------------------------------------------------------------------------------------------------------------------


def measure_parts(commands: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Runs programs of benchmarks/encode_parts.py side by side, from one start: their images/s, and the sum of their peaks."""
    with ExitStack() as stack:
        programs = [_start_part(command) for command in commands]
        for program in programs:
            stack.callback(program.kill)
        trees = [stack.enter_context(ProcessTree(program.pid)) for program in programs]
        for program in programs:
            assert program.stdout is not None
            if program.stdout.readline().strip() != "ready":
                raise ProgramFailedError(program.communicate()[1][-2000:])
        said = []
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        for program in programs:
            output, errors = program.communicate()
            if program.returncode:
                raise ProgramFailedError(errors[-2000:])
            said.append(json.loads(output))
    # All started together: images of all by the time that the slowest took.
    return sum(one["images"] for one in said) / max(one["seconds"] for one in said), sum(tree.peak_bytes for tree in trees)


def _start_part(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.encode_parts", *command],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def layouts() -> dict[str, tuple[int, int]]:
    """Processes and threads of each."""
    count = cores()
    return {f"1 process x {count} threads": (1, count), f"{count} processes x 1 thread": (count, 1)}


def model_rows(
    bench: Bench, variants: Sequence[str], batches: Sequence[int], repetitions: int, some_layouts: int | None = None
) -> list[Row]:
    """The forward pass alone: of each variant, layout (or the first some of them) and batch size one row."""
    rows = []
    for variant in variants:
        for layout, (processes, threads) in list(layouts().items())[:some_layouts]:
            for batch in batches:
                rows.append(_model_row(bench, variant, layout, processes, threads, batch, repetitions))
                log.info("%s: %.1f images/s", rows[-1].title, rows[-1].rate)
    return rows


def _model_row(bench: Bench, variant: str, layout: str, processes: int, threads: int, batch: int, repetitions: int) -> Row:
    command = ["model", "--config", str(bench.config()), "--variant", variant, "--batch", str(batch)]
    command += ["--threads", str(threads), "--seconds", str(bench.sizes.seconds)]
    found = [measure_parts([command] * processes) for _ in range(repetitions)]
    title = f"model alone, {variant}, {layout}, batch {batch}"
    notes = {"variant": variant, "layout": layout, "batch": batch}
    return Row(MODEL, title, [rate for rate, _ in found], max(peak for _, peak in found), notes=notes)


def decode_rows(bench: Bench) -> list[Row]:
    """Decoding alone, both ways, in both layouts: the better layout's row of each."""
    rows = []
    folder = bench.folder(bench.sizes.many)
    for way in ("exact", "scaled"):
        found = []
        for layout, (processes, threads) in layouts().items():
            shares = [f"{share}/{processes}" for share in range(processes)]
            common = ["decode", "--config", str(bench.config(way)), "--threads", str(threads), "--images", str(folder)]
            tries = [measure_parts([[*common, "--share", share] for share in shares]) for _ in range(bench.sizes.repetitions)]
            title = f"decoding alone, {way}, {layout}"
            found.append(Row(DECODE, title, [rate for rate, _ in tries], max(peak for _, peak in tries), notes={"way": way}))
        rows.append(max(found, key=lambda row: row.rate))
        log.info("%s: %.1f images/s", rows[-1].title, rows[-1].rate)
    return rows


def ceiling_row(models: Sequence[Row], decodes: Sequence[Row]) -> Row:
    """The best rate of both together, and the memory of the larger."""
    model = max((row for row in models if not row.notes["variant"].startswith("bf16")), key=lambda r: r.rate)
    decode = max(decodes, key=lambda row: row.rate)
    rate = 1 / (1 / model.rate + 1 / decode.rate)
    return Row(CEILING, "ceiling: both on the same cores", [rate], max(model.peak_bytes, decode.peak_bytes))


# -- programs ------------------------------------------------------------------------------------------------------------------

Program = Callable[[int], Run]
"""Encodes so many photographs, from start-up to exit."""


def measure_program(bench: Bench, key: str, title: str, program: Program, repetitions: int) -> Row:
    """A program's steady state, by what `many` photographs cost more than `few`."""
    sizes = bench.sizes
    fews, manys = [], []
    for _ in range(repetitions):
        fews.append(program(sizes.few))
        manys.append(program(sizes.many))
        log.info("%s: %d in %.1f s, %d in %.1f s", title, sizes.few, fews[-1].seconds, sizes.many, manys[-1].seconds)
    few_s = statistics.median(one.seconds for one in fews)
    # A rate below zero says that the machine was busy with something else: it is shown, and misses.
    rates = [(sizes.many - sizes.few) / (one.seconds - few_s) for one in manys]
    startup_s = few_s - sizes.few / statistics.median(rates)
    cpu = statistics.median(one.cpu_s for one in manys)
    notes = {"few_s": [one.seconds for one in fews], "many_s": [one.seconds for one in manys], "cpu_s": cpu}
    return Row(key, title, rates, max(one.peak_bytes for one in manys), startup_s, notes)


def pinlake_row(bench: Bench, repetitions: int) -> Row:
    """pinlake through Spark, with its commits; how long the encode stage took, and landing, is told beside it."""
    stages: dict[int, list[float]] = {}
    landing: dict[int, list[float]] = {}

    def program(count: int) -> Run:
        home = Path(tempfile.mkdtemp(prefix="lake-", dir=bench.work))
        write_day(home / "exports", bench.folder(count))
        common = ["--home", str(home), "--ds", DS, "--run-id", "encode"]
        master = f"local[{cores()}]"
        landing.setdefault(count, []).append(submit("jobs/land_exports.py", *common, master=master).seconds)
        embedded = submit("jobs/embed_pins.py", *common, "--encoder", str(bench.config()), master=master)
        _check_count(count, embedded_rows(home), embedded)
        statistics_file = next((home / "runs").rglob("embed-*.json"))
        stages.setdefault(count, []).append(float(json.loads(statistics_file.read_text())["encode_s"]))
        shutil.rmtree(home)
        return embedded

    row = measure_program(bench, PINLAKE, f"pinlake, Spark local[{cores()}] with Delta commits", program, repetitions)
    sizes = bench.sizes
    stage = {count: statistics.median(seconds) for count, seconds in stages.items()}
    row.notes |= {
        "encode_stage_s": stages,
        "encode_stage_rate": (sizes.many - sizes.few) / (stage[sizes.many] - stage[sizes.few]),
        "outside_encode_stage_s": statistics.median(row.notes["many_s"]) - stage[sizes.many],
        "landing_s": statistics.median(landing[sizes.many]),
    }
    return row


def write_day(exports: Path, folder: Path) -> None:
    """An export day (docs/exports.md) whose pins are a folder's pictures, without any text."""
    day = Path(export_day_folder(str(exports), DS))
    now = datetime(2026, 11, 18, 12, tzinfo=UTC)
    pins = [
        {"pin_id": number, "board_id": 1, "user_id": 1, "image_uri": path.absolute().as_uri(), "updated_at": now}
        for number, path in enumerate(sorted(folder.iterdir()), start=1)
    ]
    entities: dict[str, list[dict[str, Any]]] = {"pins": pins, "boards": [{"board_id": 1, "user_id": 1}]}
    for entity, rows in entities.items():
        (day / entity).mkdir(parents=True)
        columns = pa.schema([column for column in EXPORT_SCHEMAS[entity] if column.name in rows[0]])
        pq.write_table(pa.Table.from_pylist(rows, schema=columns), day / entity / "part-0.parquet")
    (day / SUCCESS_MARKER).touch()


def embedded_rows(home: Path) -> int:
    """Vectors of the lake's `pin_embeddings`."""
    return len(Lake(str(home)).open(PIN_EMBEDDINGS).to_pyarrow_table(columns=["pin_id"]))


def peer_rows(bench: Bench, name: str) -> list[Row]:
    """A peer as documented, and tuned: one run each."""
    python = peer_environment(name, bench.cache / "peers")
    return [
        measure_program(bench, f"{name}/{way}", f"{name}, {way}", peer_program(bench, name, python, way == "tuned"), 1)
        for way in ("documented", "tuned")
    ]


def peer_program(bench: Bench, name: str, python: Path, tuned: bool) -> Program:
    """The peer's program of benchmarks/peers."""

    def program(count: int) -> Run:
        out = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=bench.work)) / "out"
        found = run(
            PEERS[name].command(python, bench.folder(count), bench.weights, out, tuned), environment=PEERS[name].variables
        )
        _check_count(count, vectors_in(out), found)
        shutil.rmtree(out.parent)
        return found

    return program


def vectors_in(out: Path) -> int:
    """Rows of a folder of Parquet files, or of NumPy ones as clip-retrieval writes them."""
    if list(out.rglob("*.parquet")) and not list(out.rglob("*.npy")):
        return int(pads.dataset(out, format="parquet").count_rows())
    return sum(len(np.load(path, mmap_mode="r")) for path in out.rglob("*.npy"))


def _check_count(wanted: int, found: int, program: Run) -> None:
    if found != wanted:
        raise ProgramFailedError(f"{found} vectors of {wanted} photographs; the program said:\n{program.output[-3000:]}")


# -- past the ceiling ----------------------------------------------------------------------------------------------------------

NEIGHBOURS = 10
REAL_ENCODER = "pinclip-base"
"""An encoder of the repository whose image tower has real weights, of another architecture."""


def past_rows(bench: Bench, batch: int) -> list[dict[str, Any]]:
    """What goes past the ceiling: a title, images/s (None where only the loss can be told) and neighbours kept."""
    random, real = f"{ARCHITECTURE}, random weights", f"{REAL_ENCODER}'s image tower, real weights"
    found: list[dict[str, Any]] = []
    for variant, about in (("int8", "linear layers in int8"), ("compiled", "torch.compile")):
        if variant == "compiled" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
            found.append({"title": f"{about}: no C++ compiler here", "rate": None, "neighbours_kept": None})
            continue
        rows = [
            _model_row(bench, variant, layout, processes, threads, batch, 1)
            for layout, (processes, threads) in layouts().items()
        ]
        best = max(rows, key=lambda row: row.rate)
        kept = neighbours_kept(bench, str(bench.config()), variant)
        layout = best.notes["layout"]
        found.append({"title": f"{about} ({random}), {layout}", "rate": best.rate, "neighbours_kept": kept})
    for config, about in ((str(bench.config()), random), (REAL_ENCODER, real)):
        kept = neighbours_kept(bench, config, "int8-weights")
        found.append({"title": f"weights rounded to int8 ({about}), computed in fp32", "rate": None, "neighbours_kept": kept})
    return found


def neighbours_kept(bench: Bench, config: str, variant: str) -> float:
    """The share of each photograph's ten nearest that are the same by fp32 and by the variant."""
    nearest = [_nearest(_vectors(bench, config, way)) for way in ("fp32", variant)]
    shared = [len(set(one) & set(other)) for one, other in zip(*nearest, strict=True)]
    return statistics.fmean(shared) / NEIGHBOURS


def _vectors(bench: Bench, config: str, variant: str) -> npt.NDArray[np.float32]:
    out = bench.work / f"vectors-{Path(config).stem}-{variant}.npy"
    if not out.exists():
        folder = bench.folder(min(bench.sizes.many, PAST_IMAGES))
        command = ["vectors", "--config", config, "--variant", variant, "--images", str(folder), "--out", str(out)]
        measure_parts([[*command, "--threads", str(cores())]])
    return np.asarray(np.load(out), np.float32)


def _nearest(vectors_ND: npt.NDArray[np.float32]) -> list[list[int]]:
    similar_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(similar_NN, -np.inf)
    return [list(row) for row in np.argsort(-similar_NN, axis=1)[:, : min(NEIGHBOURS, len(similar_NN) - 1)].tolist()]


# -- the claim -----------------------------------------------------------------------------------------------------------------


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """What holds of the claim, as far as its rows were measured."""
    by_key = {row.key: row for row in rows}
    if PINLAKE not in by_key:
        return []
    own = by_key[PINLAKE].rate
    verdicts = []
    if CEILING in by_key:
        verdicts.append(_verdict("of the ceiling", own, by_key[CEILING], GOAL_CEILING))
    documented = [row for row in rows if row.key.endswith("/documented")]
    verdicts += [_verdict(f"times {row.title}", own, row, GOAL_DOCUMENTED) for row in documented]
    if peers := [row for row in rows if "/" in row.key]:  # as documented they compute in fp32 too: tuning may have failed
        best = max(peers, key=lambda row: row.rate)
        verdicts.append(_verdict(f"times the best at equal precision ({best.title})", own, best, GOAL_TUNED))
    return verdicts


def _verdict(what: str, own: float, other: Row, goal: float) -> Verdict:
    share = own / other.rate
    holds = 0 < goal <= share
    return Verdict(f"{'HOLDS' if holds else 'MISSED'}: {share:.2f} {what} ({other.rate:.1f} images/s); goal {goal:g}", holds)


# -- output --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All that is told, as values."""

    bench: Bench
    quick: bool
    rows: list[Row]
    models: list[Row]
    past: list[dict[str, Any]]
    verdicts: list[Verdict]
    seconds: float

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        sizes, photographs = self.bench.sizes, self.bench.photographs
        return {
            "claim": "steady state: 0.9 of the ceiling, 2 times each peer as documented, level with the best peer",
            "holds": self.holds,
            "quick": self.quick,
            "machine": describe_machine(PACKAGES),
            "seconds": round(self.seconds, 1),
            "photographs": {"set": photographs.digest(sizes.many), "sizes": asdict(sizes), "packages": photographs.counts},
            "peers": {name: list(peer.requirements) for name, peer in PEERS.items()},
            "rows": [row.to_json() for row in self.rows],
            "models": [row.to_json() for row in self.models],
            "past_the_ceiling": self.past,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }

    def to_text(self) -> str:
        """Tables for people."""
        sizes = self.bench.sizes
        blocks = [
            "QUICK RUN: too few photographs, not to be cited" if self.quick else "",
            f"{ARCHITECTURE} on {sizes.many} JPEG photographs (set {self.bench.photographs.digest(sizes.many)}), fp32, "
            f"{cores()} cores; steady state from {sizes.few} to {sizes.many} images",
            format_table([row.cells() for row in self.rows], ("", "images/s", "spread", "peak GiB", "start-up s")),
            self._pinlake(),
            "The model alone, in all layouts" if self.models else "",
            format_table([row.cells()[:4] for row in self.models], ("", "images/s", "spread", "peak GiB"))
            if self.models
            else "",
            *self._past(),
            "The claim\n" + "\n".join(f"  {verdict.sentence}" for verdict in self.verdicts) if self.verdicts else "",
            f"Measured in {self.seconds:.0f} s on\n{machine_line(describe_machine(PACKAGES))}",
        ]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def _pinlake(self) -> str:
        for row in self.rows:
            if row.key == PINLAKE:
                notes = row.notes
                return (
                    f"pinlake: the encode stage alone reaches {notes['encode_stage_rate']:.1f} images/s in the steady state; "
                    f"of {self.bench.sizes.many} images the program takes {notes['outside_encode_stage_s']:.1f} s outside it "
                    f"(session, hashing, grouping, commits), and landing the day {notes['landing_s']:.1f} s more."
                )
        return ""

    def _past(self) -> list[str]:
        if not self.past:
            return []

        def cell(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        lines = [(one["title"], cell(one["rate"], ".1f"), cell(one["neighbours_kept"], ".1%")) for one in self.past]
        count = min(self.bench.sizes.many, PAST_IMAGES)
        head = ("", "images/s", "neighbours kept")
        return [f"Past the ceiling: told, not judged; ten nearest of {count} photographs", format_table(lines, head)]


def keep_results(figures: dict[str, Any], text: str, results: Path = RESULTS) -> None:
    """The last full run, in benchmarks/results: a table for people, and all figures."""
    results.parent.mkdir(parents=True, exist_ok=True)
    results.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    results.with_suffix(".txt").write_text(text, encoding="utf-8")


# -- the run -------------------------------------------------------------------------------------------------------------------


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
    found = _model_row(bench, variant, layout, processes, threads, batch, bench.sizes.repetitions)
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
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not args.quick:
        keep_results(figures, text, RESULTS.with_name("encode_gpu"))
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
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not args.quick and set(args.rows) == set(ROWS):
        keep_results(figures, text)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
