"""The parts of encoding, each alone: the forward pass on ready tensors, and decoding. benchmarks/encode.py runs it.

    python -m benchmarks.encode_parts model --config vit.json --variant fp32 --batch 16 --threads 2 --seconds 8
    python -m benchmarks.encode_parts decode --config vit.json --images FOLDER --threads 2 --share 0/1
    python -m benchmarks.encode_parts vectors --config vit.json --variant int8 --images FOLDER --threads 2 --out vectors.npy

Prints "ready" when all is loaded, starts when it reads a line, and prints one line of JSON: images and seconds. So several
processes can measure at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from embedding.encoder.cache import keep_freed_memory
from embedding.encoder.config import EncoderConfig, load_config
from embedding.encoder.limits import ImageLimits
from embedding.encoder.model import PinEncoder

VARIANTS = ("fp32", "channels-last", "bf16", "bf16-autocast", "int8", "int8-weights", "compiled")
READY_BATCHES = 4
"""So many different batches take turns, so that no cache holds the pixels."""

Forward = Callable[[Tensor], Tensor]


def image_tower(encoder: PinEncoder, variant: str) -> Forward:
    """The encoder's image tower as a function of pixels (N, 3, H, W).

    fp32: as open_clip builds it. channels-last: in the layout that PinEncoder gives to convolutions. bf16: weights and
    activations. int8: its linear layers in int8, activations quantised as they come; attention's own projections stay in fp32.
    int8-weights: all weights of linear and convolution layers rounded to int8, a scale for each output channel, and computed
    with in fp32: what the rounding loses, on any architecture. compiled: by torch.compile.
    """
    model = cast(Any, encoder.model)
    if variant == "channels-last":
        model = model.to(memory_format=torch.channels_last)
        return lambda pixels: cast(Tensor, model.encode_image(pixels.contiguous(memory_format=torch.channels_last)))
    model = model.to(memory_format=torch.contiguous_format)
    if variant == "bf16":
        model = model.to(torch.bfloat16)
        return lambda pixels: cast(Tensor, model.encode_image(pixels.to(torch.bfloat16))).float()
    if variant == "int8":
        quantize = cast(Any, torch.ao.quantization).quantize_dynamic
        model.visual = quantize(model.visual, {nn.Linear}, dtype=torch.qint8)
    if variant == "int8-weights":
        round_weights(model.visual)
    if variant == "compiled":
        return cast(Forward, torch.compile(model.encode_image))
    if variant == "bf16-autocast":

        def autocast(pixels: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return cast(Tensor, model.encode_image(pixels)).float()

        return autocast
    return cast(Forward, model.encode_image)


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Rounds the weights of linear layers, convolutions and attention's projections to 255 steps an output channel."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weights = [module.weight]
        else:
            weights = [module.in_proj_weight] if isinstance(module, nn.MultiheadAttention) else []
        for weight in weights:
            largest = weight.abs().flatten(1).amax(dim=1).clamp(min=1e-12)
            step = (largest / 127).view(-1, *[1] * (weight.ndim - 1))
            weight.copy_((weight / step).round() * step)


def run_model(config: EncoderConfig, variant: str, batch: int, threads: int, seconds: float) -> tuple[int, float]:
    """Images and seconds of the forward pass, for at least so many seconds."""
    keep_freed_memory()
    forward = image_tower(PinEncoder.load(config, "cpu", threads), variant)
    size = config.preprocess.size
    height, width = (size, size) if isinstance(size, int) else size
    ready = [torch.randn(batch, 3, height, width) for _ in range(READY_BATCHES)]
    with torch.inference_mode():
        forward(ready[0])
        wait_for_start()
        started = time.perf_counter()
        for passes in itertools.count(1):
            forward(ready[passes % READY_BATCHES])
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                return passes * batch, elapsed
    raise AssertionError("count() does not end")


def run_decode(config: EncoderConfig, paths: Sequence[Path], threads: int) -> float:
    """Seconds of reading, decoding and transforming them all, in so many threads."""
    encoder = PinEncoder.load(config, "cpu", 1)
    limits = ImageLimits()

    def prepare(path: Path) -> Tensor:
        return encoder.transform(encoder.decode(path.read_bytes(), limits.max_pixels))

    prepare(paths[0])
    wait_for_start()
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        # Tensors are dropped as they come: all of them together would take a gigabyte.
        for _ in pool.map(prepare, paths):
            pass
    return time.perf_counter() - started


def run_vectors(config: EncoderConfig, variant: str, paths: Sequence[Path], batch: int, threads: int) -> tuple[Tensor, float]:
    """The image tower's unit vectors [N, E] of pictures, and the seconds that they took."""
    encoder = PinEncoder.load(config, "cpu", threads)
    forward = image_tower(encoder, variant)
    wait_for_start()
    started = time.perf_counter()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(paths), batch):
            files = [path.read_bytes() for path in paths[first : first + batch]]
            pictures = [encoder.transform(encoder.decode(data, ImageLimits().max_pixels)) for data in files]
            parts.append(nn.functional.normalize(forward(torch.stack(pictures)), dim=-1))
    return torch.cat(parts), time.perf_counter() - started


def wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("model", "decode", "vectors"))
    parser.add_argument("--config", required=True, help="name or path")
    parser.add_argument("--out", type=Path, help="where vectors go")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, default="fp32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--share", default="0/1", help="every n-th picture from the k-th on: k/n")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    config = load_config(args.config)
    if args.part == "model":
        images, seconds = run_model(config, args.variant, args.batch, args.threads, args.seconds)
    else:
        first, of = map(int, args.share.split("/"))
        paths = sorted(args.images.iterdir())[first::of]
        images = len(paths)
        if args.part == "decode":
            seconds = run_decode(config, paths, args.threads)
        else:
            vectors_NE, seconds = run_vectors(config, args.variant, paths, args.batch, args.threads)
            np.save(args.out, vectors_NE.numpy())
    print(json.dumps({"images": images, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
