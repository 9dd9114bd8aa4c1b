"""What benchmarks/encode.py claims, judged on its rows, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.encode_past import PAST_IMAGES
from benchmarks.encode_rows import ARCHITECTURE, CEILING, PINLAKE, Bench, Row, cores
from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.environments import PEERS
from benchmarks.results_of import Verdict
from embedding.cli import format_table

GOAL_CEILING, GOAL_DOCUMENTED, GOAL_TUNED = 0.9, 2.0, 1.0
PACKAGES = ("torch", "open_clip_torch", "pillow", "pyspark", "deltalake", "pyarrow")


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
