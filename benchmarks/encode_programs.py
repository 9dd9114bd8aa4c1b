"""The programs of benchmarks/encode.py: pinlake and its peers, each from start-up to exit."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from benchmarks.encode_rows import PINLAKE, Bench, Row, cores, log
from benchmarks.peers.environments import PEERS, peer_environment
from benchmarks.spark import ProgramFailedError, Run, run, submit
from embedding.contracts import EXPORT_SCHEMAS, PIN_EMBEDDINGS, SUCCESS_MARKER, export_day_folder
from embedding.tables.lake import Lake

DS = "2026-11-18"

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
