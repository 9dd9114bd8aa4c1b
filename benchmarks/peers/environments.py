"""The peers: what is installed for each, in an environment of its own, and how each is asked to encode a folder.

torch is of pinlake's version everywhere; each peer's other requirements are its own choice.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("pinlake")

HERE = Path(__file__).parent
TORCH = ("torch==2.15.0", "torchvision==0.29.2")

Command = Callable[[Path, Path, Path, Path, bool], list[str]]
"""By the environment's Python, a folder of pictures, the weights, where vectors go, and whether tuned."""


@dataclass(frozen=True)
class Peer:
    """Pinned requirements, the command, and what is set in its environment."""

    requirements: tuple[str, ...]
    command: Command
    variables: Mapping[str, str] = field(default_factory=dict)


def _program(name: str) -> Command:
    def command(python: Path, images: Path, weights: Path, out: Path, tuned: bool) -> list[str]:
        common = [str(python), str(HERE / name), "--images", str(images), "--weights", str(weights), "--out", str(out)]
        return [*common, "--tuned"] if tuned else common

    return command


def _clip_retrieval(python: Path, images: Path, weights: Path, out: Path, tuned: bool) -> list[str]:
    """Its own command line. Documented: 256 images a batch, 4 reading processes. Tuned: a batch of 32 and one such process."""
    command = [str(python.parent / "clip-retrieval"), "inference", "--input_dataset", str(images), "--output_folder", str(out)]
    # What follows the architecture's slash is a checkpoint: here a path, which begins with one.
    command += ["--clip_model", f"open_clip:ViT-B-32/{weights}", "--enable_text", "False"]
    return [*command, "--batch_size", "32", "--num_prepro_workers", "1"] if tuned else command


_ALONE = {"HF_HUB_ALONE": "1", "PYTHONPATH": ""}
"""No model hub is asked, and nothing of pinlake's is on the path."""

PEERS = {
    "clip-retrieval": Peer(
        ("clip-retrieval==2.45.0", "open_clip_torch==2.32.0", "setuptools==69.5.1", *TORCH), _clip_retrieval, _ALONE
    ),
    "ray": Peer(
        ("ray[data]==2.60.0", "open_clip_torch==3.3.0", "pillow==13.0.0", *TORCH),
        _program("ray_images.py"),
        _ALONE | {"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    "daft": Peer(
        ("daft==0.7.26", "open_clip_torch==3.3.0", "pillow==13.0.0", *TORCH),
        _program("daft_images.py"),
        _ALONE | {"DO_NOT_TRACK": "true"},
    ),
}


ANN_PEERS = {
    # The newest that autofaiss works with at small budgets: it calls OPQMatrix by argument names that later ones lack.
    "autofaiss": ("autofaiss==2.18.0", "faiss-cpu==1.8.0.post1", "numpy<2", "pyarrow==19.0.1"),
    "hnswlib": ("hnswlib==0.8.0", "numpy==2.4.6"),
    "usearch": ("usearch==2.26.6", "numpy==2.4.6"),
    "scann": ("scann==1.4.2", "numpy==2.4.6"),
}
"""Libraries of approximate search, for benchmarks/ann.py, and what is installed for each."""

TASTE_PEERS = {"implicit": ("implicit==0.7.3", "numpy==2.4.6", "scipy==1.17.1")}
"""Libraries of recommendation, for benchmarks/taste.py."""


def peer_environment(name: str, folder: Path) -> Path:
    """The Python of a peer's environment below `folder`, which is made once for its requirements."""
    environment = folder / name
    python, done = environment / "bin" / "python", environment / "requirements.txt"
    requirements = PEERS[name].requirements if name in PEERS else (ANN_PEERS | TASTE_PEERS)[name]
    wanted = "\n".join(requirements) + "\n"
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    log.info("making the environment of %s", name)
    uv = str(Path(sys.executable).parent / "uv")
    variables = os.environ | {"UV_COMPILE_BYTECODE": "1"}
    made = ["venv", "--quiet", "--clear", "--python", sys.executable, str(environment)]
    installed = ["pip", "install", "--quiet", "--python", str(python), *requirements]
    for arguments in (made, installed):
        subprocess.run([uv, *arguments], check=True, env=variables)
    done.write_text(wanted, encoding="utf-8")
    return python
