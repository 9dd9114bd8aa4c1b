"""What the programs take from their command lines, each refused with a sentence where it cannot be.

Much of it was typed by whoever triggers a run: a run's name, shares, numbers of days. A share that is no number would pass
every check that it is compared with, so it is refused here.
"""

from __future__ import annotations

import argparse
import math

from embedding.contracts import parse_ds
from embedding.redaction import has_credentials

MOST_RUN_ID_CHARS = 250
"""As long as Airflow's own may be."""

MOST = 2**31 - 1

MOST_DAYS = 36_500
"""Of a retention: a moment before the year 1 is none."""


def day_argument(text: str) -> str:
    try:
        return parse_ds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def address(text: str) -> str:
    """Where something lies. Others see a command line, so it names nobody's key or password; those come by the environment."""
    if has_credentials(text):
        raise argparse.ArgumentTypeError(
            "an address may not carry credentials: give them by the environment (docs/security.md)"
        )
    return text


def run_name(text: str) -> str:
    """A run's name: it stands in rows, in logs and, changed where need be (`Lake.run_uri`), in folders' names."""
    if not text.strip() or len(text) > MOST_RUN_ID_CHARS or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"not the name of a run: {text[:80]!r} (1 to {MOST_RUN_ID_CHARS} characters, no line breaks or control characters)"
        )
    return text


def whole_number(text: str, least: int, most: int = MOST) -> int:
    """An argument that is a whole number from `least` to `most`."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 20 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"not a whole number of at least {least} and at most {most}: {text[:40]!r}")
    return int(text)


def share(text: str) -> float:
    """An argument that is a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:  # of nan too, which is neither below nor above anything
        raise argparse.ArgumentTypeError(f"not a number from 0 to 1: {text[:40]!r}")
    return value
