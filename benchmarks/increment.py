"""Does a night cost what changed, and not what there is?

    python -m benchmarks.increment            # about half an hour, 8 GB of disk
    python -m benchmarks.increment --quick    # 10 and 50 thousand pins

**The claim.** With a million pins of which 1% changed, everything of a night but the encoding itself takes under 60 s and 6 GB
on two cores; from ten to a hundred thousand pins, and from there to a million, it grows no faster than the table; and a night
that is run again encodes nothing and commits nothing.

**The test.** A lake of N pins after eight days, written by the library (benchmarks/synthetic_lake.py); then the exports of the
next days, each with 1% of the pins: half of them edited, a quarter new, the rest moved, repinned (contents that are known) or
deleted. Each night is land, embed and check through spark-submit, as Airflow submits them; its row in `nights` must say just
what the export was made of. Figures are medians of the nights, with the smallest and the largest.

The encoder is real, but of one narrow layer. What is subtracted is its stage: starting torch, decoding, the forward pass, and
the writing of the day's vectors, which is measured by itself and added again. The total, nothing subtracted, stands beside it.
Seconds of CPU tell what a busy machine did to the clock: where they are well below cores times seconds, programs waited.

Beside it, on the same lake: the look-up of known contents by a plain Spark join over the whole history, and the writing by
Delta MERGE into a table of one row a pin (benchmarks/increment_peers.py).

Exits with 0 where the claim holds, 1 where it does not. `--quick` judges growth and the rerun alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from benchmarks.spark import Run, run, submit
from benchmarks.synthetic_lake import Expected, SyntheticLake, day_name
from embedding.cli import format_table
from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, PINS, TABLES, TableContract
from embedding.tables.lake import DataFile, Lake, data_files, partition_is
from embedding.tables.scan import read_rows
from embedding.tables.staging import Stager

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (10_000, 50_000)
HISTORY_DAYS = 8
NIGHTS_A_SIZE, QUICK_NIGHTS = 3, 1
GOAL_S, GOAL_BYTES, GOAL_PINS = 60.0, 6 * 10**9, 1_000_000
PACKAGES = ("pyspark", "deltalake", "pyarrow", "torch", "numpy")


@dataclass(frozen=True)
class Night:
    """One night. Seconds are wall-clock from spark-submit to its end; `encode_s` is the stage that is not counted."""

    ds: str
    land_s: float
    embed_s: float
    check_s: float
    encode_s: float
    write_s: float
    cpu_s: float
    peak_bytes: int
    encoded: int
    reused: int
    landed: int

    @property
    def total_s(self) -> float:
        return self.land_s + self.embed_s + self.check_s

    @property
    def overhead_s(self) -> float:
        """Everything but the encoding: the total without the encoding stage, but with the writing that is part of it."""
        return self.total_s - self.encode_s + self.write_s


@dataclass(frozen=True)
class Bytes:
    """What a night's look-ups read of the history, and what it wrote, as the files' footers say (compressed)."""

    history_rows: int
    hashes: int
    pin_ids: int
    vectors: int
    written_rows: int
    written: int


@dataclass(frozen=True)
class Size:
    """All that was measured at one number of pins."""

    pins: int
    changed: int
    nights: list[Night]
    rerun: Night
    rerun_commits: dict[str, int]
    bytes: Bytes
    peers: dict[str, dict[str, float]]

    def median(self, value: Callable[[Night], float]) -> float:
        return statistics.median(value(night) for night in self.nights)

    def spread(self, value: Callable[[Night], float]) -> str:
        values = [value(night) for night in self.nights]
        return f"{statistics.median(values):.1f} ({min(values):.0f}-{max(values):.0f})"


class WrongNightError(Exception):
    """A night did not find what its export was made of: its seconds mean nothing."""


def run_night(lake: SyntheticLake, ds: str, run_id: str) -> Night:
    """Lands, embeds and checks a day."""
    common = ["--home", lake.lake.home, "--ds", ds, "--run-id", run_id]
    land = submit("jobs/land_exports.py", *common, "--exports", str(lake.exports))
    embed = submit("jobs/embed_pins.py", *common, "--encoder", lake.version)
    check = submit("jobs/check_night.py", *common, "--encoder", lake.version)
    rows = read_rows(lake.lake.open(NIGHTS)).to_pylist()
    row = next(row for row in rows if row["run_id"] == run_id and row["ds"] == ds)
    runs: list[Run] = [land, embed, check]
    return Night(
        ds=ds,
        land_s=land.seconds,
        embed_s=embed.seconds,
        check_s=check.seconds,
        encode_s=row["encode_s"] or 0.0,
        write_s=_seconds_of_writing(lake, ds) if row["encode_s"] else 0.0,
        cpu_s=sum(one.cpu_s for one in runs),
        peak_bytes=max(one.peak_bytes for one in runs),
        encoded=row["encoded"],
        reused=row["reused"],
        landed=row["landed"],
    )


def _seconds_of_writing(lake: SyntheticLake, ds: str) -> float:
    """Writes the day's vectors once more, somewhere else, on one core."""
    table = lake.lake.open(PIN_EMBEDDINGS)
    rows = read_rows(table, where=partition_is(ds=ds, embedding_version=lake.version))
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        with Stager(folder, PIN_EMBEDDINGS, {"embedding_version": lake.version, "ds": ds}) as stager:
            stager.add(rows)
            stager.flush()
        return time.monotonic() - started


