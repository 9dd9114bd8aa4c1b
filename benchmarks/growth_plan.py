"""A night over a billion pins, reckoned from kept measurements and named assumptions: the table of docs/operations.md.

Nothing of that size was run. What was measured here is taken from benchmarks/results, a row costing what one more row cost at
the largest size that was measured; a core is one of that machine. What could not be measured here (GPUs, an object store, what
people charge) is an assumption: a field of `Assumptions`, and an option of `python -m benchmarks.growth --plan`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import ceil, floor, log10
from typing import Any

from benchmarks.growth_fit import Growth
from benchmarks.results_of import RESULTS_FOLDER
from embedding.tables.staging import MAX_ROWS_A_FILE
from embedding.taste.graph import EDGES_A_SHARD

HOUR = 3_600
LOOK_UPS_US = (0.25, 0.6, 2.8, 0.25, 0.6)
"""A row of history: reading its hash, finding it, reading its vector (by hand, over a million rows: docs/scale.md); reading and
finding its pin's id in the check, at most as much as its hash."""
RELATED_BYTES = 50 * (8 + 4)
VECTOR_BYTES = 1_100
NIGHTS_A_YEAR = 365


@dataclass(frozen=True)
class Assumptions:
    """What the plan takes for granted. A platform's own figures go here; prices are list prices in US dollars."""

    pins: float = 1e9
    changed: float = 4e7
    known: float = 0.25
    saves_a_pin: float = 5
    saves_a_board: float = 25
    users: float = 3e8
    picture_kb: float = 100
    gpu_images_a_second: float = 875
    encode_hours: float = 1
    hosts: float = 16
    host_cores: float = 32
    host_memory_gib: float = 256
    store_gb_a_second: float = 10
    queries_a_second: float = 1_000
    gpu_dollars: float = 4.10
    host_dollars: float = 2.1
    get_dollars: float = 0.4e-6
    gb_month_dollars: float = 0.023


SOURCES = {
    "pins": "pins of the platform",
    "changed": "new, changed or moved pins a night",
    "known": "share of those whose content has a vector",
    "saves_a_pin": "saves of a pin, as in benchmarks/graph_increment.py",
    "saves_a_board": "saves on a board, as there",
    "users": "users that have saves",
    "picture_kb": "kilobytes of a picture in the store",
    "gpu_images_a_second": "images a second and GPU: clip-retrieval's README, 7,000 with ViT-B/32 on eight A100",
    "encode_hours": "hours in which the encoding is to be done",
    "hosts": "hosts without GPUs",
    "host_cores": "cores of one",
    "host_memory_gib": "GiB of one",
    "store_gb_a_second": "what the store gives all hosts together",
    "queries_a_second": "searches a second",
    "gpu_dollars": "of a GPU and hour: AWS p4d.24xlarge, $32.77 for eight A100",
    "host_dollars": "of a host and hour: list price of 32 cores with 256 GiB, as in benchmarks/index.py",
    "get_dollars": "of a GET: S3 Standard, $0.0004 a thousand",
    "gb_month_dollars": "of a GB and month: S3 Standard",
}


def add_assumptions(parser: argparse.ArgumentParser) -> None:
    """An option for each assumption."""
    group = parser.add_argument_group("assumptions of --plan")
    for field in fields(Assumptions):
        said = f"{SOURCES[field.name]} (default %(default)s)"
        group.add_argument("--" + field.name.replace("_", "-"), type=float, default=field.default, help=said)


def assumptions_of(args: argparse.Namespace) -> Assumptions:
    return Assumptions(**{field.name: getattr(args, field.name) for field in fields(Assumptions)})


@dataclass(frozen=True)
class Row:
    """One line of the plan. `value` in the unit that `figure` says."""

    part: str
    quantity: str
    formula: str
    value: float
    figure: str
    basis: str


@dataclass(frozen=True)
class Kept:
    """What benchmarks/results has, as costs a row.

    worker_us, driver_us: CPU microseconds a row, by program; the driver's at most, since little is told from noise.
    shuffled, to_driver: bytes a row, by program.
    """

    worker_us: Mapping[str, float]
    driver_us: Mapping[str, float]
    shuffled: Mapping[str, float]
    to_driver: Mapping[str, float]
    walk_ms: float
    graph_us: float
    graph_night_share: float
    graph_bytes: float
    written_bytes: float
    decoded_a_core: float
    index: Mapping[str, Any]


