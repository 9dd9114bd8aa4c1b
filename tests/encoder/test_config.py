"""What names an encoder's vectors, and what a mistaken config says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedding.encoder.config import ConfigError, embedding_version, load_config

Change = Callable[[dict[str, Any]], object]


def write(folder: Path, change: Change = dict) -> Path:
    """A config with a tokenizer and weights of its own beside it. `embedding_version` reads weights as bytes alone."""
    (folder / "text").mkdir(parents=True, exist_ok=True)
    (folder / "text" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "text" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (folder / "a.safetensors").write_bytes(b"weights")
    raw: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "embed_dim": 8,
            "vision_cfg": {"layers": 1},
            "text_cfg": {"hf_model_name": "text", "hf_tokenizer_name": "text"},
        },
        "weights": [{"file": "a.safetensors"}],
        "preprocess": {"size": 32},
        "fusion": {"image_weight": 0.5, "text_weight": 0.5},
        "context_length": 16,
    }
    change(raw)
    path = folder / "tiny.json"
    path.write_text(json.dumps(raw))
    return path


def version(path: Path) -> str:
    return str(embedding_version(load_config(path)))


CHANGES: dict[str, Change] = {
    "preprocess": lambda raw: raw["preprocess"].update(resize_mode="squash"),
    "fusion": lambda raw: raw["fusion"].update(text_weight=0.25),
    "precision": lambda raw: raw.update(precision="bf16"),
    "jpegs": lambda raw: raw.update(jpeg_decoding="scaled"),
    "context": lambda raw: raw.update(context_length=17),
    "architecture": lambda raw: raw["model"]["vision_cfg"].update(layers=2),
    "where weights go": lambda raw: raw["weights"][0].update(prefix="text."),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_version_changes_with_all_that_decides_a_vector(tmp_path: Path, what: str) -> None:
    assert version(write(tmp_path / "a")) != version(write(tmp_path / "b", CHANGES[what]))


def test_the_version_follows_bytes_and_not_places(tmp_path: Path) -> None:
    before = version(write(tmp_path / "a"))
    assert before.startswith("tiny-")
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    (tmp_path / "elsewhere/b/a.safetensors").rename(tmp_path / "elsewhere/renamed.safetensors")
    moved = write(tmp_path / "elsewhere/b", lambda raw: raw.update(weights=[{"file": "../renamed.safetensors"}], about="x"))
    assert version(moved) == before
    for file in ("a.safetensors", "text/vocab.txt", "text/config.json"):
        path = write(tmp_path / "c")
        (tmp_path / "c" / file).write_bytes((tmp_path / "c" / file).read_bytes() + b" ")
        assert version(path) != before, file


MISTAKES: list[tuple[Change, str]] = [
    (lambda raw: raw.update(wieghts=[]), "unknown wieghts; known: .*weights"),
    (lambda raw: raw.pop("model"), "lacks model"),
    (lambda raw: raw.update(model="ViT-B-33"), "open_clip has no architecture 'ViT-B-33'"),
    (lambda raw: raw.update(name="Tiny Encoder"), "name: 'Tiny Encoder'"),
    (lambda raw: raw.update(weights=[{"file": "none.safetensors"}]), "no file .*none.safetensors; put it there"),
    (lambda raw: raw.update(weights=[{"file": "package:no_such_package/a"}]), "no package 'no_such_package'"),
    (lambda raw: raw["weights"][0].update(layout="tf"), "layout: 'tf' is none of open_clip"),
    (lambda raw: raw["model"]["text_cfg"].update(hf_model_name="org/model"), "nothing is fetched from a hub"),
    (lambda raw: raw["preprocess"].update(size="large"), "preprocess.size: 'large'"),
    (lambda raw: raw["preprocess"].update(mean=[1, 2]), "preprocess.mean"),
    (lambda raw: raw["fusion"].update(image_weight=0, text_weight=0), "not both 0"),
    (lambda raw: raw.update(precision="int8"), "precision: 'int8'"),
    (lambda raw: raw.update(jpeg_decoding=True), "jpeg_decoding: True is neither"),
    (lambda raw: raw.update(context_length=0), "context_length: 0"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_mistakes_are_named_with_the_file(tmp_path: Path, mistake: Change, message: str) -> None:
    path = write(tmp_path, mistake)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="take one of pinclip-base, so400m-siglip, vit-b-16, vit-b-32, or the path"):
        load_config("pinclip")
    with pytest.raises(ConfigError, match="cannot read this encoder config: No such file"):
        load_config(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken.json: not JSON"):
        load_config(tmp_path / "broken.json")
