"""The rows of benchmarks/encode.py: how each way to encode is measured."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from benchmarks.machine import describe_machine
from benchmarks.peers.environments import PEERS, peer_environment
from benchmarks.photographs import Photographs
from benchmarks.spark import REPO, ProcessTree, ProgramFailedError, Run, run, submit
from embedding.contracts import EXPORT_SCHEMAS, PIN_EMBEDDINGS, SUCCESS_MARKER, export_day_folder
from embedding.tables.lake import Lake

MANY, FEW = 1_000, 128
DS = "2026-11-18"
ARCHITECTURE = "ViT-B-32"
MODEL, DECODE, CEILING, PINLAKE = "model", "decode", "ceiling", "pinlake"

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
                rows.append(model_row(bench, variant, layout, processes, threads, batch, repetitions))
                log.info("%s: %.1f images/s", rows[-1].title, rows[-1].rate)
    return rows


def model_row(bench: Bench, variant: str, layout: str, processes: int, threads: int, batch: int, repetitions: int) -> Row:
    """The forward pass alone, in one way."""
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
