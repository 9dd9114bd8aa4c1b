"""Trains PinCLIP: image and text of a pin in one space, and pins of one board near each other.

    python -m embedding.encoder.train --home .pinlake --training-set 2026-11-20-0123456789ab --recipe pinclip-base --out DIR

Two losses over a training set's stream (arXiv 2603.03544): pictures with their own texts, and pins with a neighbour from
their board, fused and with picture or text left out at times; both at nested dimensions. Runs alone or as one of several
processes that torchrun started, on a GPU (bf16) where there is one.

The folder `out` ends with `config.json` and `weights.safetensors`, an encoder like any other, and `training.json`, the record.
Killed and started again, the training goes on from `checkpoint.safetensors` and ends in the same weights, to the bit if on
as many threads.

Shape suffixes: N pins, H hard negatives a pin, E dimensions of a tower's vector, D of a pin's vector.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from embedding import log_lines
from embedding.contracts import EmbeddingVersion
from embedding.encoder.building import build_model, load_weights, weights_names
from embedding.encoder.config import ConfigError, EncoderConfig, embedding_version, load_config
from embedding.encoder.examples import Batch, ExampleStream, examples_an_epoch
from embedding.encoder.features import Projections
from embedding.encoder.losses import MaskedClipLoss, nested
from embedding.encoder.model import PinEncoder
from embedding.encoder.recipe import DEFAULT_RECIPE, Recipe, RecipeError, load_recipe
from embedding.encoder.sources import FeatureSource, PictureSource, PinFeatures, Pins, Source
from embedding.encoder.training_set import TRAIN, Manifest, TrainingSetError, read_manifest, read_pins
from embedding.encoder.warm_start import warm_start
from embedding.tables.lake import Lake

CONFIG, WEIGHTS, RECORD, PROGRESS, CHECKPOINT = (
    "config.json",
    "weights.safetensors",
    "training.json",
    "progress.jsonl",
    "checkpoint.safetensors",
)
MAX_SCALE = 100.0
"""As in CLIP: a larger logit scale only makes the softmax sure of itself."""

CHECKPOINT_EVERY_S = 60.0
PROGRESS_EVERY_S = 2.0

log = logging.getLogger("pinlake")


@dataclass(frozen=True)
class Place:
    """Which process this is, and where it computes."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class Outputs(NamedTuple):
    """What the losses are made of: image-only, text-only and fused vectors (N, D) of pins, fused ones (M, D) of hard negatives.

    The fused ones lack picture or text at times. The scales go through the module, so that processes average their gradients.
    """

    image_ND: Tensor  # noqa: N815
    text_ND: Tensor  # noqa: N815
    fused_ND: Tensor  # noqa: N815
    negatives_MD: Tensor | None  # noqa: N815
    image_text_scale: Tensor
    neighbour_scale: Tensor


