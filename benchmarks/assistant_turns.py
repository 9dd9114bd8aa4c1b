"""The turns that the assistant's protocol times: one prompt of pins three ways, to the first token and on.

native: Pictures are decoded, prepared and encoded by the model's own tower while the user waits. Of the same pass comes what is
left when the tower's tokens are cached: everything but those three steps, and reading the tokens from files instead.
projected: The night's vectors through a projector of K tokens, by the very code that serves (assistant/brains).

Prompts are the same but for the pictures: an instruction, each pin's number and title beside its picture, a question.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from assistant.brains.decoder import Collected, Decoder, KeysValues, fill, read
from assistant.brains.prompts import Data, Pin, Prompt, Prompter, Template, Vocabulary, reply, turn
from assistant.brains.slots import Slots
from assistant.projector import Projector, ProjectorConfig
from benchmarks.assistant_shapes import TOKENS_A_PICTURE, Watch
from demo.openclipart import clipart_root, read_clipart

DIM, PICTURES, SIDE = 256, 50, 1_024
STEPS = 16
"""Tokens after the first: what tokens a second are measured over."""
AT_ONCE = 65_536
"""Tokens that are read in one call of the model: more do not make it faster, and would not fit."""
PICTURES_AT_ONCE = 16
QUESTION = "Which of these would go with a small bright kitchen, and why? Name them by number."


@dataclass(frozen=True)
class Shown:
    """A pin of the protocol: its title, its picture as a JPEG of 1024 x 1024 pixels, its vector."""

    title: str
    jpeg: bytes
    vector: np.ndarray[Any, np.dtype[np.float32]]


def read_pins(cache: Path) -> list[Shown]:
    """Fifty of openclipart's, of all folders, on white, at 1024 x 1024 pixels; random vectors."""
    found = [clip for clip in read_clipart(clipart_root(cache)) if clip.meta.title and not clip.link_to and clip.pixels < 4e6]
    rng = np.random.default_rng(1)
    pins = []
    for clip in found[:: len(found) // PICTURES][:PICTURES]:
        with Image.open(clip.path) as picture:
            white = Image.new("RGBA", picture.size, "white")
            flat = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        file = io.BytesIO()
        ImageOps.pad(flat, (SIDE, SIDE), color="white").save(file, "JPEG", quality=90)
        vector = rng.standard_normal(DIM).astype(np.float32)
        pins.append(Shown(clip.meta.title or "", file.getvalue(), vector / np.linalg.norm(vector)))
    return pins


def prompts(prompter: Prompter, pins: Sequence[Shown], candidates: int, batch: int) -> list[Prompt]:
    """So many conversations, each over other pins."""
    made = []
    for row in range(batch):
        shown = [pins[(row * 7 + number) % len(pins)] for number in range(candidates)]
        listed = [
            part
            for number, pin in enumerate(shown, 1)
            for part in (Template(f"\n[{number}] "), Pin(pin.vector), Data(" " + pin.title))
        ]
        made.append(
            prompter.prompt(
                [
                    *turn("system", Template("You help people find pins. Answer briefly, over the pins that are listed only.")),
                    *turn("user", *listed, Template("\n"), Data(QUESTION)),
                    *reply(),
                ]
            )
        )
    return made


@dataclass
class Timed:
    """Seconds of one turn's stages, measured and scaled to the whole depth, and what it was made of."""

    tokens: int
    stages: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)


