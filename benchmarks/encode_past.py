"""What goes past the ceiling of benchmarks/encode.py, and how much of what people find it costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.encode_rows import ARCHITECTURE, Bench, cores, layouts, measure_parts, model_row
from benchmarks.neighbours import share_kept

PAST_IMAGES = 512
REAL_ENCODER = "pinclip-base"
"""An encoder of the repository whose image tower has real weights, of another architecture."""


def past_rows(bench: Bench, batch: int) -> list[dict[str, Any]]:
    """What goes past the ceiling: a title, images/s (None where only the loss can be told) and neighbours kept."""
    random, real = f"{ARCHITECTURE}, random weights", f"{REAL_ENCODER}'s image tower, real weights"
    found: list[dict[str, Any]] = []
    for variant, about in (("int8", "linear layers in int8"), ("compiled", "torch.compile")):
        if variant == "compiled" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
            found.append({"title": f"{about}: no C++ compiler here", "rate": None, "neighbours_kept": None})
            continue
        rows = [
            model_row(bench, variant, layout, processes, threads, batch, 1)
            for layout, (processes, threads) in layouts().items()
        ]
        best = max(rows, key=lambda row: row.rate)
        kept = neighbours_kept(bench, str(bench.config()), variant)
        layout = best.notes["layout"]
        found.append({"title": f"{about} ({random}), {layout}", "rate": best.rate, "neighbours_kept": kept})
    for config, about in ((str(bench.config()), random), (REAL_ENCODER, real)):
        kept = neighbours_kept(bench, config, "int8-weights")
        found.append({"title": f"weights rounded to int8 ({about}), computed in fp32", "rate": None, "neighbours_kept": kept})
    return found


def neighbours_kept(bench: Bench, config: str, variant: str) -> float:
    """The share of each photograph's ten nearest that are the same by fp32 and by the variant."""
    return share_kept(_vectors(bench, config, "fp32"), _vectors(bench, config, variant))


def _vectors(bench: Bench, config: str, variant: str) -> npt.NDArray[np.float32]:
    out = bench.work / f"vectors-{Path(config).stem}-{variant}.npy"
    if not out.exists():
        folder = bench.folder(min(bench.sizes.many, PAST_IMAGES))
        command = ["vectors", "--config", config, "--variant", variant, "--images", str(folder), "--out", str(out)]
        measure_parts([[*command, "--threads", str(cores())]])
    return np.asarray(np.load(out), np.float32)
