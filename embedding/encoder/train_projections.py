"""Trains the two linear projections of an encoder whose towers stay as they are.

    python -m embedding.encoder.train_projections --pairs pairs.parquet --out embedding/encoder/weights/pinclip-base.safetensors

Reads image-text pairs, runs both towers once over each of them, and trains the projections and the logit scale on the
features with open_clip's contrastive loss. A fifth of the creators is held out, which is about a tenth of the pins, and all
figures are about those. The output holds the three trained tensors alone, with the command and the figures in its metadata.

It trains no tower, and it does not write the fusion weights into a config: it prints how they fare, for a person to choose.

Shape suffixes: N pairs, F features of a tower, D dimensions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from open_clip import ClipLoss
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from embedding.contracts import EmbeddingVersion
from embedding.encoder.config import DEFAULT_CONFIG, EncoderConfig, load_config
from embedding.encoder.fetch import fetch_image
from embedding.encoder.images import decode_image
from embedding.encoder.limits import ImageLimits, ImageRejected
from embedding.encoder.model import PinEncoder, build_model, load_weights

Floats = npt.NDArray[np.float32]

PROGRAM = "python -m embedding.encoder.train_projections"
TRAINED = ("visual.head.proj.weight", "text.proj.weight", "logit_scale")
BATCH_SIZE = 64
PIXELS_A_SIDE = 8
MAX_HELD_OUT_PINS = 100


@dataclass(frozen=True)
class Features:
    """What the frozen towers say of N pairs: image_NF, text_NF, and short_NF of the text's first sentence alone.

    pixels_NF is the baseline's view of an image: 8 x 8 pixels. creators are of the pairs that could be read, in order.
    """

    image_NF: Floats  # noqa: N815
    text_NF: Floats  # noqa: N815
    short_NF: Floats  # noqa: N815
    pixels_NF: Floats  # noqa: N815
    creators: list[str]


@dataclass(frozen=True)
class Options:
    """How to train. dropout is on the features, and keeps 1,280 of them from learning 4,000 pairs by heart."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Trains the two projections of an encoder.")
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet with columns image_uri, text, creator")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="encoder config: a name or a path")
    parser.add_argument("--features", type=Path, help="a .npz file to keep the towers' features in, for a second training")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Reads, trains, measures, writes."""
    args = parse_args(argv)
    options = Options(args.epochs, args.batch_size, args.learning_rate, args.weight_decay, args.dropout, args.seed)
    config = load_config(args.config, absent_weights=(args.out,))
    features = read_features(args.pairs, config, args.features)
    held_out = choose_held_out(features.creators)
    trained = train(features, ~held_out, config.dim, options)
    figures = measure(features, held_out, trained)
    print(json.dumps(figures, indent=2))
    words = sys.argv[1:] if argv is None else argv
    # Folders are of one machine; the names of the files are what the command means.
    metadata = {"command": " ".join([PROGRAM, *(Path(word).name for word in words)])}
    metadata |= {"seed": str(options.seed), "figures": json.dumps(figures, sort_keys=True)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = args.out.with_suffix(".partial")
    save_file(trained, unfinished, metadata=metadata)
    unfinished.chmod(0o644)  # safetensors makes it readable for its owner alone
    unfinished.replace(args.out)


def choose_held_out(creators: list[str]) -> npt.NDArray[np.bool_]:
    """Which pairs are for measuring: those of a fifth of the creators, by a hash of the name, so the same in every run.

    Whoever made more than MAX_HELD_OUT_PINS is trained on: one of them alone would be most of the measure.
    """
    pins_by = Counter(creators)
    held_out = {
        creator
        for creator, pins in pins_by.items()
        if pins <= MAX_HELD_OUT_PINS and hashlib.sha256(creator.encode()).digest()[0] < 256 // 5
    }
    return np.array([creator in held_out for creator in creators])


def read_features(pairs: Path, config: EncoderConfig, kept: Path | None) -> Features:
    """The towers' features of the pairs, from `kept` if it is there and of these pairs, else computed (and kept)."""
    pairs_sha256 = hashlib.sha256(pairs.read_bytes()).hexdigest()
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            if str(file["pairs_sha256"]) != pairs_sha256:
                raise ValueError(f"{kept}: features of other pairs than {pairs}; delete it or name another file")
            image_NF, text_NF, short_NF, pixels_NF = (file[f"{name}_NF"] for name in ("image", "text", "short", "pixels"))
            return Features(image_NF, text_NF, short_NF, pixels_NF, file["creators"].tolist())
    features = compute_features(pairs, config)
    if kept is not None:
        np.savez(kept, pairs_sha256=pairs_sha256, **vars(features))
    return features


