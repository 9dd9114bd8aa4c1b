"""The swap: a published Qwen3-VL without its vision tower, reading pins as projected tokens instead.

The tower (0.4 billion parameters at the 2B and 4B sizes) is never in memory: the model is laid out without storage, the tower
is cut off, and of the files only the language model's tensors are read. What is left is transformers' own class with its own
weights: on text it says exactly what the published model says.

A native picture brings three things that a projected pin has not: 1,024 tokens at 1024 x 1024 pixels, their places in a grid
(three axes of positions), and features of three of the tower's layers that are added to the first layers of the language model
(DeepStack, arXiv 2406.04334). The projector's few tokens stand in a line like words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from assistant.brains.decoder import Decoder
from assistant.brains.prompts import Prompter, PromptError, Segment, Template, Vocabulary, qwen3_vl_vocabulary, reply
from assistant.projector import Projector

Edition = Literal["instruct", "thinking"]

CONFIG, TOKENIZER, WEIGHTS, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
TOWER = ("model.visual.", "visual.")
OPENS_THINKING = re.compile(r"assistant(\n|\\+n)<think>")
"""As a line's end, or as it is written in a template or in JSON."""


class WeightsError(Exception):
    """A folder has no whole Qwen3-VL, or one that does not fit; the message says what is missing."""


@dataclass(frozen=True)
class Loaded:
    """A language model that reads pins.

    edition: Qwen3-VL comes as Instruct, which answers at once, and as Thinking, which thinks first: two sets of weights.
    """

    decoder: Decoder
    prompter: Prompter
    edition: Edition

    def reply(self, thinks: bool) -> tuple[Segment, ...]:
        """The end of a prompt. thinks: whether the answer begins with thinking; an Instruct edition never does.

        The Thinking edition's own template begins to think; where it is not to, its thinking is empty.
        """
        if self.edition == "instruct":
            return reply()
        return (*reply(), Template("<think>\n" if thinks else "<think>\n\n</think>\n\n"))