class PinClipTrainer(nn.Module):
    """The model with what only training needs: the neighbours' scale, dropout of features and of whole modalities."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.neighbour_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.recipe = recipe
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(recipe.is_trained(name))

    def train(self, mode: bool = True) -> PinClipTrainer:
        """Dropout and batch norm are in training only where something is trained."""
        self.training = mode
        for module in self.model.modules():
            module.training = mode and any(p.requires_grad for p in module.parameters())
        return self

    @property
    def logit_scales(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Logarithms of the scales of the two losses."""
        return cast(nn.Parameter, self.model.logit_scale), self.neighbour_scale

    def forward(self, pins: Pins, negatives: Pins | None) -> Outputs:
        """Runs towers and fusion head."""
        image_NE, text_NE = self._towers(pins)
        nothing, none = torch.zeros_like(image_NE), torch.zeros_like(pins.has_image_N)
        fuse = cast(Any, self.model).fusion
        image_ND = fuse(image_NE, nothing, pins.has_image_N, none)
        text_ND = fuse(nothing, text_NE, none, pins.has_text_N)
        fused_ND = fuse(image_NE, text_NE, *self._some_modalities(pins))
        further = None if negatives is None else fuse(*self._towers(negatives), *self._some_modalities(negatives))
        scales = (scale.exp() for scale in self.logit_scales)
        return Outputs(image_ND, text_ND, fused_ND, further, *scales)

    def _towers(self, pins: Pins) -> tuple[Tensor, Tensor]:
        image_NE = self._tower(pins.image, self.recipe.image_projection, pins.frozen_image, "encode_image")
        text_NE = self._tower(pins.text, self.recipe.text_projection, pins.frozen_text, "encode_text")
        return image_NE[pins.index_N], text_NE[pins.index_N]

    def _tower(self, given: Tensor, projection: str | None, frozen: bool, run: str) -> Tensor:
        if not frozen:
            vectors = getattr(self.model, run)(given)
        else:
            kept = nn.functional.dropout(given, self.recipe.feature_dropout, self.training)
            vectors = kept if projection is None else self.model.get_submodule(projection)(kept)
        return nn.functional.normalize(vectors.float(), dim=-1)

    def _some_modalities(self, pins: Pins) -> tuple[Tensor, Tensor]:
        """Which modalities are shown: of pins that have both, some lose the picture and as many the text."""
        both = pins.has_image_N & pins.has_text_N
        drawn = torch.rand(len(both)).to(both.device)
        share = self.recipe.modality_dropout if self.training else 0.0
        return pins.has_image_N & ~(both & (drawn < share)), pins.has_text_N & ~(both & (drawn > 1 - share))


def losses_of(trainer: nn.Module, recipe: Recipe, source: Source, batch: Batch, loss: MaskedClipLoss) -> dict[str, Tensor]:
    """The weighted losses of a batch, by name."""
    pins, negatives = source.pins(batch)
    n = len(batch.anchor_N)
    out: Outputs = trainer(pins, negatives)
    device = out.fused_ND.device

    def keys(*columns: Any) -> Tensor:
        return torch.stack([torch.from_numpy(column) for column in columns], dim=1).to(device)

    losses: dict[str, Tensor] = {}
    if recipe.image_text_weight and recipe.use_text:
        same = keys(batch.anchor_group_N, batch.text_N)
        both = (pins.has_image_N & pins.has_text_N)[:n]
        losses["image_text"] = recipe.image_text_weight * nested(
            recipe.dims, lambda cut: loss(cut(out.image_ND[:n]), cut(out.text_ND[:n]), out.image_text_scale, same, same, both)
        )
    if recipe.neighbour_weight:
        has = torch.from_numpy(batch.has_positive_N).to(device)
        has_hard = torch.from_numpy(batch.has_negative_NH).to(device)
        key_a, key_b = keys(batch.board_N, batch.anchor_group_N), keys(batch.board_N, batch.positive_group_N)

        def neighbours(cut: Callable[[Tensor], Tensor]) -> Tensor:
            hard = None if out.negatives_MD is None else cut(out.negatives_MD).view(n, has_hard.shape[1], -1)
            anchors, positives = cut(out.fused_ND[:n]), cut(out.fused_ND[n:])
            return cast(Tensor, loss(anchors, positives, out.neighbour_scale, key_a, key_b, has, hard, has_hard))

        losses["neighbours"] = recipe.neighbour_weight * nested(recipe.dims, neighbours)
    return losses


# -- one training --------------------------------------------------------------------------------------------------------------


def load_start(recipe: Recipe) -> tuple[EncoderConfig, nn.Module, set[str]]:
    """The config without what this training makes, the model that training starts from, and the tensors that no file gave."""
    config = load_config(recipe.encoder, absent_weights=(recipe.replaces,) if recipe.replaces else ())
    model = build_model(config)
    given = weights_names(config)
    new = {name for name in model.state_dict() if recipe.is_trained(name) and name not in given}
    load_weights(model, config, untrained=new)
    return config, model, new