def compute_features(pairs: Path, config: EncoderConfig) -> Features:
    """Runs both towers over the pairs. Pictures that cannot be decoded are left out, and counted aloud."""
    rows = pq.read_table(pairs, columns=["image_uri", "text", "creator"]).to_pylist()
    model = build_model(config)
    load_weights(model, config, untrained=TRAINED)
    encoder = PinEncoder.of_model(config, EmbeddingVersion(config.name, "0" * 12), model)
    seen: dict[str, list[Floats]] = {"image": [], "text": [], "short": [], "pixels": []}
    creators: list[str] = []
    for read in _read_batches(encoder, rows):
        tensors, pixels, kept = (list(part) for part in zip(*read, strict=True))
        texts = [row["text"] for row in kept]
        creators += [row["creator"] or "" for row in kept]
        seen["pixels"].append(np.stack(pixels))
        seen["image"].append(_input_of(encoder, "visual.head.proj", partial(encoder.encode_images, torch.stack(tensors))))
        seen["text"].append(_input_of(encoder, "text.proj", partial(encoder.encode_texts, texts)))
        short = [text.split(". ")[0] for text in texts]
        seen["short"].append(_input_of(encoder, "text.proj", partial(encoder.encode_texts, short)))
        print(f"\r{len(creators)} of {len(rows)} pairs", end="", file=sys.stderr, flush=True)
    print(f"; {len(rows) - len(creators)} pictures could not be read", file=sys.stderr)
    image_NF, text_NF, short_NF, pixels_NF = (np.concatenate(seen[name]) for name in ("image", "text", "short", "pixels"))
    return Features(image_NF, text_NF, short_NF, pixels_NF, creators)


def _read_batches(encoder: PinEncoder, rows: list[dict[str, Any]]) -> Iterator[list[tuple[Tensor, Floats, dict[str, Any]]]]:
    limits = ImageLimits.from_environment()

    def read(row: dict[str, Any]) -> tuple[Tensor, Floats, dict[str, Any]] | None:
        try:
            image = decode_image(fetch_image(row["image_uri"], limits), limits.max_pixels)
        except ImageRejected:
            return None
        small = image.resize((PIXELS_A_SIDE, PIXELS_A_SIDE), Image.Resampling.BOX)
        return encoder.transform(image), np.asarray(small, dtype=np.float32).ravel() / np.float32(255), row

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(rows), BATCH_SIZE):
            if batch := [one for one in pool.map(read, rows[start : start + BATCH_SIZE]) if one is not None]:
                yield batch


