"""The tables of benchmarks/growth.py, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.growth_fit import Growth
from benchmarks.growth_jobs import JOBS, NOTHING, Measured
from benchmarks.machine import machine_line
from benchmarks.results_of import Verdict
from embedding.cli import format_table

ABOUT_ROWS = """\
As rows grow, two workers. Seconds of the clock and of CPU (driver and workers), start-up in them. `exponent`: what is beyond
the start grows with rows to this power; blank where too little is. `us a row`: CPU microseconds that one more row takes."""
ABOUT_LARGEST = """\
At the largest size. `driver's share`: of the CPU that rows take beyond the start. Bytes a row: written for other executors, and
sent to the driver. `no task; one; several`: seconds of the program with so many tasks running."""
ABOUT_WORKERS = """\
As workers grow, {rows:,} rows. Seconds of the clock, start-up in them; and those of them with a task running, beyond a program
that does nothing. What the driver does by design (an index, maintenance) is not among those that are judged together."""


def describe(
    figures: Mapping[str, Any],
    measured: Sequence[Measured],
    growths: Mapping[str, Mapping[str, Growth]],
    on_workers: Mapping[int, float],
    pictures: Mapping[int, tuple[float, float]],
    verdicts: Sequence[Verdict],
) -> str:
    """All that was measured."""
    shares = figures["shares"]
    held = f"A worker is held to {shares['worker']} of a core, the driver to {shares['driver']}"
    parts = [
        machine_line(figures["machine"]),
        held + (" (quick)" if figures["quick"] else ""),
        "",
        ABOUT_ROWS,
        rows_table(measured, growths),
        "",
        ABOUT_LARGEST,
        largest_table(measured, growths),
        "",
    ]
    if len(on_workers) > 1:
        parts += [*workers_tables(measured, on_workers), ""]
    if pictures:
        cpu = ", ".join(f"{n} {cpu_ms:.1f}" for n, (cpu_ms, _) in pictures.items())
        clock = ", ".join(f"{n} {rate:.0f}" for n, (_, rate) in pictures.items())
        parts += [
            f"Real pictures, shipped encoder, beyond the start. CPU ms a picture by workers: {cpu}",
            f"(images/s by the clock: {clock})",
            "",
        ]
    parts += [f"{'HOLDS ' if verdict.holds else 'MISSED'}  {verdict.sentence}" for verdict in verdicts]
    return "\n".join(parts) + "\n"


def _of(measured: Sequence[Measured], job: str, rows: int, workers: int) -> Measured | None:
    return next((one for one in measured if (one.job, one.rows, one.workers) == (job, rows, workers)), None)


def _names(measured: Sequence[Measured]) -> list[str]:
    return [job.name for job in JOBS if any(one.job == job.name for one in measured)]


def rows_table(measured: Sequence[Measured], growths: Mapping[str, Mapping[str, Growth]]) -> str:
    """How each program grows."""
    sizes = sorted({one.rows for one in measured if one.rows and one.workers == 2})
    starts = [one for one in measured if one.job == NOTHING and one.workers == 2]
    lines = [
        (NOTHING, *(f"{one.seconds:.0f}; {one.cpu_s:.0f}" for one in starts), *[""] * (len(sizes) - 1), "", "", "", "", "")
    ]
    for name, growth in growths.items():
        cells = [_of(measured, name, rows, 2) for rows in sizes]
        cpu, seconds = growth["cpu_s"], growth["seconds"]
        lines.append(
            (
                name,
                *(f"{one.seconds:.0f}; {one.cpu_s:.0f}" if one else "" for one in cells),
                *("" if found.exponent is None else f"{found.exponent:.2f}" for found in (seconds, cpu)),
                cpu.verdict,
                f"{1e6 * growth['worker_cpu_s'].a_row:.1f}; {1e6 * growth['driver_cpu_s'].most_a_row:.1f}",
                f"{1 / seconds.a_row:,.0f}" if seconds.a_row else "",
            )
        )
    head = (
        "s; CPU s",
        *(f"{rows:,}" for rows in sizes),
        "exponent, s",
        "exponent, CPU",
        "CPU is",
        "us a row, workers; driver at most",
        "rows/s",
    )
    return format_table(lines, head)


def largest_table(measured: Sequence[Measured], growths: Mapping[str, Mapping[str, Growth]]) -> str:
    """What would bend first."""
    rows = max(one.rows for one in measured)
    lines = []
    for name, growth in growths.items():
        one = _of(measured, name, rows, 2)
        if one is None:
            continue
        driver, all_of_it = growth["driver_cpu_s"].a_row, growth["cpu_s"].a_row
        share = f"{driver / all_of_it:.0%}" if all_of_it else ""
        memory = f"{one.driver_bytes / 1e9:.1f}; {one.worker_bytes / 1e9:.1f}"
        e = one.events
        cells = ("",) * 5
        if e:
            told = (f"{e.shuffled / rows:,.0f}", f"{e.results / rows:,.1f}", f"{e.spilled / 1e6:,.0f}")
            cells = (*told, f"{e.alone_s:.0f}; {e.one_s:.0f}; {e.more_s:.0f}", f"{e.gc_s:.0f}")
        lines.append((name, share, memory, *cells))
    head = (
        f"{rows:,} rows",
        "driver's share",
        "GB, driver; worker",
        "shuffled B a row",
        "to the driver",
        "spilled MB",
        "no task; one; several, s",
        "GC s",
    )
    return format_table(lines, head)


def workers_tables(measured: Sequence[Measured], on_workers: Mapping[int, float]) -> list[str]:
    """How each program shrinks."""
    counts = sorted(on_workers)
    rows = max(set.intersection(*({one.rows for one in measured if one.workers == n} for n in counts)))
    start = {one.workers: one for one in measured if one.job == NOTHING}
    lines = []
    for name in [NOTHING, *_names(measured)]:
        found = [start.get(n) if name == NOTHING else _of(measured, name, rows, n) for n in counts]
        seconds = [f"{one.seconds:.0f}" if one else "" for one in found]
        beyond = ["" if name == NOTHING or one is None else f"{_beyond(one, start):.1f}" for one in found]
        lines.append((name, *seconds, *beyond))
    total = [f"{seconds:.0f}" for seconds in on_workers.values()]
    lines.append(("together, judged", *[""] * len(counts), *total))
    head = ("", *(f"{n} workers, s" for n in counts), *(f"on {n}, s" for n in counts))
    return [ABOUT_WORKERS.format(rows=rows), format_table(lines, head)]


def _beyond(one: Measured, start: Mapping[int, Measured]) -> float:
    nothing = start[one.workers].events if one.workers in start else None
    if one.events is None or nothing is None:
        return 0.0
    return max(0.0, one.events.one_s + one.events.more_s - nothing.one_s - nothing.more_s)
