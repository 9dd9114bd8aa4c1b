"""The training: first the projector alone, on names; then it and the language model, which learns through LoRA.

Stage 1 teaches what a pin is called, what is said of it and how it is tagged; stage 2 the questions and the serving form, with
titles and tags among them still, lest they be forgotten. The order of a stage's batches follows from the seed, so a training
that was killed goes on from its last checkpoint as if nothing had been: same batches, same state of the optimizer.

LLaVA's two stages (arXiv 2304.08485); LoRA: arXiv 2106.09685; answers weighed by what they gain over their likelihood without
the picture: PMI (arXiv 2104.08315).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from assistant.brains.adapter import save_adapter
from assistant.brains.prompts import Prompter
from assistant.brains.wording import Shown, ask_tags, ask_title
from assistant.projector import Projector, ProjectorConfig
from assistant.training.batches import Encoded, by_length, encode_example
from assistant.training.checkpoint import CHECKPOINT, Checkpoint, State, put_values
from assistant.training.conversations import (
    ANSWER,
    DESCRIPTION,
    FITS,
    SAME_BOARD,
    TAG,
    TAGS,
    TITLE,
    TOOL,
    WORD,
    Example,
)
from assistant.training.seeing import Seeing, batches_of
from assistant.training.warm_start import fit_names, learn_names, name_targets

SAY_EVERY_S = 30.0
ANSWERS_AT_ONCE = 64
FACTOR = 2
"""Of what LoRA adds: alpha / rank."""

log = logging.getLogger("pinlake")


@dataclass(frozen=True)
class Stage:
    """One of the training's parts.

    tokens: How many it reads in all; an example is read again where few are there.
    shares: Of these tokens, by kind.
    projector_rate, lora_rate: Learning rates; 0 for what stays as it is.
    """

    name: str
    tokens: int
    shares: dict[str, float]
    projector_rate: float
    lora_rate: float = 0.0


STAGES = (
    Stage("captions", 95_000, {TITLE: 0.68, WORD: 0.1, DESCRIPTION: 0.07, TAGS: 0.15}, 5e-4, 1e-3),
    Stage("questions", 150_000, {TITLE: 0.1, TAG: 0.1, SAME_BOARD: 0.18, FITS: 0.3, ANSWER: 0.27, TOOL: 0.05}, 3e-4, 1e-3),
)


@dataclass(frozen=True)
class TrainingSetting:
    """What a training is made with, apart from its stages.

    tokens_a_pin: K. width: Of the projector's inner layer.
    name_steps: Before the language model reads anything (warm_start.py).
    batch_tokens: Of a step, the padding with them.
    scale_tokens: Of both stages' tokens; 1 for all of them.
    lora_rank: 0 leaves the language model as it is: the projector learns alone.
    """

    tokens_a_pin: int = 4
    width: int = 1_024
    name_steps: int = 800
    lora_rank: int = 8
    lora_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj")
    batch_tokens: int = 480
    checkpoint_every_s: float = 120.0
    scale_tokens: float = 1.0
    seed: int = 0


def start(
    language_model: Any,
    name: str,
    embedding_version: str,
    prompter: Prompter,
    named: Sequence[Example],
    setting: TrainingSetting,
) -> Seeing:
    """A projector that knows names, in front of a language model. named: examples of TITLE and WORD."""
    torch.manual_seed(setting.seed)
    embeddings_VH = language_model.get_input_embeddings().weight.detach().float().cpu()
    vectors_ND = torch.from_numpy(np.stack([example.vectors_ND[0] for example in named]))
    dim, hidden = vectors_ND.shape[1], embeddings_VH.shape[1]
    config = ProjectorConfig(embedding_version, name, dim, setting.tokens_a_pin, hidden, setting.width)
    projector = Projector(config, scale=float(embeddings_VH.pow(2).mean().sqrt()))
    # After a space: there most words are one token.
    names = [prompter.data(f" {example.choices[example.right]}") for example in named]
    targets_NK = name_targets(names, setting.tokens_a_pin)
    left_out = torch.tensor([example.about for example in named]) % 5 == 4
    fit = fit_names(projector, vectors_ND, targets_NK, embeddings_VH, left_out)
    log.info("projector from %d names: its tokens have a cosine of %.2f with those of names left out", len(names), fit)
    is_pin_N = torch.tensor([example.kind == TITLE for example in named])
    learn_names(projector, vectors_ND, targets_NK, embeddings_VH, is_pin_N, setting.name_steps, setting.seed)
    projector.to(language_model.get_input_embeddings().weight.device)
    return Seeing(language_model, projector, prompter.vocabulary.placeholder)


def with_priors(seeing: Seeing, examples: Sequence[Example], prompter: Prompter) -> list[Encoded]:
    """Examples of which title or tag, encoded with how likely each answer is where no pin is shown."""
    encoded = [encode_example(example, prompter) for example in examples]
    priors: dict[tuple[str, tuple[int, ...]], float] = {}
    asks = {TITLE: ask_title, TAG: ask_tags}
    for kind, ask in asks.items():
        own = [one for one, example in zip(encoded, examples, strict=True) if example.kind == kind]
        answers = sorted({choice for one in own for choice in one.choices})
        parts = [tuple(answers[at : at + ANSWERS_AT_ONCE]) for at in range(0, len(answers), ANSWERS_AT_ONCE)]
        prompt = prompter.prompt(ask(Shown(None)))
        for part, (sums, _) in zip(parts, seeing.score([Encoded(prompt, part, 0) for part in parts]), strict=True):
            priors |= {(kind, choice): float(found) for choice, found in zip(part, sums, strict=True)}
    known = zip(encoded, (example.kind for example in examples), strict=True)
    return [
        replace(one, priors=tuple(priors[kind, choice] for choice in one.choices)) if kind in asks else one
        for one, kind in known
    ]


def draw(examples: dict[str, list[Encoded]], stage: Stage, tokens: int, seed: int) -> list[Encoded]:
    """Examples of a stage by its shares, the same ones for the same seed; an epoch of a kind ends before the next begins."""
    rng = np.random.default_rng(seed)
    drawn: list[Encoded] = []
    for kind, share in stage.shares.items():
        left, known = share * tokens, examples.get(kind, [])
        while left > 0 and known:
            for place in rng.permutation(len(known)):
                drawn.append(known[place])
                left -= known[place].length
                if left <= 0:
                    break
    return drawn


def train(seeing: Seeing, examples: Sequence[Example], prompter: Prompter, setting: TrainingSetting, folder: Path) -> None:
    """Both stages, from the checkpoint in `folder` if there is one. The language model of `seeing` gets LoRA layers."""
    by_kind: dict[str, list[Encoded]] = {}
    for example, one in zip(examples, with_priors(seeing, examples, prompter), strict=True):
        if setting.lora_rank or len(example.pins):  # without a pin there is nothing for a projector to learn
            by_kind.setdefault(example.kind, []).append(one)
    rank, layers = setting.lora_rank, list(setting.lora_modules)
    seeing.language_model.requires_grad_(False)
    torch.manual_seed(setting.seed)
    if rank:
        lora = LoraConfig(r=rank, lora_alpha=FACTOR * rank, target_modules=layers, task_type="CAUSAL_LM")
        seeing.language_model = get_peft_model(seeing.language_model, lora).base_model.model
    checkpoint = Checkpoint(folder / CHECKPOINT, asdict(setting) | {"stages": [asdict(stage) for stage in STAGES]})
    at_stage, at_step, held = checkpoint.read()
    if held:
        put_values(seeing, held)
    for number, stage in enumerate(STAGES):
        if number < at_stage:
            continue
        drawn = draw(by_kind, stage, int(stage.tokens * setting.scale_tokens), setting.seed + number)
        if drawn:
            _train_stage(seeing, stage, drawn, setting, checkpoint, number, at_step if number == at_stage else 0, held)
        held = {}


def _parameters(seeing: Seeing, stage: Stage) -> list[dict[str, Any]]:
    """The optimizer's groups; what a stage does not train has no gradient."""
    lora = [(name, value) for name, value in seeing.language_model.named_parameters() if "lora_" in name]
    for _, value in lora:
        value.requires_grad_(stage.lora_rate > 0)
    seeing.projector.requires_grad_(stage.projector_rate > 0)
    rated = [(list(seeing.projector.parameters()), stage.projector_rate), ([value for _, value in lora], stage.lora_rate)]
    return [{"params": params, "lr": rate, "most": rate} for params, rate in rated if params and rate > 0]


