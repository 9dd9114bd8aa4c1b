"""A training set small enough to train on in seconds: boards of one colour and word each."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from embedding.encoder.training_set import (
    BAGS_SCHEMA,
    PINS_SCHEMA,
    Manifest,
    SetFile,
    set_uri,
    write_manifest,
    write_shards,
)
from embedding.tables.lake import Lake

SET_ID = "2026-11-20-0123456789ab"
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
    files: list[SetFile] = []
    for kind, schema, rows in (("pins", PINS_SCHEMA, pins), ("train", BAGS_SCHEMA, bags)):
        table = pa.Table.from_pylist(sorted(rows, key=_shard), schema=schema.append(pa.field("shard", pa.int64())))
        for written in write_shards(table.to_batches(), set_uri(lake, SET_ID), kind, schema):
            files += [SetFile(**row) for row in written.to_pylist()]
    manifest = Manifest(
        set_id=SET_ID,
        ds="2026-11-20",
        days=["2026-11-20"],
        table_versions={"pins": 1},
        parameters={},
        recipe_version=1,
        counts={},
        dropped={},
        unusable_pictures={},
        uncompared=0,
        files=files,
        built_by="test",
        built_at="2026-11-20T00:00:00+00:00",
        seconds=1.0,
    )
    write_manifest(lake, manifest)
    return manifest


def _shard(row: dict[str, Any]) -> int:
    return int(row["shard"])


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