def _input_of(encoder: PinEncoder, layer: str, run: Callable[[], object]) -> Floats:
    """What reaches `layer` while `run` runs: a tower's features, taken on the very path that encodes pins."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])

    hook = encoder.model.get_submodule(layer).register_forward_pre_hook(keep)
    try:
        run()
    finally:
        hook.remove()
    return np.asarray(torch.cat(inputs).float().cpu().numpy(), dtype=np.float32)


def train(features: Features, chosen_N: npt.NDArray[np.bool_], dim: int, options: Options) -> dict[str, Tensor]:
    """The tensors of TRAINED, fitted to the chosen pairs by symmetric InfoNCE. Equal seeds give equal tensors."""
    generator = torch.Generator().manual_seed(options.seed)
    image_NF, text_NF, short_NF = (
        torch.from_numpy(part[chosen_N]) for part in (features.image_NF, features.text_NF, features.short_NF)
    )
    widths = (image_NF.shape[1], text_NF.shape[1])
    weights = [nn.Parameter(torch.randn(dim, width, generator=generator) * width**-0.5) for width in widths]
    scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": [scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(cast(Any, groups), lr=options.learning_rate)
    steps_an_epoch = max(1, len(image_NF) // options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps_an_epoch)
    loss_of = ClipLoss()
    for _ in range(options.epochs):
        order = torch.randperm(len(image_NF), generator=generator)
        for step in range(steps_an_epoch):
            rows = order[step * options.batch_size : (step + 1) * options.batch_size]
            # Half of the time the first sentence alone, which is how people search.
            use_short = torch.rand(len(rows), 1, generator=generator) < 0.5
            parts = (image_NF[rows], torch.where(use_short, short_NF[rows], text_NF[rows]))
            image_ND, text_ND = (
                nn.functional.normalize(_drop(part, options.dropout, generator) @ weight.T, dim=-1)
                for part, weight in zip(parts, weights, strict=True)
            )
            optimizer.zero_grad()
            loss_of(image_ND, text_ND, scale.exp()).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                scale.clamp_(0, float(np.log(100)))
    return dict(zip(TRAINED, (weights[0].detach(), weights[1].detach(), scale.detach()), strict=True))


def _drop(features_NF: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    keep = torch.rand(features_NF.shape, generator=generator) >= dropout
    return features_NF * keep / (1 - dropout)


def measure(features: Features, held_out_N: npt.NDArray[np.bool_], trained: dict[str, Tensor]) -> dict[str, Any]:
    """Figures on the held-out pairs: retrieval both ways, the baseline of pixels, and fusions by their weight."""
    image_ND = _unit(features.image_NF[held_out_N] @ trained[TRAINED[0]].numpy().T)
    text_ND = _unit(features.text_NF[held_out_N] @ trained[TRAINED[1]].numpy().T)
    creators = np.array(features.creators)[held_out_N]
    return {
        "pairs": {"trained": int((~held_out_N).sum()), "held_out": int(held_out_N.sum()), "creators": len(set(creators))},
        "image_to_text": recalls(image_ND @ text_ND.T),
        "text_to_image": recalls(text_ND @ image_ND.T),
        "image_to_text_by_pixels": recalls(_pixel_similarities(features, held_out_N)),
        "same_creator_at_10_by_image_weight": {
            str(tenths / 10): _same_creator(_unit(tenths / 10 * image_ND + (1 - tenths / 10) * text_ND), creators)
            for tenths in range(11)
        },
        "same_creator_at_10_by_pixels": _same_creator(-_distances(*[features.pixels_NF[held_out_N]] * 2), creators, True),
    }


def recalls(similarity_NN: Floats) -> dict[str, float]:
    """R@1 and R@5: how often row i's own column i is among its 1 or 5 largest. Ties count against it.

    >>> recalls(np.array([[0.9, 0.1], [0.8, 0.2]], np.float32))
    {'R@1': 0.5, 'R@5': 1.0}
    """
    ranks_N = (similarity_NN >= np.diag(similarity_NN)[:, None]).sum(axis=1)
    return {f"R@{k}": round(float((ranks_N <= k).mean()), 4) for k in (1, 5)}


def _pixel_similarities(features: Features, held_out_N: npt.NDArray[np.bool_]) -> Floats:
    """Each held-out image borrows the text of the training image that looks most alike in 8 x 8 pixels."""
    nearest = _distances(features.pixels_NF[held_out_N], features.pixels_NF[~held_out_N]).argmin(axis=1)
    return cast(Floats, _unit(features.text_NF[~held_out_N][nearest]) @ _unit(features.text_NF[held_out_N]).T)


def _same_creator(vectors_or_similarities: Floats, creators_N: npt.NDArray[Any], are_similarities: bool = False) -> float:
    """How many of the ten nearest other pins are by the pin's own creator, for creators with more than ten pins."""
    similarity_NN = vectors_or_similarities if are_similarities else vectors_or_similarities @ vectors_or_similarities.T
    np.fill_diagonal(similarity_NN, -np.inf)
    nearest = np.argsort(-similarity_NN, axis=1)[:, :10]
    names, counts = np.unique(creators_N, return_counts=True)
    asked = np.isin(creators_N, names[counts > 10])
    return round(float((creators_N[nearest] == creators_N[:, None])[asked].mean()), 4) if asked.any() else float("nan")


def _distances(a_NF: Floats, b_NF: Floats) -> Floats:
    """Squared Euclidean distances."""
    return cast(Floats, (a_NF**2).sum(1)[:, None] - 2 * a_NF @ b_NF.T + (b_NF**2).sum(1))


def _unit(vectors_ND: Floats) -> Floats:
    return cast(Floats, vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
