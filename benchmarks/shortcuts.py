"""What do the shortcuts of the encoding cost in what is found?

    python -m benchmarks.shortcuts               # on all photographs: some 12 minutes on 2 cores
    python -m benchmarks.shortcuts --quick       # on 200 of them

**The claim.** pinclip-base as shipped (JPEGs decoded at a reduced scale) keeps at least 0.97 of each picture's ten nearest
neighbours under the reference: fp32, and open_clip's own transform of the whole picture.

**The test.** Real JPEG photographs (benchmarks/photographs.py) through the image tower of pinclip-base, whose weights are
ImageNet's; with its own transform (the whole picture, padded) and with CLIP's (the shorter side resized, the centre cut out).
For each shortcut the mean share of the ten nearest, by cosine among all photographs, that are
among the reference's ten. Neighbours, since cosines flatter: two unlike pictures here have one of 0.5 and more. Beside it the
milliseconds a picture for reading and transforming, on one thread, and the least cosine between a picture's two vectors.
bf16 weights are told beside it, on the first 200 photographs: this convolutional tower loses more by them than is allowed, so
its config says fp32. They are computed whether this device has bf16 or not: the vectors are the same, only slower.

Exits with 0 where all shipped rows keep 0.97, 1 where one does not, 2 where there are no photographs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.machine import describe_machine, machine_line
from benchmarks.neighbours import Vectors, share_kept
from benchmarks.photographs import fetch_photographs
from benchmarks.results_of import keep
from demo.debian import PackagesUnavailableError
from embedding.cli import format_table
from embedding.encoder.cache import keep_freed_memory
from embedding.encoder.config import DEFAULT_CONFIG, EncoderConfig, Preprocess, load_config
from embedding.encoder.images import decode_image
from embedding.encoder.limits import ImageLimits
from embedding.encoder.model import SCALED_MARGIN, PinEncoder
from embedding.encoder.precision import to_bf16

GOAL = 0.97
QUICK = 200
MARGINS = (1.0, 1.5, 2.0, 3.0)
PACKAGES = ("torch", "open_clip_torch", "timm", "pillow")

Decode = Callable[[bytes], Image.Image]


@dataclass(frozen=True)
class Row:
    """One way to encode. `kept`: share of the ten nearest; `shipped`: whether a shipped config works so."""

    transform: str
    way: str
    shipped: bool
    decode_ms: float
    transform_ms: float
    kept: float
    least_cosine: float


def transforms() -> dict[str, EncoderConfig]:
    """pinclip-base with its own transform, and with CLIP's."""
    config = load_config(DEFAULT_CONFIG)
    return {"whole picture, padded": config, "centre square (CLIP)": replace(config, preprocess=Preprocess())}


def in_bf16(encoder: PinEncoder) -> PinEncoder:
    """A second encoder of the same config whose weights are in bf16, on whatever device."""
    other = PinEncoder.load(encoder.config, threads=torch.get_num_threads())
    return PinEncoder(other.config, other.version, to_bf16(other.model), other.device)


def pixels(encoder: PinEncoder, pictures: Sequence[bytes], decode: Decode) -> tuple[list[Tensor], float, float]:
    """The tower's input, and milliseconds a picture for decoding and for transforming."""
    found, decode_s, transform_s = [], 0.0, 0.0
    for data in pictures:
        started = time.perf_counter()
        image = decode(data)
        decoded = time.perf_counter()
        found.append(encoder.transform(image))
        decode_s += decoded - started
        transform_s += time.perf_counter() - decoded
    return found, 1e3 * decode_s / len(pictures), 1e3 * transform_s / len(pictures)


