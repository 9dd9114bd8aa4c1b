"""Where a training stands: what is trained, the optimizer's state, and which step of which stage is next, in one file.

The file is replaced whole, so a kill at any time leaves the one before it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from assistant.training.seeing import Seeing

CHECKPOINT = "checkpoint.safetensors"

log = logging.getLogger("pinlake")


def trained(seeing: Seeing) -> dict[str, Tensor]:
    return {name: value for name, value in seeing.named_parameters() if "projector." in name or "lora_" in name}


def put_values(seeing: Seeing, held: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in trained(seeing).items():
            value.copy_(held[f"value/{name}"])


class State:
    """What a checkpoint holds: what is trained, by name, and the optimizer's two moments and step of each."""

    def __init__(self, seeing: Seeing, optimizer: torch.optim.Optimizer):
        self._named = trained(seeing)
        self._optimizer = optimizer

    def values(self, *, optimizer: bool) -> dict[str, Tensor]:
        found = {f"value/{name}": value.detach().clone() for name, value in self._named.items()}
        if optimizer:
            for name, value in self._named.items():
                for key, moment in self._optimizer.state.get(value, {}).items():
                    found[f"{key}/{name}"] = moment.detach().clone().float()
        return found

    def put_moments(self, held: dict[str, Tensor]) -> None:
        for name, value in self._named.items():
            moments = {key: held[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in held}
            if moments:
                self._optimizer.state[value] = moments


class Checkpoint:
    """One file that is replaced whole. One of another setting is not gone on from."""

    def __init__(self, file: Path, setting: dict[str, Any]):
        self._file, self._setting = file, json.dumps(setting, sort_keys=True)

    def read(self) -> tuple[int, int, dict[str, Tensor]]:
        """(stage, step, tensors): where to go on; (0, 0, {}) where nothing is kept."""
        if not self._file.is_file():
            return 0, 0, {}
        with safe_open(str(self._file), "pt") as file:
            said = file.metadata()
            if said.get("setting") != self._setting:
                log.info("%s is of another setting: begun anew", self._file)
                return 0, 0, {}
            return int(said["stage"]), int(said["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(self, stage: int, step: int, tensors: dict[str, Tensor]) -> None:
        unfinished = self._file.with_suffix(".partial")
        save_file(tensors, str(unfinished), {"stage": str(stage), "step": str(step), "setting": self._setting})
        unfinished.replace(self._file)
