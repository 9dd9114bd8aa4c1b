"""Does a night's graph cost what changed, beside building it whole?

    python -m benchmarks.graph_increment            # a million and four million saves: 40 minutes, 1 GB of disk
    python -m benchmarks.graph_increment --quick    # 300 thousand, a night

**The claim.** A night of 1% changes takes at most a third of the seconds, and of the seconds of CPU, that building the graph of
the same state whole takes, at four million saves; four times the saves take it less than twice the seconds; it writes less than
a tenth of the bytes; and the lists are the same, edge for edge.

**The test.** Tables as nights leave them (the library's own files and commits): boards of log-normal size, pins that are
popular by a power law, a first day with everything. Each night changes 1% of the saves: nine tenths are new, a tenth of these
of new pins, some on new boards; the rest are taken back; and one pin and one board in ten thousand are deleted. Two lakes share
the tables, one makes its graph from the one before, the other whole; both through spark-submit, as Airflow submits them, one
after the other, by turns. Figures are medians of the nights, with the smallest and the largest. Spark's start is in them.

Exits with 0 where the claim holds, 1 where it does not. `--quick` judges the lists alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from benchmarks.spark import Run, submit
from embedding.cli import format_table
from embedding.contracts import BOARDS, NIGHTS, PINS, SAVES, TableContract
from embedding.tables.lake import Lake, partition_version, replace_partition
from embedding.tables.rows import write_row
from embedding.tables.staging import Stager
from embedding.taste import store
from embedding.taste.graph import BOARDS_SIDE, PINS_SIDE, Graph, GraphManifest

SIZES, QUICK_SIZES = (1_000_000, 4_000_000), (300_000,)
NIGHTS_A_SIZE, QUICK_NIGHTS = 3, 1
SHARE, REMOVED, DELETED = 0.01, 0.1, 1e-4
MOST_SHARE, MOST_GROWTH, MOST_BYTES = 1 / 3, 2.0, 0.1
EDGES_A_SHARD = 1_000_000
FIRST_DAY = date(2026, 1, 1)
VERSION = "pinclip-base-0123456789ab"
PACKAGES = ("pyspark", "deltalake", "pyarrow", "numpy")
Columns = dict[str, np.ndarray]


class SavedLake:
    """A lake of about so many saves, day after day. Everything is made from a seed."""

    def __init__(self, folder: Path, saves: int, seed: int = 1):
        self.lake, self._rng = Lake(str(folder / "lake")), np.random.default_rng(seed)
        self._boards, self._pins = saves // 25, saves // 5
        self.rows = 0
        self._kept: list[np.ndarray] = []
        """(user, pin, board) of the saves of each day (N, 3)."""
        sizes = np.minimum(10_000, self._rng.lognormal(np.log(14), 1.08, self._boards)).astype(np.int64) + 1
        self._popularity = np.cumsum(sizes) / sizes.sum()
        self.lake.create_all()
        boards = np.searchsorted(self._popularity, self._rng.random(saves))
        self._land(0, self._pairs(boards), np.empty((0, 3), np.int64), self._ids(0, self._pins), self._ids(0, self._boards))

    def add_night(self, number: int) -> None:
        """Lands a day of 1% changes."""
        changes = round(self.rows * SHARE)
        removed = round(changes * REMOVED)
        saves = self._pairs(np.searchsorted(self._popularity, self._rng.random(changes - removed)))
        new_pins, new_boards = len(saves) // 10, len(saves) // 100
        saves[:new_pins, 1] = 10 * (self._pins + np.arange(new_pins)) + 1
        saves[-new_boards:, 2] = 10 * (self._boards + np.arange(new_boards)) + 1
        back = self._kept[0][self._rng.choice(len(self._kept[0]), removed, replace=False)]
        new = self._ids(self._pins, self._pins + new_pins), self._ids(self._boards, self._boards + new_boards)
        old = (self._rng.choice(self._ids(0, n), max(1, round(n * DELETED)), replace=False) for n in (self._pins, self._boards))
        pins, boards = (np.concatenate(both) for both in zip(new, old, strict=True))
        self._land(number, saves, back, pins, boards, gone=(pins < 10 * self._pins, boards < 10 * self._boards))
        self._pins += new_pins
        self._boards += new_boards

    def _ids(self, first: int, last: int) -> np.ndarray:
        return 10 * np.arange(first, last) + 1

    def _pairs(self, boards: np.ndarray) -> np.ndarray:
        """(user, pin, board) of new saves: a board has one user, and most of its pins of one topic."""
        topics = max(10, self._pins // 2_000)
        topic = np.where(self._rng.random(len(boards)) < 0.2, self._rng.integers(0, topics, len(boards)), boards % topics)
        pins = np.minimum(2_000 * topic + (2_000 * self._rng.random(len(boards)) ** 3).astype(np.int64), self._pins - 1)
        return np.stack([boards // 4 + 1, 10 * pins + 1, 10 * boards + 1], axis=1)

    def _land(
        self,
        number: int,
        saves: np.ndarray,
        back: np.ndarray,
        pins: np.ndarray,
        boards: np.ndarray,
        gone: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        ds = (FIRST_DAY + timedelta(days=number)).isoformat()
        saves = np.unique(saves, axis=0)
        both = np.concatenate([saves, back])
        self._kept.append(saves)
        self.rows += len(saves)
        start = int(datetime.fromisoformat(ds).replace(tzinfo=UTC).timestamp())
        seconds = start + self._rng.integers(0, 86_400, len(both))
        of_saves = {
            "user_id": both[:, 0],
            "pin_id": both[:, 1],
            "board_id": both[:, 2],
            "saved_at": pa.array(1_000_000 * seconds, pa.int64()).cast(SAVES.schema.field("saved_at").type),
            "deleted": np.arange(len(both)) >= len(saves),
        }
        gone = gone or (np.zeros(len(pins), np.bool_), np.zeros(len(boards), np.bool_))
        self._write(PINS, ds, {"pin_id": pins, "deleted": gone[0]})
        self._write(BOARDS, ds, {"board_id": boards, "deleted": gone[1]})
        self._write(SAVES, ds, of_saves)
        empty = {pa.string(): "", pa.int64(): 0}
        row = {field.name: None if field.nullable else empty.get(field.type) for field in NIGHTS.schema}
        told = {"run_id": ds, "ds": ds, "embedding_version": VERSION, "status": "passed", "checked_at": datetime.now(UTC)}
        write_row(self.lake, NIGHTS, row | told)

    def _write(self, contract: TableContract, ds: str, columns: Columns) -> None:
        rows = len(columns["deleted"])
        constants = {"source_sha256": "0" * 64, "export_sha256": "0" * 64, "run_id": f"night-{ds}"}
        arrays = []
        for field in contract.file_schema:
            if field.name in columns:
                arrays.append(pa.array(columns[field.name], field.type))
            else:
                arrays.append(pa.repeat(pa.scalar(constants.get(field.name), field.type), rows))
        table = pa.table(arrays, schema=contract.file_schema)
        seen = partition_version(self.lake.open(contract), {"ds": ds})
        with Stager(self.lake.table_uri(contract), contract, {"ds": ds}) as stager:
            for first in range(0, rows, 100_000):
                stager.add(table.slice(first, 100_000))
            stager.flush()
        replace_partition(self.lake, contract, {"ds": ds}, stager.files, expected_version=seen, run_id=f"night-{ds}")


# -- one night, both ways --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A build: seconds from spark-submit to its end, CPU, memory, and the bytes of its files."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    written: int


@dataclass(frozen=True)
class Night:
    """`patched`: edges that do not stand in the base, as a share of the base's; the side that has more."""

    ds: str
    incremental: Way
    whole: Way
    edges: int
    added: int
    removed: int
    lists: dict[str, int]
    patched: float
    same: bool