class Bench:
    """A model, its pins, and the ways to show them. folder: where cached tokens of the tower may be written."""

    def __init__(
        self, model: Qwen3VLForConditionalGeneration, watch: Watch, vocabulary: Vocabulary, tokenizer: Any, folder: Path
    ):
        self.model, self.watch, self.vocabulary, self.tokenizer, self.folder = model, watch, vocabulary, tokenizer, folder
        self.inner: Any = model.model
        self.hidden: int = model.lm_head.in_features
        self.native_prompter = Prompter(tokenizer, vocabulary, TOKENS_A_PICTURE)
        self.processor = Qwen2VLImageProcessor(
            patch_size=16,
            size={"shortest_edge": 65_536, "longest_edge": 16_777_216},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder.of(self.model, "random", self.vocabulary.placeholder)

    def projected(self, pins: Sequence[Shown], candidates: int, batch: int, tokens_a_pin: int) -> Timed:
        device = self.decoder.device
        config = ProjectorConfig("random", "random", DIM, tokens_a_pin, self.hidden, 1_024)
        projector = Projector(config).to(device, torch.bfloat16).eval().requires_grad_(False)
        decoder = Decoder.of(self.model, "random", self.vocabulary.placeholder, projector)
        prompter = Prompter(self.tokenizer, self.vocabulary, tokens_a_pin)
        rows = prompts(prompter, pins, candidates, batch)
        longest = max(len(prompt.ids) for prompt in rows)
        slots = Slots(decoder, batch)
        slots.reserve(batch, longest + STEPS + 1, 0)
        with self.watch.timing(device) as span:
            rows = prompts(prompter, pins, candidates, batch)
            last = []
            for start, some in _groups(rows, longest):
                hidden, made = read(decoder, [decoder.embed(prompt) for prompt in some])
                last.append(self._keep(slots, start, some, hidden, made))
            first = decoder.logits(torch.cat(last)).argmax(-1)
            first.tolist()
        timed = Timed(longest, {"prompt": span.whole_s}, {"prompt": span.measured_s})
        self._go_on(timed, slots, first, [len(prompt.ids) for prompt in rows], [0] * batch)
        return timed

    def native(self, pins: Sequence[Shown], candidates: int, batch: int) -> Timed:
        """Stages: prepare (decode and cut to patches), tower, fetch (the tower's tokens from files), prompt, step."""
        device = self.decoder.device
        timing = self.watch.timing
        rows = prompts(self.native_prompter, pins, candidates, batch)
        longest = max(len(prompt.ids) for prompt in rows)
        timed = Timed(longest, dict.fromkeys(("prepare", "tower", "fetch", "prompt"), 0.0))
        timed.measured = dict(timed.stages)
        shown = [(row * 7 + number) % len(pins) for row in range(batch) for number in range(candidates)]
        features: list[list[Tensor]] = []
        for start in range(0, len(shown), PICTURES_AT_ONCE):
            some = shown[start : start + PICTURES_AT_ONCE]
            with timing(device) as span:
                pictures = [Image.open(io.BytesIO(pins[number].jpeg)).convert("RGB") for number in some]
                prepared = self.processor(images=pictures, return_tensors="pt")
                pixels = prepared["pixel_values"].to(device, torch.bfloat16)
                grid = prepared["image_grid_thw"].to(device)
            _add(timed, "prepare", span.measured_s, span.whole_s)
            with timing(device) as span:
                seen = self.inner.get_image_features(pixels, grid, return_dict=True)
                features.append([torch.cat(part) for part in (seen.pooler_output, *seen.deepstack_features)])
            _add(timed, "tower", span.measured_s, span.whole_s)
        files = self._cached_files(len(pins), 1 + len(seen.deepstack_features))
        with timing(device) as span:
            fetched = [load_file(str(files[number])) for number in shown]
            moved = [torch.cat([each[f"level_{level}"] for each in fetched]).to(device) for level in range(len(features[0]))]
        _add(timed, "fetch", span.measured_s, span.whole_s)
        levels = [torch.cat(parts) for parts in zip(*features, strict=True)]
        assert levels[0].shape == moved[0].shape == (len(shown) * TOKENS_A_PICTURE, self.hidden)
        del fetched, moved, features
        slots = Slots(self.decoder, batch)
        slots.reserve(batch, longest + STEPS + 1, 0)
        last, offsets = [], []
        with timing(device) as span:
            prompts(self.native_prompter, pins, candidates, batch)
            for first_row, group in _groups(rows, longest):
                size = candidates * TOKENS_A_PICTURE
                own = [level[first_row * size : (first_row + len(group)) * size] for level in levels]
                hidden, made, deltas = self._read_native(group, own, candidates)
                offsets += deltas
                last.append(self._keep(slots, first_row, group, hidden, made))
            first = self.decoder.logits(torch.cat(last)).argmax(-1)
            first.tolist()
        _add(timed, "prompt", span.measured_s, span.whole_s)
        self._go_on(timed, slots, first, [len(prompt.ids) for prompt in rows], offsets)
        return timed

    def _read_native(
        self, rows: Sequence[Prompt], levels: Sequence[Tensor], candidates: int
    ) -> tuple[Tensor, list[KeysValues], list[int]]:
        """As transformers' own forward does it: positions in three axes, DeepStack's features added to the first layers."""
        device = self.decoder.device
        grid = torch.tensor([[1, SIDE // 16, SIDE // 16]] * candidates, device=device)
        longest = max(len(prompt.ids) for prompt in rows)
        ids = torch.full((len(rows), longest), self.vocabulary.end_of_turn, device=device)
        positions = torch.zeros(3, len(rows), longest, dtype=torch.long, device=device)
        deltas = []
        for row, prompt in enumerate(rows):
            size = len(prompt.ids)
            ids[row, :size] = torch.tensor(prompt.ids, device=device)
            kinds = (ids[row : row + 1, :size] == self.vocabulary.placeholder).int()
            places, delta = self.inner.get_rope_index(ids[row : row + 1, :size], kinds, image_grid_thw=grid)
            positions[:, row, :size] = places[:, 0]
            deltas.append(int(delta))
        pictures = ids == self.vocabulary.placeholder
        embeds = fill(torch.nn.functional.embedding(ids, self.decoder.weight), pictures, levels[0].unsqueeze(0))
        collected = Collected()
        said = self.decoder.text_model(
            inputs_embeds=embeds,
            position_ids=positions,
            past_key_values=collected.cache(),
            visual_pos_masks=pictures,
            deepstack_visual_embeds=list(levels[1:]),
            use_cache=True,
        )
        return torch.as_tensor(said.last_hidden_state), collected.made, deltas

    def _keep(self, slots: Slots, start: int, rows: Sequence[Prompt], hidden: Tensor, made: Sequence[KeysValues]) -> Tensor:
        """Keys and values into their slots; returns the last tokens' hidden states."""
        for number, prompt in enumerate(rows):
            slots.write(start + number, [], made, number, len(prompt.ids))
        ends = torch.tensor([len(prompt.ids) - 1 for prompt in rows], device=hidden.device)
        return hidden[torch.arange(len(rows), device=hidden.device), ends]

    def _go_on(self, timed: Timed, slots: Slots, first: Tensor, lengths: list[int], offsets: list[int]) -> None:
        """The tokens after the first: the mean time of one more of every conversation."""
        device, tokens = self.decoder.device, first
        shift = torch.tensor(offsets, device=device).unsqueeze(-1)
        with self.watch.timing(device) as span:
            for step in range(STEPS):
                cache, positions, mask = slots.step([length + step for length in lengths])
                embeds = torch.nn.functional.embedding(tokens.unsqueeze(-1), self.decoder.weight)
                hidden = self.decoder.forward(embeds, positions + shift, cache, mask)
                tokens = self.decoder.logits(hidden[:, -1]).argmax(-1)
                tokens.tolist()
        _add(timed, "step", span.measured_s / STEPS, span.whole_s / STEPS)

    def _cached_files(self, number: int, levels: int) -> list[Path]:
        """The tower's tokens of each pin in a file, as a night could have kept them; random, since only their size matters."""
        files = [self.folder / f"{pin}.safetensors" for pin in range(number)]
        if not files[0].exists():
            some = {f"level_{level}": torch.randn(TOKENS_A_PICTURE, self.hidden).bfloat16() for level in range(levels)}
            for file in files:
                save_file(some, str(file))
        return files


def _groups(rows: Sequence[Prompt], longest: int) -> list[tuple[int, Sequence[Prompt]]]:
    size = max(1, AT_ONCE // longest)
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]


def _add(timed: Timed, stage: str, measured_s: float, whole_s: float) -> None:
    timed.stages[stage] = timed.stages.get(stage, 0.0) + whole_s
    timed.measured[stage] = timed.measured.get(stage, 0.0) + measured_s
