"""A training set small enough to train on in seconds: boards of one colour and word each."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from embedding.encoder.training_set import Manifest
from embedding.tables.lake import Lake
from tests.encoder.written_set import write_set

WORDS = ("anchor", "bridge", "candle", "drum", "engine", "feather", "guitar", "hammer")
PINS_A_BOARD = 4


def write_tiny_set(lake: Lake, pins_a_board: int = PINS_A_BOARD) -> Manifest:
    """Eight boards of four pins, in two shards."""
    members = [[_member(board, number) for number in range(pins_a_board)] for board in range(len(WORDS))]
    pins = [
        {key: member[key] for key in ("pin_id", "duplicate_group", "picture", "text")}
        | {
            "user_id": board,
            "board_id": board + 1,
            "board_ids": [board + 1],
            "category": "things",
            "split": "train",
            "shard": 0,
        }
        for board, some in enumerate(members)
        for member in some
    ]
    bags = [
        {"board_id": board + 1, "category": "things", "pins": some, "negatives": members[board - 1][:2], "shard": board % 2}
        for board, some in enumerate(members)
    ]
    return write_set(lake, pins, bags)


def _member(board: int, number: int) -> dict[str, Any]:
    dice = np.random.default_rng([board, number])
    image = Image.new("RGB", (64, 64), "white")
    box = sorted(dice.integers(4, 60, 2).tolist()) + sorted(dice.integers(4, 60, 2).tolist())
    hue = f"hsl({board * 45}, 90%, 50%)"
    ImageDraw.Draw(image).rectangle((box[0], box[2], box[1] + 4, box[3] + 4), fill=hue)
    png = io.BytesIO()
    image.save(png, "PNG")
    pin_id = board * 10 + number + 1
    text = f"{WORDS[board]} number {number}"
    return {"pin_id": pin_id, "duplicate_group": pin_id, "weight": 1.0, "picture": png.getvalue(), "text": text}


def write_recipe(folder: Path, **values: Any) -> Path:
    """pinclip-base's recipe with other values, as a file."""
    from embedding.encoder.recipe import RECIPES_FOLDER

    raw = json.loads((RECIPES_FOLDER / "pinclip-base.json").read_text())
    for key in ("encoder", "replaces"):
        raw[key] = str((RECIPES_FOLDER / raw[key]).resolve())
    file = folder / "recipe.json"
    file.write_text(json.dumps(raw | values))
    return file
