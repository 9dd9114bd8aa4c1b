"""A training set of a hundred pins and an encoder of a megabyte, so that programs around training can be tried in seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from embedding.encoder.building import build_model
from embedding.encoder.config import load_config
from embedding.encoder.features import TowerFeatures
from embedding.encoder.judge import unit
from embedding.encoder.judged_pins import JudgedSet
from embedding.encoder.training_set import TEST, TRAIN, VALIDATION, Manifest
from embedding.tables.lake import Lake
from tests.encoder.written_set import write_set

BOARDS, PINS_A_BOARD = 24, 5


def pins() -> list[dict[str, Any]]:
    """Two boards a creator; half of the creators are trained on, a quarter is for validation, a quarter for the test."""
    rng = np.random.default_rng(0)
    return [_pin(board, number, rng) for board in range(BOARDS) for number in range(PINS_A_BOARD)]


def _pin(board: int, number: int, rng: np.random.Generator) -> dict[str, Any]:
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    png, creator, pin_id = io.BytesIO(), board // 2, 100 * board + number
    Image.fromarray(pixels).resize((32, 32)).save(png, "PNG")
    split = TRAIN if creator < BOARDS // 4 else VALIDATION if creator < 3 * BOARDS // 8 else TEST
    ids = {"pin_id": pin_id, "user_id": creator, "board_id": board, "board_ids": [board], "duplicate_group": pin_id}
    about = {"category": f"c{board % 3}", "split": split, "text": f"pin {number} of board {board}"}
    return ids | about | {"picture": png.getvalue(), "thumbnail": pixels.tobytes()}


def write_planted_set(lake: Lake) -> Manifest:
    """Writes the set into the lake."""
    rows = pins()
    shards = [{**row, "shard": row["board_id"] % 2} for row in rows]
    bags = [_bag(board, rows) for board in range(BOARDS) if rows[board * PINS_A_BOARD]["split"] == TRAIN]
    counts = {"pins": {TRAIN: 60, VALIDATION: 30, TEST: 30}}
    return write_set(lake, shards, bags, parameters={"negatives": 1}, counts=counts)


def _bag(board: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    def members(of: int, count: int) -> list[dict[str, Any]]:
        names = ("pin_id", "duplicate_group", "picture", "text")
        return [{"weight": 1.0, **{name: row[name] for name in names}} for row in rows if row["board_id"] == of][:count]

    other = (board + 2) % (BOARDS // 2)
    about = {"shard": board % 2, "board_id": board, "category": f"c{board % 3}"}
    return about | {"pins": members(board, PINS_A_BOARD), "negatives": members(other, 1)}


WIDTH = 32
_TINY_MODEL = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_tiny_encoder(folder: Path, rank: int = WIDTH) -> Path:
    """An encoder of towers with random weights; returns its config. `rank`: how many directions its fusion head lets through.

    All of them have the same towers. The head of full rank loses nothing of what they say, one of low rank nearly everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    about = {"name": "tiny", "fusion": {"dim": WIDTH, "hidden": 8}, "context_length": 16, "preprocess": {"size": 32}}
    path.write_text(json.dumps(about | {"model": _TINY_MODEL, "weights": [{"file": "weights.safetensors"}]}))
    torch.manual_seed(0)
    model = build_model(load_config(path, absent_weights=[folder / "weights.safetensors"]))
    through = torch.diag((torch.arange(WIDTH) < rank).float())
    fusion = cast(Any, model.fusion)
    with torch.no_grad():
        fusion.image.weight.copy_(through)
        fusion.text.weight.copy_(through)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors")
    return path


def write_tiny_recipe(folder: Path) -> Path:
    """A recipe that trains the fusion head of a tiny encoder."""
    values = {"encoder": str(write_tiny_encoder(folder)), "trained": ["fusion.*", "logit_scale"], "batch_size": 32}
    path = folder / "recipe.json"
    path.write_text(json.dumps(values | {"dims": [32, 16, 8], "epochs": 30}))
    return path


def planted_features(of_board: float = 1.0, seed: int = 1) -> TowerFeatures:
    """What the towers might say of the set's pins if they knew the boards a little: both vectors of a pin point one way."""
    rng = np.random.default_rng(seed)
    boards = np.repeat(np.arange(BOARDS), PINS_A_BOARD)
    shared = of_board * unit(rng.normal(size=(BOARDS, WIDTH)))[boards] + 0.5 * unit(rng.normal(size=(len(boards), WIDTH)))
    image, text = (unit(shared + 0.7 * unit(rng.normal(size=(len(boards), WIDTH)))) for _ in range(2))
    everyone = np.ones(len(boards), np.bool_)
    return TowerFeatures(image, text, everyone, everyone)


def plant_features(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts `planted_features` in the towers' place; returns a list that gets an entry each time that towers would run."""
    runs: list[int] = []

    def compute_features(*_: object) -> TowerFeatures:
        runs.append(1)
        return planted_features()

    monkeypatch.setattr(JudgedSet, "compute_features", compute_features)
    return runs