def measure(name: str, config: EncoderConfig, pictures: Sequence[bytes], say: Callable[[str], None]) -> list[Row]:
    """All rows of one transform."""
    encoder = PinEncoder.load(config, threads=torch.get_num_threads())
    max_pixels = ImageLimits().max_pixels
    size = config.preprocess.size
    side = size if isinstance(size, int) else max(size)
    longest = config.preprocess.resize_mode == "longest"

    def scaled(margin: float) -> Decode:
        def least_scale(width: int, height: int) -> float:
            return margin * side / (max(width, height) if longest else min(width, height))

        return lambda data: decode_image(data, max_pixels, least_scale)

    def vectors(of: PinEncoder, stacked: Sequence[Tensor]) -> Vectors:
        return np.asarray(of.image_vectors(torch.stack(list(stacked))).numpy(), dtype=np.float32)

    whole, *times = pixels(encoder, pictures, lambda data: decode_image(data, max_pixels))
    reference_ND = vectors(encoder, whole)
    rows = [Row(name, "reference: fp32, whole JPEGs", False, times[0], times[1], 1.0, 1.0)]

    def add(way: str, shipped: bool, found_ND: Vectors, times: Sequence[float], of_ND: Vectors = reference_ND) -> None:
        cosines_N = (of_ND * found_ND).sum(axis=1)
        rows.append(Row(name, way, shipped, times[0], times[1], share_kept(of_ND, found_ND), float(cosines_N.min())))
        say(f"{name}, {way}: {rows[-1].kept:.4f}")

    if not longest:
        few = whole[:QUICK]
        add(f"bf16 weights, of {len(few)}", False, vectors(in_bf16(encoder), few), times, reference_ND[:QUICK])
    for margin in MARGINS:
        reduced, *times = pixels(encoder, pictures, scaled(margin))
        shipped = margin == SCALED_MARGIN
        add(f"JPEGs at {margin:g} times the input or more", shipped, vectors(encoder, reduced), times)
        if shipped:
            own = (encoder.transform(encoder.decode(data, max_pixels)) for data in pictures)
            assert all(torch.equal(*pair) for pair in zip(reduced, own, strict=True)), "the margin is not the encoder's own"
    return rows


def to_text(rows: Sequence[Row], machine: dict[str, Any], photographs: str) -> str:
    """The table, and whether the claim holds."""
    head = ("transform", "way", "decode ms", "transform ms", "ten nearest kept", "least cosine", "shipped")
    lines = [
        (
            row.transform,
            row.way,
            round(row.decode_ms, 1),
            round(row.transform_ms, 1),
            f"{row.kept:.2%}",
            f"{row.least_cosine:.4f}",
            "yes" if row.shipped else "",
        )
        for row in rows
    ]
    worst = min(row.kept for row in rows if row.shipped)
    said = "holds" if holds(rows) else "MISSED"
    verdict = f"pinclip-base as shipped keeps {worst:.2%} of the neighbours or more, goal {GOAL:.0%}: {said}"
    return "\n".join([machine_line(machine), photographs, "", format_table(lines, head), "", verdict, ""])


def holds(rows: Sequence[Row]) -> bool:
    return all(row.kept >= GOAL for row in rows if row.shipped)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/photographs"), help="where the photographs are kept")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} photographs; the result is not kept")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, out: Callable[[str], None] = print) -> int:
    args = parse_args(argv)
    try:
        photographs = fetch_photographs(args.cache)
    except PackagesUnavailableError as error:
        print(f"shortcuts: {error}", file=sys.stderr)
        return 2
    keep_freed_memory()
    count = QUICK if args.quick else len(photographs)
    pictures = [path.read_bytes() for path in photographs.paths[:count]]
    rows: list[Row] = []
    for name, config in transforms().items():
        rows += measure(name, config, pictures, lambda line: print(line, file=sys.stderr))
    machine, digest = describe_machine(PACKAGES), photographs.digest(count)
    text = to_text(rows, machine, f"{count} photographs ({digest})")
    about = {"machine": machine, "photographs": count, "digest": digest, "holds": holds(rows)}
    figures = {**about, "rows": [asdict(row) for row in rows]}
    out(text)
    keep(figures, text, args.json, None if args.quick else "shortcuts")
    return 0 if holds(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