def read_kept(growths: Mapping[str, Mapping[str, Growth]]) -> Kept:
    """The figures of benchmarks/growth.py, and of its siblings from their files."""

    def results(name: str) -> dict[str, Any]:
        return dict(json.loads((RESULTS_FOLDER / f"{name}.json").read_text(encoding="utf-8")))

    saved = sorted(results("graph_increment")["sizes"], key=lambda size: size["saves"])
    small, large = saved[0], saved[-1]
    walked = results("walks")["graphs"][-1]
    night = results("increment")["sizes"][-1]
    decoding = next(row for row in results("encode")["rows"] if "decoding alone, scaled" in row["title"])
    whole_s, night_s = (sum(n[way]["cpu_s"] for n in large["nights"]) for way in ("whole", "incremental"))
    grown = large["first"]["cpu_s"] - small["first"]["cpu_s"]
    return Kept(
        worker_us={name: 1e6 * growth["worker_cpu_s"].a_row for name, growth in growths.items()},
        driver_us={name: 1e6 * growth["driver_cpu_s"].most_a_row for name, growth in growths.items()},
        shuffled={name: growth["shuffled"].a_row for name, growth in growths.items()},
        to_driver={name: growth["collected"].a_row for name, growth in growths.items()},
        walk_ms=walked["by_turns_ms"]["night"],
        graph_us=1e6 * grown / (large["saves"] - small["saves"]),
        graph_night_share=night_s / whole_s,
        graph_bytes=walked["disk"] / walked["sides"]["pins"]["edges"],
        written_bytes=night["bytes"]["written"] / night["changed"],
        decoded_a_core=decoding["rate"] / 2,
        index=results("index"),
    )


def plan(growths: Mapping[str, Mapping[str, Growth]], assumed: Assumptions) -> list[Row]:
    """All rows of the table."""
    kept = read_kept(growths)
    rows = [*_encoding(kept, assumed), *_programs(kept, assumed), *_bounds(kept, assumed), *_storage(kept, assumed)]
    return [*rows, *_sums(rows, kept, assumed)]


def _encoding(kept: Kept, a: Assumptions) -> Iterator[Row]:
    contents = a.changed * (1 - a.known)
    gpu_s = contents / a.gpu_images_a_second
    fetched = a.changed + contents
    decoders = a.gpu_images_a_second / kept.decoded_a_core
    part = "Encoding"
    yield Row(part, "contents to encode", "changed x (1 - known)", contents, number(contents), "assumed")
    yield Row(part, "GPU-hours", "contents / images a second", gpu_s / HOUR, number(gpu_s / HOUR), "assumed rate")
    gpus = ceil(gpu_s / HOUR / a.encode_hours)
    yield Row(part, f"GPUs for {a.encode_hours:g} h", "GPU-hours / hours", gpus, str(gpus), "assumed rate")
    said = f"{decoders:.1f} a GPU, {number(contents / kept.decoded_a_core / HOUR)} core-hours"
    formula = f"images a second / {kept.decoded_a_core:.0f} a core"
    yield Row(part, "cores that decode", formula, decoders, said, "measured (encode.txt)")
    terabytes = fetched * a.picture_kb * 1e3 / 1e12
    seconds = terabytes * 1e3 / a.store_gb_a_second
    said = f"{number(fetched)} GETs, {terabytes:.1f} TB, {minutes(seconds)} of the store"
    yield Row(part, "pictures fetched", "changed to hash, contents to encode", seconds, said, "assumed size")
    again = a.pins / a.gpu_images_a_second / HOUR
    said = f"{number(again)} GPU-hours, {money(again * a.gpu_dollars)}"
    yield Row(part, "all pins once, in a migration", "pins / images a second", again, said, "assumed rate")


PER_ROW = {
    # rows that a program goes over, and what they are called
    "land": ("changed", "changed"),
    "embed": ("changed", "changed"),
    "check_night": ("changed", "changed"),
    "check_index": ("pins", "pins"),
    "interests": ("saves", "saves"),
    "boards": ("saves", "saves"),
}
TITLES = {
    "land": "land",
    "embed": "embed but for the encoding",
    "check_night": "check the night",
    "check_index": "check the index",
    "interests": "interests, had every user changed",
    "boards": "boards, had every board changed",
}


def _rows_of(name: str, a: Assumptions) -> float:
    return {"changed": a.changed, "pins": a.pins, "saves": a.pins * a.saves_a_pin}[PER_ROW[name][0]]