def _train_stage(
    seeing: Seeing,
    stage: Stage,
    drawn: Sequence[Encoded],
    setting: TrainingSetting,
    checkpoint: Checkpoint,
    number: int,
    done: int,
    held: dict[str, Tensor],
) -> None:
    optimizer = torch.optim.AdamW(_parameters(seeing, stage), weight_decay=0.01, betas=(0.9, 0.98))
    state = State(seeing, optimizer)
    state.put_moments(held)
    seed = setting.seed + 100 + number
    batches = batches_of(drawn, setting.batch_tokens, seeing.placeholder, seed, skip=done)
    steps = sum(1 for _ in _places(drawn, setting, seed))
    started = said = saved = time.monotonic()
    losses: list[float] = []
    seeing.train()
    for step, (_, batch) in enumerate(batches, done):
        for group in optimizer.param_groups:
            group["lr"] = group["most"] * _warm_then_cosine(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss = seeing.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([value for group in optimizer.param_groups for value in group["params"]], 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        now = time.monotonic()
        if now - said > SAY_EVERY_S or step == steps - 1:
            log.info("%s: step %d of %d, loss %.3f, %.0f s", stage.name, step + 1, steps, np.mean(losses[-50:]), now - started)
            said = now
        if now - saved > setting.checkpoint_every_s or step == steps - 1:
            last = step == steps - 1
            checkpoint.write(number + last, 0 if last else step + 1, state.values(optimizer=not last))
            saved = now
    seeing.eval()


def _places(drawn: Sequence[Encoded], setting: TrainingSetting, seed: int) -> Iterator[list[int]]:
    return by_length([one.length for one in drawn], setting.batch_tokens, np.random.default_rng(seed))


def _warm_then_cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def save_weights(seeing: Seeing, folder: Path, setting: TrainingSetting, facts: dict[str, Any]) -> None:
    """The projector and the LoRA weights, as what serves reads them (assistant/projector.py, assistant/brains/adapter.py)."""
    config = seeing.projector.config
    seeing.projector.save(folder)
    if not setting.lora_rank:
        return
    lora = {name: value.detach() for name, value in seeing.language_model.named_parameters() if ".lora_" in name}
    layers = sorted({name.partition(".lora_")[0] for name in lora})
    names = {layer: [f"{layer}.lora_{part}.default.weight" for part in "AB"] for layer in layers}
    pairs = {layer.removeprefix("base_model.model."): (lora[a], lora[b]) for layer, (a, b) in names.items()}
    save_adapter(
        folder,
        pairs,
        float(FACTOR),
        language_model=config.language_model,
        embedding_version=config.embedding_version,
        facts={"setting": asdict(setting), **facts},
    )
