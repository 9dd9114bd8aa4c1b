"""The rows of benchmarks/encode.py: what they share, and the parts of encoding, each alone."""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.photographs import Photographs
from benchmarks.spark import REPO, ProcessTree, ProgramFailedError

MANY, FEW = 1_000, 128
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