def load(
    folder: Path,
    projector_folder: Path | None,
    embedding_version: str,
    *,
    name: str = "",
    edition: Edition | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Loaded:
    """Loads a folder as published (config.json, tokenizer.json, model.safetensors or its shards with their index).

    projector_folder: As `Projector.save` wrote it; None: prompts have no pins.
    embedding_version: Of the encoder whose vectors will be shown; a projector of another is refused.
    name: Of the language model, which the projector is locked to; "": the folder's name.
    edition: None: what the folder's chat template says.
    dtype: None: bfloat16 on a GPU, float32 on a CPU.

    Raises WeightsError, or ProjectorError for a projector that does not fit.
    """
    config = _read_config(folder)
    name = name or folder.resolve().name
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    projector = None
    if projector_folder is not None:  # first, since it is refused in no time
        projector = Projector.load(projector_folder, embedding_version, name).to(device)
    tokenizer, vocabulary = _read_tokenizer(folder, config)
    model = without_tower(config)
    _fill(model, folder, torch.device(device), dtype)
    try:
        decoder = Decoder.of(model, name, vocabulary.placeholder, projector)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    prompter = Prompter(tokenizer, vocabulary, projector.config.tokens if projector else 1)
    return Loaded(decoder, prompter, edition or _read_edition(folder))


def load_to_train(folder: Path, device: str) -> tuple[Qwen3VLForConditionalGeneration, str, Tokenizer, Vocabulary]:
    """The language model that a projector is trained for, its name, its tokenizer and vocabulary. Raises WeightsError."""
    config = _read_config(folder)
    tokenizer, vocabulary = _read_tokenizer(folder, config)
    model = without_tower(config)
    _fill(model, folder, torch.device(device), torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    return model, folder.resolve().name, tokenizer, vocabulary


def without_tower(config: Qwen3VLConfig) -> Qwen3VLForConditionalGeneration:
    """The model without the tower and without storage: on the meta device, to be filled."""
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    del model.model.visual
    torch.nn.Module.eval(model)
    return model


def _fill(model: Qwen3VLForConditionalGeneration, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Gives the model its weights from the files, tensor by tensor; the tower's are passed over."""
    expected = {key: value.shape for key, value in model.state_dict().items()}
    tied = bool(model.config.tie_word_embeddings)
    if tied:  # one tensor under two names
        del expected["lm_head.weight"]
    found: dict[str, torch.Tensor] = {}
    strange = []
    for key, file in _tensors(folder):
        if key in expected:
            tensor = file.get_tensor(key)
            if tensor.shape != expected[key]:
                raise WeightsError(f"{folder}: {key} is {tuple(tensor.shape)}, its config says {tuple(expected[key])}")
            found[key] = tensor.to(device, dtype)
        elif not key.startswith(TOWER) and not (tied and key == "lm_head.weight"):
            strange.append(key)
    missing = sorted(set(expected) - set(found))
    for what, keys in (("missing", missing), ("of no part of Qwen3-VL", sorted(strange))):
        if keys:
            raise WeightsError(f"{folder}: {len(keys)} of the language model's tensors are {what}, for example {keys[0]}")
    if tied:
        found["lm_head.weight"] = found["model.language_model.embed_tokens.weight"]
    model.load_state_dict(found, assign=True)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    # Frequencies of positions are computed, not loaded: on the meta device they are nothing yet.
    text_model = model.model.language_model
    text_model.rotary_emb = type(text_model.rotary_emb)(text_model.config).to(device)
    model.requires_grad_(False)
    assert not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers()))


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names of all tensors and the open file of each; none is read yet."""
    names = {WEIGHTS}
    if (folder / INDEX).is_file():
        names = set(_read_json(folder / INDEX).get("weight_map", {}).values())
    for name in sorted(names):
        if Path(name).name != name or not (folder / name).is_file():
            raise WeightsError(f"{folder} has no {name}: the download is not whole, or this is no folder of weights")
        try:
            with safe_open(str(folder / name), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    yield key, file
        except SafetensorError as error:
            raise WeightsError(f"{folder / name} is damaged: {error}") from None


def _read_config(folder: Path) -> Qwen3VLConfig:
    said = _read_json(folder / CONFIG)
    if said.get("model_type") != "qwen3_vl":
        raise WeightsError(f"{folder / CONFIG} is of model type {said.get('model_type')}, not qwen3_vl")
    config = Qwen3VLConfig.from_dict(said)
    assert isinstance(config, Qwen3VLConfig)
    return config


def _read_tokenizer(folder: Path, config: Qwen3VLConfig) -> tuple[Tokenizer, Vocabulary]:
    if not (folder / TOKENIZER).is_file():
        raise WeightsError(f"{folder} has no {TOKENIZER}")
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    try:
        vocabulary = qwen3_vl_vocabulary(tokenizer)
    except PromptError as error:
        raise WeightsError(f"{folder / TOKENIZER}: {error}") from None
    ids = vocabulary.placeholder, vocabulary.vision_start, vocabulary.vision_end
    if ids != (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id):
        raise WeightsError(f"{folder}: {TOKENIZER} and {CONFIG} name other tokens of pictures")
    return tokenizer, vocabulary


def _read_edition(folder: Path) -> Edition:
    """A Thinking edition's chat template opens `<think>` where the answer begins."""
    files = [folder / name for name in TEMPLATES if (folder / name).is_file()]
    texts = [file.read_text(encoding="utf-8") for file in files]
    texts = [text for file, text in zip(files, texts, strict=True) if file.suffix == ".jinja" or "chat_template" in text]
    if not texts:
        raise WeightsError(f"{folder} has no chat template: say which edition it is")
    return "thinking" if any(OPENS_THINKING.search(text) for text in texts) else "instruct"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None
    if not isinstance(said, dict):
        raise WeightsError(f"{file} is no JSON object")
    return said
