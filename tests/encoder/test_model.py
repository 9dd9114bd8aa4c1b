"""The encoder's vectors: unit length, fused as the config says, the same in every batch; and weights that must fit."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip import create_model
from PIL import Image
from safetensors.torch import load_file, save_file

from embedding.contracts import EMBEDDING_DIM
from embedding.encoder.config import DEFAULT_CONFIG, ConfigError, Fusion, embedding_version, load_config
from embedding.encoder.model import PinEncoder

TEXTS = ["a red bicycle", "lemon", "bell pepper. " * 200, "Zwölf Boxkämpfer 🥊 jagen Viktor", "x" * 20_000, "two dead frogs"]


def pictures(count: int) -> list[Image.Image]:
    dice = np.random.default_rng(1)
    sizes = [(64, 48), (300, 20), (31, 500), (224, 224)]
    return [
        Image.fromarray(dice.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(sizes[i % len(sizes)]) for i in range(count)
    ]


def assert_unit(vectors: np.ndarray[Any, Any], count: int, dim: int) -> None:
    assert vectors.shape == (count, dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_default_is_of_the_tables_width_and_names_its_vectors(encoder: PinEncoder) -> None:
    assert encoder.dim == EMBEDDING_DIM
    assert encoder.version == embedding_version(load_config(DEFAULT_CONFIG))
    assert_unit(encoder.encode_texts(TEXTS), len(TEXTS), encoder.dim)
    assert encoder.encode_texts([]).shape == encoder.encode_images(torch.empty(0, 3, 224, 224)).shape == (0, encoder.dim)


def test_pins_use_what_they_have(encoder: PinEncoder) -> None:
    pixels = [encoder.transform(image) for image in pictures(3)]
    assert {tuple(pixel.shape) for pixel in pixels} == {(3, 224, 224)}
    images, texts = encoder.encode_images(torch.stack(pixels)), encoder.encode_texts(TEXTS[:3])
    vectors = encoder.encode_pins([pixels[0], None, pixels[2]], [TEXTS[0], TEXTS[1], ""])
    assert_unit(vectors, 3, encoder.dim)
    for row, alone in ((1, texts[1]), (2, images[2])):
        np.testing.assert_allclose(vectors[row], alone, atol=1e-5)
    assert min(vectors[0] @ images[0], vectors[0] @ texts[0]) > images[0] @ texts[0], "both are in the fused vector"
    with pytest.raises(ValueError, match=r"pins \[1\] of this batch have neither"):
        encoder.encode_pins([pixels[0], None], ["", ""])


def test_a_weighted_fusion_is_the_sum_by_its_weights(encoder: PinEncoder) -> None:
    config = replace(encoder.config, fusion=Fusion(0.3, 0.7))
    weighted = PinEncoder(config, encoder.version, encoder.model, encoder.device)
    pixels = [weighted.transform(image) for image in pictures(2)]
    images, texts = weighted.encode_images(torch.stack(pixels)), weighted.encode_texts(TEXTS[:2])
    vectors = weighted.encode_pins([pixels[0], pixels[1]], [TEXTS[0], ""])
    fused = 0.3 * images[0] + 0.7 * texts[0]
    np.testing.assert_allclose(vectors, [fused / np.linalg.norm(fused), images[1]], atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(encoder: PinEncoder) -> None:
    pixels = [encoder.transform(image) for image in pictures(len(TEXTS))]
    together = encoder.encode_pins(pixels, TEXTS)
    alone = np.concatenate([encoder.encode_pins([pixel], [text]) for pixel, text in zip(pixels, TEXTS, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_line_of_pixels_is_not_blown_up(encoder: PinEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shortest:
        resize_mode = "shortest"

    monkeypatch.setattr(encoder, "config", type("Config", (), {"preprocess": Shortest}))
    for size in ((30_000_000, 1), (1, 30_000_000)):
        assert encoder.transform(Image.new("RGB", size)).shape == (3, 224, 224)


def test_it_means_something(encoder: PinEncoder) -> None:
    """The towers read words and pictures: a tower with mixed-up weights gives unit vectors too."""
    bike, bicycle, soup = encoder.encode_texts(["a bicycle", "a red bike", "tomato soup"])
    assert bike @ bicycle > bike @ soup + 0.2
    flag = Image.new("RGB", (300, 200), "white")
    flag.paste((206, 17, 38), (0, 0, 300, 66))
    flag.paste((0, 87, 183), (0, 133, 300, 200))
    (seen,) = encoder.encode_images(encoder.transform(flag)[None])
    scores = encoder.encode_texts(["flag of a country", "cat, animal", "kitchen knife", "violin, music"]) @ seen
    assert scores.argmax() == 0


def vit(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "vit.safetensors")
    path = folder / "vit.json"
    path.write_text(json.dumps({"name": "vit-b-32", "model": "ViT-B-32", "weights": [{"file": "vit.safetensors"}]}))
    return path


def test_vit_b_32_loads_from_a_local_file_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("asked for the network")

    torch.manual_seed(0)
    reference = create_model("ViT-B-32").eval()
    weights = dict(reference.state_dict())
    config = load_config(vit(tmp_path, weights))
    monkeypatch.setattr(socket.socket, "connect", no_network)
    vit_encoder = PinEncoder.load(config)
    pixels = torch.stack([vit_encoder.transform(image) for image in pictures(2)])
    assert_unit(vit_encoder.encode_pins(list(pixels), TEXTS[:2]), 2, 512)
    with torch.inference_mode():
        expected = reference.encode_image(pixels, normalize=True).numpy()
    np.testing.assert_allclose(vit_encoder.encode_images(pixels), expected, atol=1e-5)

    left_out = weights.pop("visual.proj")
    weights["visual.extra"] = left_out
    weights["logit_scale"] = torch.zeros(2)
    vit(tmp_path, weights)
    with pytest.raises(ConfigError) as caught:
        PinEncoder.load(config)
    for part in ("vit.json", "1 missing: visual.proj", "1 unexpected: visual.extra", "logit_scale is [2], not []"):
        assert part in str(caught.value)


def test_weights_that_are_none(tmp_path: Path) -> None:
    default = load_config(DEFAULT_CONFIG)
    raw = json.loads(default.source.read_text())
    raw["weights"][2]["file"] = "trained.safetensors"
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(raw))
    trained = load_file(default.weights[2].file)
    alone = {name for name in trained if not name.startswith("fusion.")}
    assert alone == {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}, "no tower of a package is copied"
    for content, message in ((b"<html>", "no readable weights"), (b"", "no readable weights")):
        (tmp_path / "trained.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            PinEncoder.load(load_config(path))
    save_file(trained | {"visual.trunk.conv_stem.weight": torch.zeros(1)}, tmp_path / "trained.safetensors")
    with pytest.raises(ConfigError, match=r"that an earlier file held: visual\.trunk\.conv_stem\.weight"):
        PinEncoder.load(load_config(path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_vectors_of_a_cpu(encoder: PinEncoder) -> None:
    pixels = [encoder.transform(image) for image in pictures(4)]
    on_gpu = PinEncoder.load(encoder.config, device="cuda:0")
    np.testing.assert_allclose(on_gpu.encode_pins(pixels, TEXTS[:4]), encoder.encode_pins(pixels, TEXTS[:4]), atol=1e-4)