def train(
    lake: Lake,
    set_id: str,
    recipe: Recipe,
    out: Path,
    *,
    place: Place | None = None,
    features: PinFeatures | None = None,
    stop_after: int | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> EncoderConfig:
    """Trains, or goes on with a training that was killed; returns the encoder in `out`.

    Args:
        features: The frozen towers' features of the training split's pins, and of no other (the warm start takes principal
            components of them), where the caller has them; else they are computed.
        stop_after: Ends after this many steps of the whole, for trying out; nothing but the checkpoint is left.

    Raises RecipeError, ConfigError or TrainingSetError for what cannot be trained.
    """
    place = place or Place()
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)  # what no file and no warm start gives is drawn at random
    manifest = read_manifest(lake, set_id)
    log_lines.tell(ds=manifest.ds)
    config, model, new = load_start(recipe)
    encoder = PinEncoder.of_model(config, EmbeddingVersion(config.name, "0" * 12), model, place.device)
    source = _source(lake, manifest, recipe, encoder, out, place, features)
    if new:
        warm_start(model, recipe, new, source)
    trainer = PinClipTrainer(model, recipe).to(place.device)
    run = _Run(recipe, manifest, trainer, source, out, place, _step_count(lake, manifest, recipe, place), started)
    threads = torch.get_num_threads()
    if not source.needs_contents:
        # A step on features is too small to be shared: threads would wait for each other, and on a busy machine for minutes.
        torch.set_num_threads(1)
    try:
        finished = run.go(lake, stop_after, checkpoint_every_s)
    finally:
        torch.set_num_threads(threads)
    if not finished:
        return config
    trained_config = config
    if place.is_first:
        trained_config = _write_encoder(recipe, model, new, out)
        record = {
            "encoder": config.name,
            "embedding_version": str(embedding_version(trained_config)),
            "training_set": set_id,
            "recipe": recipe.to_dict(),
            "seed": recipe.seed,
            "steps": run.steps,
            "processes": place.world_size,
            "device": torch.cuda.get_device_name() if place.device.startswith("cuda") else "cpu",
            "seconds": round(run.seconds(), 1),
            "final_loss": run.last_losses,
        }
        (out / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (out / CHECKPOINT).unlink(missing_ok=True)
    return trained_config


def _step_count(lake: Lake, manifest: Manifest, recipe: Recipe, place: Place) -> int:
    anchors = examples_an_epoch(lake, manifest) * recipe.epochs
    return max(1, round(anchors / (recipe.batch_size * place.world_size)))


def _source(
    lake: Lake,
    manifest: Manifest,
    recipe: Recipe,
    encoder: PinEncoder,
    out: Path,
    place: Place,
    features: PinFeatures | None,
) -> Source:
    names = [name for name, _ in encoder.model.named_parameters() if recipe.is_trained(name)]
    if not names:
        raise RecipeError(f"trained: {', '.join(recipe.trained)} names no tensor of {encoder.config.name}")
    projections = Projections(recipe.image_projection, recipe.text_projection)
    frozen = {
        tower: not any(name.startswith(prefixes) and not name.startswith(f"{projection}.") for name in names)
        for tower, prefixes, projection in (
            ("image", ("visual.",), projections.image),
            ("text", ("text.", "transformer.", "token_embedding.", "text_projection", "ln_final."), projections.text),
        )
    }
    if all(frozen.values()):
        if features is None:
            features = PinFeatures.of_set(lake, manifest, encoder, projections, out, place.rank, place.world_size)
        elif len(
            held_out := np.setdiff1d(features.pin_ids, read_pins(lake, manifest, ["pin_id"], (TRAIN,))["pin_id"].to_numpy())
        ):
            # A training starts from the features' principal components: one pin more would be looked at.
            raise TrainingSetError(
                f"features of {len(held_out)} pins that are kept out of the training: {held_out[:3].tolist()}"
            )
        return FeatureSource(features, place.device, use_text=recipe.use_text)
    return PictureSource(encoder, use_text=recipe.use_text)


class _Run:
    """The steps of one training, with its checkpoints."""

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        trainer: PinClipTrainer,
        source: Source,
        out: Path,
        place: Place,
        steps: int,
        began: float,
    ) -> None:
        self.recipe, self.manifest, self.trainer, self.source, self.out, self.place = (
            recipe,
            manifest,
            trainer,
            source,
            out,
            place,
        )
        self.steps, self.step = steps, 0
        self._began = began
        self.last_losses: dict[str, float] = {}
        self._trained = {name: p for name, p in trainer.named_parameters() if p.requires_grad}
        decayed = [p for p in self._trained.values() if p.ndim >= 2]
        others = [p for p in self._trained.values() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(cast(Any, groups), lr=recipe.learning_rate)
        self._loss = MaskedClipLoss(place.rank, place.world_size)

    def go(self, lake: Lake, stop_after: int | None, checkpoint_every_s: float) -> bool:
        """Runs the steps that are left. True where the training came to its end."""
        self._resume()
        module: nn.Module = self.trainer
        if self.place.world_size > 1:
            # Where a loss is left out, what only it uses has no gradient.
            module = nn.parallel.DistributedDataParallel(self.trainer, find_unused_parameters=True)
        stream = ExampleStream(
            lake,
            self.manifest,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            hard_negatives=self.recipe.hard_negatives,
            rank=self.place.rank,
            world_size=self.place.world_size,
            with_contents=self.source.needs_contents,
        )
        started, first, said, saved = time.monotonic(), self.step, 0.0, time.monotonic()
        batches = stream.batches(skip=self.step)
        while self.step < self.steps:
            if stop_after is not None and self.step >= stop_after:
                self._save()
                return False
            self._one_step(module, next(batches))
            now = time.monotonic()
            if self.place.is_first and (now - said > PROGRESS_EVERY_S or self.step == self.steps):
                self._say((self.step - first) / (now - started))
                said = now
            if now - saved > checkpoint_every_s:
                self._save()
                saved = now
        return True

    def _one_step(self, module: nn.Module, batch: Batch) -> None:
        # Seeded anew at each step, so that a resumed training draws what the first would have drawn.
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * 1_009 + self.place.rank)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * learning_rate_share(self.step, self.steps, self.recipe.warmup_share)
        module.train()
        on_gpu = self.place.device.startswith("cuda")
        with torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=on_gpu):
            losses = losses_of(module, self.recipe, self.source, batch, self._loss)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            raise TrainingSetError(f"the loss is no number at step {self.step}: lower the learning rate")
        self._optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():
            for scale in self.trainer.logit_scales:
                scale.clamp_(0, math.log(MAX_SCALE))
        self.last_losses = {name: round(float(value.detach()), 5) for name, value in losses.items()}
        self.step += 1

    def _say(self, steps_a_second: float) -> None:
        pins_a_second = steps_a_second * self.recipe.batch_size * self.place.world_size
        line = {
            "step": self.step,
            "epoch": round(self.step / self.steps * self.recipe.epochs, 3),
            "loss": round(sum(self.last_losses.values()), 5),
            **self.last_losses,
            "images_per_s": round(pins_a_second, 1),
            "seconds": round(self.seconds(), 1),
        }
        with (self.out / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        left_s = (self.steps - self.step) / max(steps_a_second, 1e-9)
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self.last_losses.items())
        log.info("step %d of %d: %s, %.0f pairs/s, %.0f s left", self.step, self.steps, losses, pins_a_second, left_s)

    def seconds(self) -> float:
        """Since the training began, features among them, less the time between a kill's checkpoint and the start after it."""
        return time.monotonic() - self._began

    def _identity(self) -> str:
        parts = [self.recipe.fingerprint, self.manifest.set_id, str(self.place.world_size), str(self.steps)]
        return "/".join(parts)

    def _save(self) -> None:
        """All that the next step depends on: weights, both moments of AdamW and the step's number."""
        if not self.place.is_first:
            return
        tensors = {f"weight.{name}": p.detach().cpu() for name, p in self._trained.items()}
        for name, parameter in self._trained.items():
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": value.detach().cpu() for key, value in state.items()}
        unfinished = self.out / f".{CHECKPOINT}"
        save_file({key: value.contiguous() for key, value in tensors.items()}, unfinished, self._about())
        unfinished.replace(self.out / CHECKPOINT)

    def _about(self) -> dict[str, str]:
        return {"identity": self._identity(), "step": str(self.step), "seconds": f"{self.seconds():.1f}"}

    def _resume(self) -> None:
        """Takes up the checkpoint, if there is one of this very training. Every process reads the same file."""
        file = self.out / CHECKPOINT
        if not file.is_file():
            (self.out / PROGRESS).unlink(missing_ok=True) if self.place.is_first else None
            return
        with safe_open(file, framework="pt") as saved:
            about = saved.metadata()
            if about["identity"] != self._identity():
                raise TrainingSetError(
                    f"{file} is of another training (recipe, set or processes differ): delete it or take another folder"
                )
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118 - safe_open is no mapping
        self.step = int(about["step"])
        self._began -= float(about.get("seconds", 0))
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[f"weight.{name}"])
                moments = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
                }
                if moments:
                    self._optimizer.state[parameter] = {
                        key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
                    }
        log.info("going on from step %d of %d", self.step, self.steps)


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak: up in a line over the warm-up, then down a half cosine to 0."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# -- the encoder that comes out ------------------------------------------------------------------------------------------------


