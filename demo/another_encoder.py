"""A second encoder to migrate to, made of the one that ships: for tests, and for trying a migration out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from embedding.encoder.config import CONFIGS_FOLDER


def another_encoder(folder: Path) -> Path:
    """The config of an encoder that reads fewer words than the one that ships."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = json.loads((CONFIGS_FOLDER / "pinclip-base.json").read_text())
    raw |= {"name": "pinclip-words", "context_length": 16}
    raw["weights"][-1]["file"] = "projections.safetensors"
    shutil.copy(CONFIGS_FOLDER.parent / "weights" / "pinclip-base.safetensors", folder / "projections.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    return folder / "config.json"
