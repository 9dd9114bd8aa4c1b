"""LoRA weights beside a projector: written by its training, and added to a language model's own weights when that is loaded.

    adapter.safetensors   A and B of each adapted layer (float16), `model.layers.0.self_attn.q_proj.A`
    adapter.json          for which language model and encoder, the factor of B A, the file's SHA-256

Added, they cost nothing where answers are made (arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assistant.projector import ProjectorError

FORMAT = 1
CONFIG, WEIGHTS = "adapter.json", "adapter.safetensors"


def save_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    factor: float,
    *,
    language_model: str,
    embedding_version: str,
    facts: Mapping[str, Any],
) -> None:
    """pairs: by the layer's name, A (R, in) and B (out, R). facts: what else is worth keeping, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.{part}": value for name, pair in pairs.items() for part, value in zip("AB", pair, strict=True)}
    tensors = {name: value.half().contiguous() for name, value in tensors.items()}
    save_file(tensors, str(folder / WEIGHTS))
    said = {
        "format": FORMAT,
        "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "language_model": language_model,
        "embedding_version": embedding_version,
        "factor": factor,
        **facts,
    }
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")


@torch.no_grad()
def add_adapter(model: nn.Module, folder: Path, *, language_model: str, embedding_version: str) -> None:
    """Adds B A to the weights of `model`. Raises ProjectorError where a file is missing, damaged or made for another."""
    try:
        said = json.loads((folder / CONFIG).read_text())
        found = (said["format"], said["language_model"], said["embedding_version"])
        data = (folder / WEIGHTS).read_bytes()
        factor, sha256 = float(said["factor"]), said["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProjectorError(f"there are no readable LoRA weights in {folder}: {error}") from None
    if found != (wanted := (FORMAT, language_model, embedding_version)):
        raise ProjectorError(f"the LoRA weights in {folder} are for {found}, this is {wanted}: train them anew")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ProjectorError(f"{folder / WEIGHTS} is damaged: its SHA-256 is not the one in {CONFIG}")
    tensors = load_file(str(folder / WEIGHTS))
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        try:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            layer.weight += factor * (tensors[f"{name}.B"].float() @ tensors[f"{name}.A"].float()).to(layer.weight)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise ProjectorError(f"the LoRA weights in {folder} do not fit the model: {error}") from None
