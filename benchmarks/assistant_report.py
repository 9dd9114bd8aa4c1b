"""What the assistant's protocol found: the ways side by side, what encoder and short prompt save, and the costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.assistant_cost import GOAL, THINKING, Prices, api, load_at_goal, own, variations
from benchmarks.assistant_shapes import DEEPSTACK, TOKENS_A_PICTURE, Depth, teraflop
from benchmarks.assistant_turns import DIM
from benchmarks.machine import machine_line
from benchmarks.results_of import Verdict
from embedding.cli import format_table

NATIVE, CACHED = "(a) native", "(b) cached"
K, LEAST = 4, 20.0
"""Where the claim is judged: tokens a picture, and how many times sooner."""
PROJECTED = f"(c) K={K}"
HEAD = ("way", "pins", "batch", "tokens", "TFLOP", "first token s", "least to most", "tokens/s", "ran s", "runs", "of which s")
STAGES = {NATIVE: ("prepare", "tower", "prompt"), CACHED: ("fetch", "prompt")}

Row = dict[str, Any]


def ways(rows: Sequence[Row], size: str) -> list[Row]:
    """The measured rows as the protocol names them: (a) and (b) are of one native pass. Times are scaled to the whole depth."""
    found = []
    for row in rows:
        for way in (NATIVE, CACHED) if row["way"] == "native" else (row["way"],):
            said = {key: row[key] for key in ("candidates", "batch", "text_tokens")} | {"way": way}
            found.append(said | ({"not_run": row["not_run"]} if "not_run" in row else _times(row, way, size)))
    return found


def _times(row: Row, way: str, size: str) -> Row:
    stages = STAGES.get(way, ("prompt",))
    firsts = [sum(times) for times in zip(*(row["stages"][stage] for stage in stages), strict=True)]
    step = statistics.median(row["stages"]["step"])
    return {
        "tokens": row["tokens"],
        "runs": row["runs"],
        "first_s": statistics.median(firsts),
        "first_least_s": min(firsts),
        "first_most_s": max(firsts),
        "measured_first_s": sum(row["measured"][stage] for stage in stages),
        "step_s": step,
        "tokens_a_second": row["batch"] / step,
        "stages_s": {stage: statistics.median(row["stages"][stage]) for stage in stages},
        "teraflop": row["batch"] * teraflop(size, row["tokens"], row["candidates"] if way == NATIVE else 0),
    }


def pick(found: Sequence[Row], way: str, candidates: int, batch: int | None = 1) -> Row | None:
    """A row that was run; batch: None: of the largest batch that was."""
    rows = [row for row in found if row["way"] == way and row["candidates"] == candidates and "first_s" in row]
    return max((row for row in rows if batch in (None, row["batch"])), key=lambda row: int(row["batch"]), default=None)


def judged_at(found: Sequence[Row], wanted: int) -> int:
    """The number of candidates at which the claim is judged: the wanted one, or the largest that was run."""
    run = [row["candidates"] for row in found if row["way"] == NATIVE and "first_s" in row]
    return wanted if wanted in run else max(run)


def shares(found: Sequence[Row]) -> list[str]:
    """How much of what (c) saves is the encoder, and how much the shorter prompt."""
    said = []
    for number in sorted({row["candidates"] for row in found}):
        native, cached, short = (pick(found, way, number) for way in (NATIVE, CACHED, PROJECTED))
        if native and cached and short:
            times = [row["first_s"] / short["first_s"] for row in (native, cached)]
            work = [row["teraflop"] / short["teraflop"] for row in (native, cached)]
            encoder = (native["first_s"] - cached["first_s"]) / (native["first_s"] - short["first_s"])
            counted = (native["teraflop"] - cached["teraflop"]) / (native["teraflop"] - short["teraflop"])
            said.append(
                f"{number} candidates: to the first token (a) takes {times[0]:,.1f} times as long as (c) K={K}, (b) "
                f"{times[1]:,.1f} times; of arithmetic {work[0]:,.0f} and {work[1]:,.0f} times as much. Of the time that (c) "
                f"saves, {encoder:.0%} is the encoder's, the rest the shorter prompt's (of the arithmetic {counted:.0%})"
            )
    return said


def modes(found: Sequence[Row], at: int) -> list[str]:
    """When the answer begins in both modes of the router; in thinking mode after as many tokens as a turn may think."""
    rows = [row for way in (PROJECTED, NATIVE) if (row := pick(found, way, at))]
    return [
        f"{row['way']}, {at} candidates: an answer begins after {_seconds(row['first_s'])} s in quick mode, after "
        f"{_seconds(row['first_s'] + THINKING * row['step_s'])} s in thinking mode, where all {THINKING} tokens are thought"
        for row in rows
    ]


def costs(found: Sequence[Row], prices: Prices, at: int) -> list[tuple[str, float, float | None, float, float]]:
    """For each variation of the prices, in dollars: ours, the native tower's, the API's with pictures, with titles alone."""
    short, native = (pick(found, way, at, None) for way in (PROJECTED, NATIVE))
    assert short
    return [
        (
            what,
            own(varied, short["first_s"], short["step_s"], short["batch"]),
            own(varied, native["first_s"], native["step_s"], native["batch"]) if native else None,
            api(varied, at, short["text_tokens"]),
            api(varied, at, short["text_tokens"], pictures=False),
        )
        for what, varied in variations(prices)
    ]


def judge(found: Sequence[Row], prices: Prices, at: int) -> list[Verdict]:
    native, short = pick(found, NATIVE, at), pick(found, PROJECTED, at)
    assert native
    assert short
    times = native["first_s"] / short["first_s"]
    worst = native["first_least_s"] / short["first_most_s"]
    _, ours, _, theirs, _ = costs(found, prices, at)[0]
    return [
        Verdict(
            f"{at} candidates: the first token {times:,.0f} times sooner with K={K} than with the native tower (at worst of "
            f"the runs {worst:,.0f} times), at least {LEAST:g}",
            times >= LEAST,
        ),
        Verdict(
            f"a million turns cost {1 - ours / theirs:.1%} less than at the API, at least {GOAL:.0%}; this holds while the "
            f"machine has work for at least {load_at_goal(prices, ours, theirs):.1%} of the hours that are paid",
            1 - ours / theirs >= GOAL,
        ),
    ]


def describe(figures: Row, prices: Prices, at: int) -> str:
    depth = Depth(**figures["depth"])
    scaled = (
        "all layers were run"
        if depth.whole
        else f"{depth.text} of {depth.text_whole} text layers and {depth.vision} of {depth.vision_whole} vision layers "
        "were run:\nseconds are scaled to the whole depth (time inside layers multiplied, the rest as it was); 'ran s': as run"
    )
    # The tower's tokens, and those that DeepStack adds, in bfloat16.
    cached_mb = TOKENS_A_PICTURE * (1 + len(DEEPSTACK)) * figures["hidden"] * 2 / 1e6
    said = [f"{'HOLDS' if verdict['holds'] else 'MISSED'}  {verdict['sentence']}" for verdict in figures["verdicts"]]
    return "\n".join(
        [
            machine_line(figures["machine"]),
            f"Qwen3-VL-{figures['size']}: published shapes, random weights, bfloat16, on {figures['device']}, "
            f"{figures['threads']} threads; {scaled}",
            "",
            format_table(
                [_line(row) for row in figures["ways"]],
                HEAD,
            ),
            "",
            *shares(figures["ways"]),
            *modes(figures["ways"], at),
            f"what (b) caches takes {cached_mb:.1f} MB a pin; the night's vector, {DIM} numbers, {DIM * 4 / 1e6:.3f} MB",
            "",
            f"a million turns over {at} candidates, in dollars, each way in the largest batch that was run",
            f"assumed: {prices}",
            format_table(
                [_cost_line(*line) for line in costs(figures["ways"], prices, at)],
                ("", f"(c) K={K}", "(a) native", "API, pictures", "(c) saves", "API, titles alone", "(c) saves"),
            ),
            "",
            *said,
            "",
        ]
    )


def _line(row: Row) -> tuple[object, ...]:
    where = row["way"], row["candidates"], row["batch"]
    if "not_run" in row:
        return (*where, "", "", "not run", "", "", "", "", row["not_run"])
    stages = row["stages_s"]
    spread = f"{_seconds(row['first_least_s'])} to {_seconds(row['first_most_s'])}" if row["runs"] > 1 else ""
    return (
        *where,
        f"{row['tokens']:,}",
        f"{row['teraflop']:,.2f}",
        _seconds(row["first_s"]),
        spread,
        f"{row['tokens_a_second']:,.2f}",
        _seconds(row["measured_first_s"]),
        row["runs"],
        " + ".join(f"{stage} {_seconds(value)}" for stage, value in stages.items()) if len(stages) > 1 else "",
    )


def _cost_line(what: str, ours: float, native: float | None, theirs: float, titles: float) -> tuple[str, ...]:
    tower = "not run" if native is None else f"{native:,.0f}"
    saved = [f"{1 - ours / other:.1%}" for other in (theirs, titles)]
    return what, f"{ours:,.0f}", tower, f"{theirs:,.0f}", saved[0], f"{titles:,.0f}", saved[1]


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3f}"