def check_expected(night: Night, expected: Expected) -> None:
    found = Expected(night.landed, expected.deleted, night.encoded, night.reused)
    if found != expected:
        raise WrongNightError(f"{night.ds}: expected {expected}, found {found}")


def column_bytes(files: Sequence[DataFile], column: str) -> int:
    """Compressed bytes of a column in data files."""
    total = 0
    for file in files:
        with pq.ParquetFile(file.uri) as parquet:
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        total += sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column)
    return total


def count_bytes(lake: Lake, ds: str) -> Bytes:
    def of(contract: TableContract, before: bool) -> list[DataFile]:
        return data_files(lake.open(contract), lambda p: str(p["ds"]) < ds if before else p["ds"] == ds)

    vectors, pins = of(PIN_EMBEDDINGS, before=True), of(PINS, before=True)
    written = [file for contract in TABLES.values() if contract is not NIGHTS for file in of(contract, before=False)]
    return Bytes(
        history_rows=sum(file.num_rows for file in vectors),
        hashes=column_bytes(vectors, "content_sha256"),
        pin_ids=column_bytes(pins, "pin_id"),
        vectors=column_bytes(vectors, "embedding"),
        written_rows=sum(file.num_rows for file in written),
        written=sum(file.size_bytes for file in written),
    )


def run_peers(lake: SyntheticLake, ds: str, folder: Path) -> dict[str, dict[str, float]]:
    common = ["--home", lake.lake.home, "--version", lake.version, "--ds", ds]
    program = "benchmarks/increment_peers.py"
    runs = {
        "scan": submit(program, "scan", *common),
        "merge": run([sys.executable, "-m", "benchmarks.increment_peers", "merge", *common, "--table", str(folder / "merged")]),
    }
    return {name: {**json.loads(_last_json(one.output)), "peak_bytes": one.peak_bytes} for name, one in runs.items()}


def _last_json(output: str) -> str:
    return next(line for line in reversed(output.splitlines()) if line.startswith("{"))


def measure(pins: int, nights: int, folder: Path) -> Size:
    """A lake of `pins` pins, its nights, a rerun of the last, and the peers."""
    folder.mkdir(parents=True)
    lake = SyntheticLake(folder, pins)
    lake.write_history(HISTORY_DAYS)
    measured: list[Night] = []
    for number in range(HISTORY_DAYS + 1, HISTORY_DAYS + 1 + nights):
        expected = lake.write_export(number)
        night = run_night(lake, day_name(number), f"night-{number}")
        check_expected(night, expected)
        print(f"{pins:,} pins, {night.ds}: {night.overhead_s:.1f} s and {night.encode_s:.1f} s of encoding", file=sys.stderr)
        measured.append(night)
    tables = (*(contract for contract in TABLES.values() if contract is not NIGHTS),)
    before = {contract.name: lake.lake.open(contract).version() for contract in tables}
    again = run_night(lake, measured[-1].ds, "again")
    commits = {contract.name: lake.lake.open(contract).version() - before[contract.name] for contract in tables}
    return Size(
        pins=pins,
        changed=expected.landed + expected.deleted,
        nights=measured,
        rerun=again,
        rerun_commits=commits,
        bytes=count_bytes(lake.lake, measured[-1].ds),
        peers=run_peers(lake, measured[-1].ds, folder),
    )


def judge(sizes: Sequence[Size]) -> list[Verdict]:
    """The claim's parts. The goals of seconds and bytes are about a million pins; where none was measured they are left out."""
    verdicts = []
    for size in sizes:
        if size.pins == GOAL_PINS:
            overhead, peak = size.median(lambda n: n.overhead_s), max(night.peak_bytes for night in size.nights)
            verdicts.append(Verdict(f"{overhead:.1f} s but for the encoding; goal under {GOAL_S:.0f}", overhead < GOAL_S))
            verdicts.append(Verdict(f"{peak / 1e9:.1f} GB at most; goal under {GOAL_BYTES / 1e9:.0f}", peak < GOAL_BYTES))
    for small, large in pairwise(sizes):
        grown = large.median(lambda n: n.overhead_s) / small.median(lambda n: n.overhead_s)
        table = large.pins / small.pins
        sentence = f"{small.pins:,} to {large.pins:,} pins: {grown:.2f} times the seconds; goal at most {table:.0f} times"
        verdicts.append(Verdict(sentence, grown <= table))
    for size in sizes:
        commits = sum(size.rerun_commits.values())
        sentence = f"{size.pins:,} pins, run again: {size.rerun.encoded} encoded, {commits} commits; goal none"
        verdicts.append(Verdict(sentence, size.rerun.encoded == 0 and commits == 0))
    return verdicts