def _programs(kept: Kept, a: Assumptions) -> Iterator[Row]:
    part, here = "Core-hours", "measured to a million rows"

    def row(quantity: str, formula: str, core_s: float, basis: str) -> Row:
        return Row(part, quantity, formula, core_s / HOUR, number(core_s / HOUR), basis)

    for name in ("land", "embed", "check_night"):
        us = kept.worker_us[name]
        yield row(TITLES[name], f"changed x {us:.0f} us", us * a.changed / 1e6, here)
    each, basis = sum(LOOK_UPS_US), "measured by hand (scale.md)"
    yield row("look-ups in the history", f"pins x {each:.2f} us", each * a.pins / 1e6, basis)
    history = a.pins + NIGHTS_A_YEAR * a.changed
    yield row("the same after a year of nights", f"{number(history)} rows x {each:.2f} us", each * history / 1e6, basis)
    built = kept.index["cpu_s"] / kept.index["rows"]
    yield row("build the index", f"pins x {1e6 * built:.0f} us", built * a.pins, "measured at ten million (index.txt)")
    us = kept.worker_us["check_index"]
    yield row(TITLES["check_index"], f"pins x {us:.0f} us", us * a.pins / 1e6, here)
    saves = a.pins * a.saves_a_pin
    yield row(
        "graph, whole, once a week", f"saves x {kept.graph_us:.0f} us", kept.graph_us * saves / 1e6, "measured at 4 million"
    )
    share = kept.graph_night_share
    said = f"{share:.2f} of that"
    yield row("graph, of a night", said, share * kept.graph_us * saves / 1e6, "measured with 1% changed")
    walked = walked_pins(a)
    said = f"{number(walked)} pins near a change x {kept.walk_ms:.1f} ms"
    yield row("related pins", said, walked * kept.walk_ms / 1e3, "measured at 95 million edges (walks.txt)")
    for name in ("interests", "boards"):
        us = kept.worker_us[name]
        yield row(TITLES[name], f"saves x {us:.0f} us", us * saves / 1e6, here)


def walked_pins(a: Assumptions) -> float:
    """Pins with a board on which something changed, where each changed pin is one save on a board of its own choice."""
    boards = a.pins * a.saves_a_pin / a.saves_a_board
    touched = min(1.0, a.changed / boards)
    return a.pins * (1 - float((1 - touched) ** a.saves_a_pin))


def _bounds(kept: Kept, a: Assumptions) -> Iterator[Row]:
    """What passes through one process, and between all."""
    part, here = "Driver, network", "measured to a million rows"
    for name in PER_ROW:
        rows, us = _rows_of(name, a), kept.driver_us[name]
        shuffled, results = kept.shuffled.get(name, 0.0) * rows, kept.to_driver.get(name, 0.0) * rows
        formula = f"{PER_ROW[name][1]} x {us:.1f} us; {kept.to_driver.get(name, 0):.1f} B; {kept.shuffled.get(name, 0):,.0f} B"
        said = f"{minutes(us * rows / 1e6)}; {size(results)}; {size(shuffled)}"
        yield Row(part, f"{name}: driver's time at most; bytes to it; bytes shuffled", formula, us * rows / 1e6, said, here)


def _storage(kept: Kept, a: Assumptions) -> Iterator[Row]:
    part = "Storage"
    from benchmarks.index import Host  # here: measuring needs no faiss
    from benchmarks.index import plan as index_plan

    host = Host(int(a.host_cores), int(a.host_memory_gib), a.host_dollars)
    index = index_plan(int(a.pins), dict(kept.index), host, a.queries_a_second)
    night, saves = kept.written_bytes * a.changed, a.pins * a.saves_a_pin
    rows, year = a.pins + NIGHTS_A_YEAR * a.changed, kept.written_bytes * a.pins + NIGHTS_A_YEAR * night
    files = ceil(a.changed / MAX_ROWS_A_FILE)
    said = f"{size(night)}, {files} files a table"
    yield Row(part, "tables, a night", f"changed x {kept.written_bytes:,.0f} B", night, said, "measured (increment.txt)")
    said = f"{size(year)}, {number(rows / MAX_ROWS_A_FILE)} files a table"
    yield Row(part, "tables, after a year", f"pins and {NIGHTS_A_YEAR} nights", year, said, "measured (increment.txt)")
    said = f"{index['index_gib']:,.0f} GiB in {index['shards']} shards"
    yield Row(part, "index", f"pins x {kept.index['bytes_a_vector']:.0f} B", index["index_gib"], said, "measured (index.txt)")
    said = f"{index['hosts']} for {a.queries_a_second:,.0f} queries/s; ${index['serving_dollars_a_day']:,} a day"
    yield Row(part, "hosts that hold it", "80% of their memory", index["hosts"], said, "measured (index.txt)")
    graph, shards = kept.graph_bytes * saves, ceil(saves / EDGES_A_SHARD)
    said = f"{size(graph)} in {shards} shards a side"
    yield Row(part, "graph's base", f"saves x {kept.graph_bytes:.0f} B", graph, said, "measured (walks.txt)")
    related = RELATED_BYTES * walked_pins(a)
    formula = f"pins near a change x {RELATED_BYTES} B"
    yield Row(part, "related pins, a night", formula, related, size(related), "by the schema, not packed")
    users = VECTOR_BYTES * a.users
    yield Row(part, "user vectors", f"users x {VECTOR_BYTES:,} B", users, size(users), "by the schema, not packed")


