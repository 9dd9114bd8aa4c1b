"""Which quarantined pins a program tries again. Unasked, none: their content has not changed, and would fail as before."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from embedding.contracts import EMBED_REASONS, MAX_ID, Reason


@dataclass(frozen=True)
class Retry:
    """Pins that are in quarantine for one of the `reasons`, and those that `pins` names."""

    reasons: frozenset[Reason] = frozenset()
    pins: frozenset[int] = frozenset()

    @property
    def nothing(self) -> bool:
        return not self.reasons and not self.pins

    def chosen(self) -> Column:
        """Whether a settled row (`pin_id`, and `reason`, which is null for a vector) is to be tried again."""
        wanted = F.col("reason").isin(sorted(self.reasons)) | F.col("pin_id").isin(sorted(self.pins))
        return F.col("reason").isNotNull() & wanted


def add_retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-quarantined", action="store_true", help="try all quarantined pins again")
    parser.add_argument(
        "--retry-reasons",
        type=_reasons,
        default=frozenset(),
        metavar="A,B",
        help="try those again that failed for these reasons",
    )
    parser.add_argument("--retry-pins", type=_pins, default=frozenset(), metavar="1,2", help="try these pins again")


def retry_of(args: argparse.Namespace) -> Retry:
    """What `add_retry_arguments` read."""
    return Retry(EMBED_REASONS if args.retry_quarantined else args.retry_reasons, args.retry_pins)


def _reasons(text: str) -> frozenset[Reason]:
    known = {str(reason): reason for reason in EMBED_REASONS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        said = "its row of the export must change first" if unknown[0] in list(Reason) else "there is no such reason"
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} cannot be tried again: {said}; choose from {', '.join(sorted(known))}"
        )
    return frozenset(known[name] for name in names)


def _pins(text: str) -> frozenset[int]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if wrong := [name for name in names if not re.fullmatch("-?[0-9]{1,19}", name) or abs(int(name)) > MAX_ID]:
        raise argparse.ArgumentTypeError(f"pin ids separated by commas are needed, not {wrong[0][:40]!r}")
    return frozenset(map(int, names))
