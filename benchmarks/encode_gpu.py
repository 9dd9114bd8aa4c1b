"""The stream on a GPU: images/s with fetching and decoding, beside the forward pass alone; benchmarks/encode.py --device cuda.

No engine, no tables: `encode_stream` as an encoding task calls it, one process, all cores of the machine for decoding, bf16.
The photographs are read again and again, until the stream has been in its steady state for long enough.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from embedding.cli import format_table
from embedding.encoder.batches import GPU_FETCH_THREADS
from embedding.encoder.building import build_model
from embedding.encoder.config import load_config
from embedding.encoder.limits import ImageLimits
from embedding.encoder.model import PinEncoder
from embedding.encoder.stream import BATCHES_AHEAD, EncodeItem, encode_stream

ARCHITECTURES = ("ViT-B-32", "ViT-L-14")
BATCH = 256
GOAL = 0.9
SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True)
class GpuRow:
    """Images/s of the forward pass alone, of decoding alone on so many cores, and of the stream; the GPU's mean utilisation."""

    architecture: str
    forward: float
    decode: float
    stream: float
    utilisation: float
    cores: int

    @property
    def share(self) -> float:
        """Of the forward pass's rate."""
        return self.stream / self.forward


class Utilisation:
    """The GPU's busy share while the block runs, as nvidia-smi tells it: percent, the mean over samples."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._found: list[float] = []
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Utilisation:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self._ended.wait(SAMPLE_EVERY_S):
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            self._found.append(float(said.split()[0]))

    @property
    def mean(self) -> float:
        return statistics.fmean(self._found) if self._found else float("nan")


def gpu_rows(paths: Sequence[Path], work: Path, seconds: float) -> list[GpuRow]:
    """A row an architecture, on cuda:0."""
    return [gpu_row(name, paths, work, seconds) for name in ARCHITECTURES]


def gpu_row(architecture: str, paths: Sequence[Path], work: Path, seconds: float) -> GpuRow:
    encoder = PinEncoder.load(load_config(_config(architecture, work)), "cuda:0")
    cores = len(os.sched_getaffinity(0))
    forward = _forward(encoder, seconds)
    with Utilisation() as utilisation:
        stream = _stream(encoder, paths, cores, seconds)
    return GpuRow(architecture, forward, _decode(encoder, paths, cores), stream, utilisation.mean, cores)


def _config(architecture: str, work: Path) -> Path:
    """A config of random weights, which are made here: speed does not depend on them."""
    path, weights = work / f"{architecture}.json", work / f"{architecture}.pt"
    values = {"name": architecture.lower(), "model": architecture, "weights": [{"file": str(weights)}]}
    path.write_text(json.dumps(values | {"precision": "bf16", "jpeg_decoding": "scaled"}), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(build_model(load_config(path, absent_weights=[weights])).state_dict(), weights)
    return path


def _forward(encoder: PinEncoder, seconds: float) -> float:
    ready = torch.randn(BATCH, 3, 224, 224, device=encoder.device)
    encoder.image_vectors(ready)
    torch.cuda.synchronize()
    started = time.perf_counter()
    passes, elapsed = 0, 0.0
    while elapsed < seconds:
        encoder.image_vectors(ready)
        passes += 1
        elapsed = time.perf_counter() - started
    return passes * BATCH / elapsed


def _stream(encoder: PinEncoder, paths: Sequence[Path], cores: int, seconds: float) -> float:
    """Images/s after the pipeline has filled."""

    def items() -> Iterator[EncodeItem]:
        uris = itertools.cycle([path.absolute().as_uri() for path in paths])
        return (EncodeItem(number, uri, "") for number, uri in enumerate(uris))

    limits = ImageLimits()
    threads = cores + GPU_FETCH_THREADS
    results = encode_stream(
        encoder, items(), batch_size=BATCH, threads=threads, cores=cores, forward_on_cores=False, limits=limits
    )
    for _ in range(2 * BATCHES_AHEAD * BATCH):
        next(results)
    started = time.perf_counter()
    for count in itertools.count(1):
        assert next(results).vector is not None
        elapsed = time.perf_counter() - started
        if elapsed >= seconds and count % BATCH == 0:
            break
    return count / elapsed


def _decode(encoder: PinEncoder, paths: Sequence[Path], cores: int) -> float:
    from concurrent.futures import ThreadPoolExecutor

    limits = ImageLimits()
    started = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(lambda path: encoder.transform(encoder.decode(path.read_bytes(), limits.max_pixels)).shape, paths):
            pass
    return len(paths) / (time.perf_counter() - started)


def gpu_text(rows: Sequence[GpuRow]) -> str:
    """The table."""
    head = ("", "forward alone", "decoding alone", "stream", "share of forward", "GPU busy")
    cells = [
        (r.architecture, f"{r.forward:.0f}", f"{r.decode:.0f}", f"{r.stream:.0f}", f"{r.share:.2f}", f"{r.utilisation:.0f}%")
        for r in rows
    ]
    device = torch.cuda.get_device_name(0)
    return f"The stream on {device}, bf16, batch {BATCH}, {rows[0].cores} cores decode; images/s\n{format_table(cells, head)}"


def gpu_json(rows: Sequence[GpuRow]) -> list[dict[str, Any]]:
    """JSON values."""
    return [asdict(row) | {"share": row.share, "device": torch.cuda.get_device_name(0)} for row in rows]


def gpu_holds(rows: Sequence[GpuRow]) -> bool:
    """0.9 of the forward pass, or of what the cores can decode where that is less."""
    return all(row.stream >= GOAL * min(row.forward, row.decode) for row in rows)