NIGHT = ("land", "embed", "check_night")
RELEASE = ("build the index", TITLES["check_index"])
TASTE = ("graph, of a night", "related pins", TITLES["interests"], TITLES["boards"])


def _sums(rows: Sequence[Row], kept: Kept, a: Assumptions) -> Iterator[Row]:
    by_name = {row.quantity: row.value for row in rows}
    cores = a.hosts * a.host_cores

    def took(quantities: Sequence[str]) -> float:
        return sum(by_name[quantity] for quantity in quantities) / cores

    def at_most(programs: Sequence[str]) -> str:
        """The driver's CPU time, were none of it spent while tasks run."""
        driver_s = sum(kept.driver_us[name] * _rows_of(name, a) / 1e6 for name in programs)
        return f"; and the driver alone at most {hours(driver_s / HOUR)}"

    fetching_h = a.changed * a.picture_kb * 1e3 / 1e9 / a.store_gb_a_second / HOUR
    night_h = took([*(TITLES[name] for name in NIGHT), "look-ups in the history"]) + fetching_h + a.encode_hours
    release_h, taste_h = took(RELEASE), took(TASTE)
    part, formula = f"{a.hosts:.0f} hosts, {number(cores)} cores", "core-hours / cores"
    said = f"{formula}, fetching, encoding"
    for quantity, how, lasts_h, programs in (
        ("the night, from land to its check", said, night_h, NIGHT),
        ("then the release", formula, release_h, ("check_index",)),
        ("then the taste graph", formula, taste_h, ("interests", "boards")),
    ):
        yield Row(part, quantity, how, lasts_h, hours(lasts_h) + at_most(programs), "reckoned")
    part, price = "Dollars a night", "list price"
    gpus = ceil(by_name["GPU-hours"] / a.encode_hours) * a.encode_hours * a.gpu_dollars
    hosts = (night_h + release_h + taste_h) * a.hosts * a.host_dollars
    gets = a.changed * (2 - a.known) * a.get_dollars
    stored = by_name["tables, after a year"] / 1e9 * a.gb_month_dollars / 30
    total = gpus + hosts + gets + stored
    yield Row(part, "GPUs", f"${a.gpu_dollars:.2f} an hour", gpus, money(gpus), price)
    yield Row(part, "hosts", f"${a.host_dollars:.2f} an hour", hosts, money(hosts), price)
    yield Row(part, "requests for pictures", f"${1e6 * a.get_dollars:.2f} a million", gets, money(gets), price)
    yield Row(part, "tables of a year, stored", f"${a.gb_month_dollars} a GB and month", stored, money(stored), price)
    said = f"{money(total)}; ${1e6 * total / a.changed:.2f} a million changed pins"
    yield Row(part, "together", "without serving", total, said, "reckoned")


def plan_text(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    lines = ["| quantity | formula | figure | basis |", "|---|---|---|---|"]
    part = ""
    for row in rows:
        if row.part != part:
            lines.append(f"| **{row.part}** | | | |")
            part = row.part
        lines.append(f"| {row.quantity} | {row.formula} | {row.figure} | {row.basis} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Two or three digits that count: 9.5, 130, 1,010, 30 million."""
    if value >= 1e6:
        unit, name = (1e9, "billion") if value >= 1e9 else (1e6, "million")
        return f"{value / unit:.3g} {name}"
    if value >= 1:
        digits = 2 - floor(log10(value))
        return f"{round(value, min(digits, 1)):,.{max(0, min(digits, 1))}f}".removesuffix(".0")
    return f"{value:.2g}"


def size(size_bytes: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.3g} {name}"
    return f"{size_bytes / 1e3:.3g} kB"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def hours(value: float) -> str:
    return f"{value:.1f} h"


def money(dollars: float) -> str:
    return f"${dollars:,.0f}"