def nights_table(sizes: Sequence[Size]) -> str:
    """What each part of a night took."""
    rows = [
        (
            f"{size.pins:,}",
            f"{size.changed:,}",
            *(size.spread(value) for value in _NIGHT_COLUMNS.values()),
            f"{max(night.peak_bytes for night in size.nights) / 1e9:.1f}",
            f"{size.rerun.total_s:.1f}",
        )
        for size in sizes
    ]
    return format_table(rows, ("pins", "changed", *_NIGHT_COLUMNS, "peak GB", "again, s"))


def bytes_table(sizes: Sequence[Size]) -> str:
    """What look-ups read, and what was written."""
    rows = [
        (
            f"{size.pins:,}",
            size.bytes.history_rows,
            *(_mb(value) for value in (size.bytes.hashes, size.bytes.pin_ids, size.bytes.vectors)),
            size.bytes.written_rows,
            _mb(size.bytes.written),
        )
        for size in sizes
    ]
    return format_table(rows, ("pins", "history rows", "hashes MB", "pin ids MB", "vectors MB", "rows written", "MB written"))


def peers_table(sizes: Sequence[Size]) -> str:
    """Other ways to look up and to write."""
    rows = [
        (
            f"{size.pins:,}",
            f"{size.median(lambda n: n.embed_s - n.encode_s):.1f}",
            size.peers["scan"]["seconds"],
            f"{size.peers['scan']['peak_bytes'] / 1e9:.1f}",
            _mb(size.bytes.written),
            size.peers["merge"]["seconds"],
            _mb(int(size.peers["merge"]["written_bytes"])),
            f"{size.peers['merge']['peak_bytes'] / 1e9:.1f}",
        )
        for size in sizes
    ]
    head = ("pins", "ours s", "plain scan s", "its GB", "ours MB", "MERGE s", "its MB", "its GB")
    return format_table(rows, head)


def as_text(sizes: Sequence[Size], verdicts: Sequence[Verdict], machine: dict[str, Any], quick: bool) -> str:
    """The tables, for people."""
    lines = [
        "Everything of a night but the encoding, 1% of the pins changed" + (" (quick)" if quick else ""),
        machine_line(machine),
        "",
        "Seconds: median (smallest-largest) of the nights. `overhead` is the total less `encode`, with the writing of vectors.",
        nights_table(sizes),
        "",
        "What a night's look-ups may read of the history, and what it wrote (compressed bytes of the files).",
        "Vectors are read of row groups that hold a known content; where known contents are many and anywhere, that is all.",
        bytes_table(sizes),
        "",
        "Peers. `ours s` is the whole embedding program but for its encoding stage, start-up included; the plain scan is the",
        "join alone, MERGE the writing alone.",
        peers_table(sizes),
        "",
        *(f"{'HOLDS ' if verdict.holds else 'MISSED'}  {verdict.sentence}" for verdict in verdicts),
    ]
    return "\n".join(lines) + "\n"


_NIGHT_COLUMNS: dict[str, Callable[[Night], float]] = {
    "land": lambda n: n.land_s,
    "embed": lambda n: n.embed_s,
    "check": lambda n: n.check_s,
    "encode": lambda n: n.encode_s,
    "overhead": lambda n: n.overhead_s,
    "total": lambda n: n.total_s,
    "CPU s": lambda n: n.cpu_s,
}


def _mb(size_bytes: int) -> float:
    return round(size_bytes / 1e6, 1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes, a night each; kept nowhere")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--work", type=Path, help="a folder on a disk with 8 GB free; default the system's")
    args = parser.parse_args(argv)
    sizes, nights = (QUICK_SIZES, QUICK_NIGHTS) if args.quick else (SIZES, NIGHTS_A_SIZE)
    measured = []
    for pins in sizes:
        with tempfile.TemporaryDirectory(dir=args.work, prefix="increment-") as folder:
            measured.append(measure(pins, nights, Path(folder) / "lake"))
    verdicts, machine = judge(measured), describe_machine(PACKAGES)
    text = as_text(measured, verdicts, machine, args.quick)
    print(text, end="")
    figures = {
        "machine": machine,
        "sizes": [asdict(size) for size in measured],
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    keep(figures, text, args.json, None if args.quick else "increment")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