def build(lake: Lake, run_id: str, *args: str) -> tuple[Way, GraphManifest]:
    """Builds the graph of the state that there is, and makes it live."""
    common = ["--home", lake.home, "--run-id", run_id, "--edges-a-shard", str(EDGES_A_SHARD)]
    run: Run = submit("jobs/build_graph.py", *common, *args)
    manifest = store.read_manifest(lake, store.graph_of_run(lake, run_id))
    store.publish_graph(lake, manifest.graph_id)
    written = sum(int(file["size_bytes"]) for file in manifest.files.values())
    return Way(run.seconds, run.cpu_s, run.peak_bytes, written), manifest


def same_lists(one: Graph, other: Graph) -> bool:
    """Whether all nodes of two graphs have the same neighbours at the same times, in the same order, by their ids."""
    found: list[tuple[np.ndarray, ...]] = []
    for graph in (one, other):
        for name in (PINS_SIDE, BOARDS_SIDE):
            side, there = graph.side(name), graph.boards if name == PINS_SIDE else graph.pins
            nodes = np.arange(len(side))
            nodes = nodes[side.degrees(nodes) > 0]
            ids = side.ids_of(nodes)
            lists = side.lists(nodes).take(np.argsort(ids))
            found.append((np.sort(ids), lists.offsets, there.ids_of(lists.neighbours), lists.saved))
    return all(
        np.array_equal(a, b) for mine, its in zip(found[:2], found[2:], strict=True) for a, b in zip(mine, its, strict=True)
    )


