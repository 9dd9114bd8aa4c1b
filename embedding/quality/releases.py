"""Two releases side by side, asked as any reader asks them: how far their neighbours agree, whose neighbours share a board."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.index.reader import Release
from embedding.index.recall import Floats, Ids, drop_self
from embedding.index.tuning import TOP
from embedding.quality.compare import board_mate_recall, order_by_hash, overlap, paired_difference, sample_boards


def nearest(release: Release, pins_Q: Ids) -> Ids:
    """The ten nearest of each pin but itself; (Q, 10)."""
    queries_QD: Floats = release.vectors_of(pins_Q)
    return drop_self(*release.search(queries_QD, TOP + 1), pins_Q)[1]


def boards_of(found_QK: Ids, pins_N: Ids, boards_N: Ids) -> Ids:
    """The board of each found pin; -1 for none. `pins_N` ascend."""
    at = np.minimum(np.searchsorted(pins_N, found_QK), len(pins_N) - 1)
    boards: Ids = np.where(pins_N[at] == found_QK, boards_N[at], -1)
    return boards


def neighbour_overlap(live: Release, candidate: Release, queries: int) -> NDArray[np.float64]:
    """The share of neighbours in common of each of a sample of the pins that both hold; (at most `queries`,)."""
    common = np.intersect1d(live.pin_ids(), candidate.pin_ids(), assume_unique=True)
    asked = common[order_by_hash(common, seed=4)[:queries]]
    return overlap(nearest(live, asked), nearest(candidate, asked)) if len(asked) else np.empty(0)


def compare_neighbours(live: Release, candidate: Release, queries: int, boards: int) -> dict[str, Any]:
    """Overlap of neighbours on a sample of pins, board-mate recall on a sample of boards, under both encoders."""
    common = np.intersect1d(live.pin_ids(), candidate.pin_ids(), assume_unique=True)
    if not len(common):
        return {"overlap_at_10": None, "board_mates": None}
    shared = neighbour_overlap(live, candidate, queries)
    figures: dict[str, Any] = {
        "queries": len(shared),
        "overlap_at_10": round(float(shared.mean()), 4),
        "median_overlap_at_10": round(float(np.median(shared)), 4),
        "board_mates": None,
    }
    pins_N, boards_N = candidate.boards()
    in_both = np.isin(pins_N, common)
    order = np.argsort(pins_N[in_both])
    pins_N, boards_N = pins_N[in_both][order], boards_N[in_both][order]
    sample = sample_boards(pins_N, boards_N, boards, seed=5)
    if len(sample.pins):
        found = [boards_of(nearest(release, sample.pins), pins_N, boards_N) for release in (live, candidate)]
        old, new = (board_mate_recall(found_QK, sample) for found_QK in found)
        difference = paired_difference(old, new, sample.boards)
        figures["board_mates"] = {
            "boards": len(np.unique(sample.boards)),
            "pins": len(sample.pins),
            "live": round(float(old.mean()), 4),
            "candidate": round(float(new.mean()), 4),
            "difference": {name: round(value, 4) for name, value in asdict(difference).items()},
            "is_worse": difference.is_worse,
        }
    return figures