def _write_encoder(recipe: Recipe, model: nn.Module, new: set[str], out: Path) -> EncoderConfig:
    """Config and weights. The file holds what no other file gives, or all of the model where a tower was trained."""
    state = cast(Mapping[str, Tensor], model.state_dict())
    is_whole = any(recipe.is_trained(name) for name in state if name not in new)
    held = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items() if is_whole or name in new}
    unfinished = out / f".{WEIGHTS}"
    save_file(held, unfinished, {"recipe": json.dumps(recipe.to_dict(), sort_keys=True)})
    unfinished.chmod(0o644)  # safetensors makes it readable for its owner alone
    unfinished.replace(out / WEIGHTS)
    raw = json.loads(recipe.encoder.read_text(encoding="utf-8"))
    raw["weights"] = [] if is_whole else _other_weights(raw["weights"], recipe)
    raw["weights"].append({"file": WEIGHTS})
    (out / CONFIG).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    return load_config(out / CONFIG)


def _other_weights(entries: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
    """The config's other files, paths made absolute since the copy lies elsewhere."""
    others = []
    for entry in entries:
        name = str(entry["file"])
        path = name if name.startswith("package:") else str((recipe.encoder.parent / name).resolve())
        if recipe.replaces is None or path != str(recipe.replaces):
            others.append(dict(entry) | {"file": path})
    return others


def join_others() -> Place:
    """This process among those that torchrun started (one alone otherwise); gloo on CPUs, NCCL on GPUs."""
    has_gpu = torch.cuda.is_available()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if has_gpu else "cpu"
    if has_gpu:
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if has_gpu else "gloo")
        if not has_gpu:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return Place(rank, world_size, device)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains an encoder on a training set.")
    parser.add_argument("--home", required=True, help="where the lake lies, and in it the training set")
    parser.add_argument("--training-set", required=True, metavar="ID", help="made by jobs/build_training_set.py")
    parser.add_argument("--out", required=True, type=Path, help="folder for the encoder; a killed training goes on there")
    parser.add_argument("--run-id", help="names the run in the log's lines")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="name or path of a recipe")
    parser.add_argument("--seed", type=int, help="another seed than the recipe's")
    parser.add_argument("--epochs", type=float, help="another number of epochs than the recipe's")
    parser.add_argument("--checkpoint-every-s", type=float, default=CHECKPOINT_EVERY_S, help="seconds between checkpoints")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    log_lines.set_up(sys.stdout)
    log_lines.start_over(run_id=args.run_id)
    changes = {name: getattr(args, name) for name in ("seed", "epochs") if getattr(args, name) is not None}
    place = join_others()
    try:
        recipe = load_recipe(args.recipe).changed(**changes)
        train(Lake(args.home), args.training_set, recipe, args.out, place=place, checkpoint_every_s=args.checkpoint_every_s)
    except (RecipeError, ConfigError, TrainingSetError) as error:
        log.error("%s", error)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