def measure(saves: int, nights: int, folder: Path) -> dict[str, Any]:
    """A lake of so many saves, and its nights both ways."""
    made = SavedLake(folder, saves)
    whole_lake = Lake(str(folder / "whole"))
    Path(whole_lake.home).mkdir()
    Path(whole_lake.home, "tables").symlink_to(Path(made.lake.home, "tables"))
    first, _ = build(made.lake, "first")
    measured = []
    for number in range(1, nights + 1):
        made.add_night(number)
        run_id = f"night-{number}"
        ways: dict[str, Callable[[], tuple[Way, GraphManifest]]] = {
            "incremental": lambda run_id=run_id: build(made.lake, run_id),  # type: ignore[misc]
            "whole": lambda run_id=run_id: build(whole_lake, run_id, "--whole"),  # type: ignore[misc]
        }
        order = list(ways) if number % 2 else list(ways)[::-1]
        found = {name: ways[name]() for name in order}
        manifest = found["incremental"][1]
        assert manifest.increment and manifest.base, manifest.why_whole
        graphs = [
            store.open_graph(lake, found[name][1].graph_id)
            for name, lake in (("incremental", made.lake), ("whole", whole_lake))
        ]
        night = Night(
            ds=manifest.days[-1],
            incremental=found["incremental"][0],
            whole=found["whole"][0],
            edges=manifest.sides["pins"].edges,
            added=manifest.increment.added,
            removed=manifest.increment.removed,
            lists=manifest.increment.lists,
            patched=max(edges / manifest.base.edges[side] for side, edges in manifest.increment.patched.items()),
            same=same_lists(graphs[0], graphs[1]),
        )
        print(
            f"{saves:,} saves, {night.ds}: {night.incremental.seconds:.1f} s, whole {night.whole.seconds:.1f} s",
            file=sys.stderr,
        )
        measured.append(night)
    return {"saves": saves, "first": asdict(first), "nights": [asdict(night) for night in measured]}


# -- what it says ----------------------------------------------------------------------------------------------------------


def median(size: dict[str, Any], way: str, figure: str) -> float:
    return float(statistics.median(night[way][figure] for night in size["nights"]))


def judge(sizes: Sequence[dict[str, Any]], quick: bool) -> list[Verdict]:
    verdicts = [
        Verdict(
            f"{size['saves']:,} saves: lists as those of a whole build, every night", all(n["same"] for n in size["nights"])
        )
        for size in sizes
    ]
    if quick:
        return verdicts
    small, large = sizes[0], sizes[-1]
    for figure, name in (("seconds", "seconds"), ("cpu_s", "seconds of CPU")):
        share = median(large, "incremental", figure) / median(large, "whole", figure)
        verdicts.append(Verdict(f"{share:.2f} of the whole build's {name}, at most {MOST_SHARE:.2f}", share <= MOST_SHARE))
    grown = median(large, "incremental", "seconds") / median(small, "incremental", "seconds")
    times = large["saves"] / small["saves"]
    verdicts.append(
        Verdict(f"{times:.0f} times the saves: {grown:.2f} times the seconds, below {MOST_GROWTH:g}", grown < MOST_GROWTH)
    )
    written = large["nights"][0]["incremental"]["written"] / large["nights"][0]["whole"]["written"]
    verdicts.append(Verdict(f"the first night writes {written:.3f} of the bytes, below {MOST_BYTES:g}", written < MOST_BYTES))
    return verdicts


def describe(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    head = (
        "saves",
        "edges",
        "night s",
        "CPU s",
        "whole s",
        "its CPU s",
        "GB",
        "its GB",
        "MB written",
        "its MB",
        "added",
        "removed",
        "patched",
    )
    lines = []
    for size in figures["sizes"]:
        nights = size["nights"]

        def spread(way: str, figure: str, nights: list[dict[str, Any]] = nights) -> str:
            values = [night[way][figure] for night in nights]
            return f"{statistics.median(values):.1f} ({min(values):.0f}-{max(values):.0f})"

        def most(way: str, figure: str, unit: float, nights: list[dict[str, Any]] = nights) -> str:
            return f"{max(night[way][figure] for night in nights) / unit:.1f}"

        lines.append(
            (
                f"{size['saves']:,}",
                f"{nights[-1]['edges']:,}",
                *(spread(way, figure) for way in ("incremental", "whole") for figure in ("seconds", "cpu_s")),
                *(most(way, "peak_bytes", 1e9) for way in ("incremental", "whole")),
                *(most(way, "written", 1e6) for way in ("incremental", "whole")),
                f"{nights[-1]['added']:,}",
                f"{nights[-1]['removed']:,}",
                f"{nights[-1]['patched']:.1%}",
            )
        )
    said = [f"{'HOLDS' if verdict.holds else 'MISSED'}  {verdict.sentence}" for verdict in verdicts]
    about = "Median (smallest-largest) of the nights; the largest of memory and of bytes; the last night's edges."
    return "\n".join([machine_line(figures["machine"]), "", about, format_table(lines, head), "", *said, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, one night; kept nowhere")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for all figures")
    args = parser.parse_args(argv)
    sizes, nights = (QUICK_SIZES, QUICK_NIGHTS) if args.quick else (SIZES, NIGHTS_A_SIZE)
    measured = []
    for saves in sizes:
        with tempfile.TemporaryDirectory(prefix="graph-increment-") as folder:
            measured.append(measure(saves, nights, Path(folder)))
    figures: dict[str, Any] = {"machine": describe_machine(PACKAGES), "sizes": measured}
    verdicts = judge(measured, args.quick)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    text = describe(figures, verdicts)
    print(text, end="")
    keep(figures, text, args.json, None if args.quick else "graph_increment")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
