"""What an encoder is made of, as a JSON file, and the name of the vectors that it makes.

A config names an open_clip architecture, the files of its weights, the preprocessing, the precision and the fusion of a
pin's picture and text. This module reads it, finds the files and derives the `EmbeddingVersion`; it builds no model, never
imports torch, and never asks a model hub: every file is on this machine or it is an error.

A file is written as a path (absolute, or relative to the config's folder) or as `package:<package>/<path inside it>`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from embedding.contracts import EmbeddingVersion

CONFIGS_FOLDER = Path(__file__).parent / "configs"
DEFAULT_CONFIG = "pinclip-base"

VECTOR_REVISION = 1
"""Part of every fingerprint. Raise it with any change of `images`, `model` or `layouts` that changes what a vector is."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
LAYOUTS = ("open_clip", "efficientnet_lite0", "bert")
_PACKAGE = "package:"
_OPEN_CLIP_VOCABULARY = f"{_PACKAGE}open_clip/bpe_simple_vocab_16e6.txt.gz"


class ConfigError(ValueError):
    """A config that cannot be used. The message says which file, what is wrong, and what to do."""


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights. `prefix` is put before every tensor's name, once `layout` has made it open_clip's own.

    The layouts are described in `embedding.encoder.layouts`.
    """

    file: Path
    prefix: str = ""
    layout: str = "open_clip"


@dataclass(frozen=True)
class Preprocess:
    """open_clip's PreprocessCfg: how an RGB picture becomes the image tower's input."""

    size: int | tuple[int, int] = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


@dataclass(frozen=True)
class Fusion:
    """Weights of a pin's two unit vectors in their sum. A pin that has only one of them gets that one."""

    image_weight: float = 0.5
    text_weight: float = 0.5


@dataclass(frozen=True)
class LearnedFusion:
    """A fusion head with weights of its own (`embedding.encoder.fusion`): a pin's vector has `dim` dimensions."""

    dim: int
    hidden: int


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder, with all its files found. Made by `load_config`.

    model: open_clip's model config (embed_dim, vision_cfg, text_cfg), names of files in it made absolute paths.
    precision: the least one. bf16 weights and activations are used where the device computes them natively, fp32 elsewhere.
    jpeg_decoding: "scaled" decodes a JPEG no larger than the image tower has use for, "exact" decodes it whole, as open_clip
    does.
    context_length: tokens of text that are read; the rest is cut.
    """

    name: str
    model: dict[str, Any]
    weights: tuple[WeightsFile, ...]
    preprocess: Preprocess
    fusion: Fusion | LearnedFusion
    precision: Literal["fp32", "bf16"]
    jpeg_decoding: Literal["exact", "scaled"]
    context_length: int
    source: Path

    @property
    def dim(self) -> int:
        """Dimensions of a pin's vector."""
        return self.fusion.dim if isinstance(self.fusion, LearnedFusion) else self.width

    @property
    def width(self) -> int:
        """Dimensions of what each tower says of its picture or text."""
        return int(self.model["embed_dim"])

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the Hugging Face tokenizer; None where open_clip's own is used."""
        name = self.model["text_cfg"].get("hf_tokenizer_name")
        return Path(name) if name else None


def load_config(name_or_path: str | Path, *, absent_weights: Collection[Path] = ()) -> EncoderConfig:
    """Reads a config: by path, or by its name under embedding/encoder/configs.

    absent_weights: files of weights that are still to be made, and that are left out of the config; for training.

    Raises ConfigError for a file that is missing or no JSON, for a key that is unknown, missing or of a wrong value, and for
    a file that the config names and that does not exist. The weights are not opened.
    """
    path = _config_path(name_or_path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this encoder config: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    try:
        return _parse(raw, path, {file.resolve() for file in absent_weights})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def embedding_version(config: EncoderConfig) -> EmbeddingVersion:
    """The name of `config`'s vectors: a fingerprint of all that decides them.

    That is the architecture, the bytes of weights and tokenizer, preprocessing, fusion, precision and this library's
    `VECTOR_REVISION`; where the files lie is not. Reads each file once a process, and again when it has changed
    (0.3 s for 100 MB).
    """
    description = {
        "revision": VECTOR_REVISION,
        "model": _portable_model(config.model),
        "weights": sorted([_sha256(weights.file), weights.prefix, weights.layout] for weights in config.weights),
        "tokenizer": {file.name: _sha256(file) for file in _tokenizer_files(config)},
        "preprocess": asdict(config.preprocess),
        "fusion": asdict(config.fusion),
        "precision": config.precision,
        "context_length": config.context_length,
    }
    if config.precision == "bf16":  # since its weights are in bf16 too, and not the activations alone
        description["bf16"] = "weights"
    if config.jpeg_decoding != "exact":  # left out otherwise, as it was before there was a choice: those versions stay valid
        description["jpeg_decoding"] = config.jpeg_decoding
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return EmbeddingVersion(config.name, hashlib.sha256(canonical.encode()).hexdigest()[:12])


def _config_path(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".json"):
        return Path(name_or_path).absolute()
    path = CONFIGS_FOLDER / f"{text}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS_FOLDER.glob("*.json")))
        raise ConfigError(f"no encoder is called {text!r}: take one of {known}, or the path of a config file (.json)")
    return path


def _parse(raw: object, path: Path, absent: Collection[Path]) -> EncoderConfig:
    if not isinstance(raw, dict):  # not shown: any file of the machine may be named
        raise ConfigError("the config: a JSON object is needed")
    top = _object(raw, "the config")
    _check_keys(top, "the config", required={"name", "model", "weights"}, optional=_OPTIONAL)
    precision = top.get("precision", "fp32")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision: {precision!r} is neither fp32 nor bf16")
    jpeg_decoding = top.get("jpeg_decoding", "exact")
    if jpeg_decoding not in ("exact", "scaled"):
        raise ConfigError(f"jpeg_decoding: {jpeg_decoding!r} is neither exact nor scaled")
    model = _parse_model(top["model"], path.parent)
    context_length = top.get("context_length", model["text_cfg"].get("context_length", 77))
    if type(context_length) is not int or context_length < 1:
        raise ConfigError(f"context_length: {context_length!r} is no number of tokens")
    model["text_cfg"]["context_length"] = context_length
    return EncoderConfig(
        name=_parse_name(top["name"]),
        model=model,
        weights=_parse_weights(top["weights"], path.parent, absent),
        preprocess=_parse_preprocess(top.get("preprocess", {})),
        fusion=_parse_fusion(top.get("fusion", {})),
        precision=precision,
        jpeg_decoding=jpeg_decoding,
        context_length=context_length,
        source=path,
    )


_OPTIONAL = {"about", "preprocess", "fusion", "precision", "jpeg_decoding", "context_length"}


def _parse_name(name: object) -> str:
    try:
        EmbeddingVersion(str(name), "0" * 12)
    except ValueError:
        raise ConfigError(f"name: {name!r} must be of small letters, digits and _, joined by -") from None
    return str(name)


def _parse_model(model: object, folder: Path) -> dict[str, Any]:
    if isinstance(model, str):
        file = _find(f"{_PACKAGE}open_clip/model_configs/{model}.json", folder)
        if not file.is_file():
            raise ConfigError(f"model: open_clip has no architecture {model!r}; open_clip.list_models() lists them")
        model = json.loads(file.read_text(encoding="utf-8"))
    parsed = dict(_object(model, "model"))
    _check_keys(parsed, "model", {"embed_dim", "vision_cfg", "text_cfg"}, {"custom_text", "quick_gelu", "init_logit_bias"})
    if type(parsed["embed_dim"]) is not int or parsed["embed_dim"] < 1:
        raise ConfigError(f"model.embed_dim: {parsed['embed_dim']!r} is no number of dimensions")
    parsed["vision_cfg"] = dict(_object(parsed["vision_cfg"], "model.vision_cfg"))
    parsed["text_cfg"] = text = dict(_object(parsed["text_cfg"], "model.text_cfg"))
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if text.get(key):
            text[key] = str(_find(text[key], folder))
            if not Path(text[key]).is_dir():
                raise ConfigError(
                    f"model.text_cfg.{key}: no folder {text[key]}; name one on this machine "
                    "(a path, or package:<package>/<path>): nothing is fetched from a hub"
                )
    return parsed


def _parse_weights(raw: object, folder: Path, absent: Collection[Path]) -> tuple[WeightsFile, ...]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError('weights: a list of {"file": ...} is needed')
    parsed = [_parse_weights_file(entry, f"weights[{index}]", folder) for index, entry in enumerate(raw)]
    kept = [weights for weights in parsed if weights.file.resolve() not in absent]
    for weights in kept:
        if not weights.file.is_file():
            raise ConfigError(
                f"weights: no file {weights.file}; put it there, or point `file` at a .safetensors or .pth file on this machine"
            )
    return tuple(kept)


def _parse_weights_file(raw: object, where: str, folder: Path) -> WeightsFile:
    entry = _object(raw, where)
    _check_keys(entry, where, {"file"}, {"prefix", "layout"})
    file = _find(str(entry["file"]), folder)
    weights = WeightsFile(file, str(entry.get("prefix", "")), str(entry.get("layout", "open_clip")))
    if weights.layout not in LAYOUTS:
        raise ConfigError(f"{where}.layout: {weights.layout!r} is none of {', '.join(LAYOUTS)}")
    return weights


def _parse_preprocess(raw: object) -> Preprocess:
    entry = _object(raw, "preprocess")
    _check_keys(entry, "preprocess", set(), {field.name for field in fields(Preprocess)})
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    cfg = Preprocess(**cast(Any, values))
    sizes = cfg.size if isinstance(cfg.size, tuple) else (cfg.size, cfg.size)
    if len(sizes) != 2 or not all(type(side) is int and side > 0 for side in sizes):
        raise ConfigError(f"preprocess.size: {cfg.size!r} is neither a side nor [height, width] in pixels")
    for key, triple in (("mean", cfg.mean), ("std", cfg.std)):
        if not isinstance(triple, tuple) or len(triple) != 3 or not all(_is_number(value) for value in triple):
            raise ConfigError(f"preprocess.{key}: {triple!r} is no list of three numbers")
    if cfg.interpolation not in ("bicubic", "bilinear") or cfg.resize_mode not in ("shortest", "longest", "squash"):
        raise ConfigError("preprocess: interpolation is bicubic or bilinear, resize_mode is shortest, longest or squash")
    return cfg


def _parse_fusion(raw: object) -> Fusion | LearnedFusion:
    entry = _object(raw, "fusion")
    if "hidden" in entry or "dim" in entry:
        _check_keys(entry, "fusion", {"dim", "hidden"}, set())
        if not all(type(entry[name]) is int and entry[name] > 0 for name in ("dim", "hidden")):
            raise ConfigError(f"fusion: {dict(entry)} must be two whole numbers above 0")
        return LearnedFusion(entry["dim"], entry["hidden"])
    _check_keys(entry, "fusion", set(), {field.name for field in fields(Fusion)})
    fusion = Fusion(**cast(Any, entry))
    weights = (fusion.image_weight, fusion.text_weight)
    if not all(_is_number(weight) and 0 <= weight < float("inf") for weight in weights) or sum(weights) == 0:
        raise ConfigError(f"fusion: {weights} must be two numbers of 0 or more, not both 0")
    return Fusion(float(fusion.image_weight), float(fusion.text_weight))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: a JSON object is needed, not {value!r:.80}")
    return value


def _check_keys(entry: Mapping[str, Any], where: str, required: set[str], optional: set[str]) -> None:
    if missing := sorted(required - entry.keys()):
        raise ConfigError(f"{where}: lacks {', '.join(missing)}")
    if unknown := sorted(entry.keys() - required - optional):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(required | optional))}")


def _find(name: str, folder: Path) -> Path:
    if not name.startswith(_PACKAGE):
        return Path(os.path.normpath(folder / name))
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    top, *nested = package.split(".")
    # Looked up, not imported: importing a package of models often imports torch.
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{name}: no package {top!r} is installed here; install it, or name a path")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*nested, inside)


def _portable_model(model: dict[str, Any]) -> dict[str, Any]:
    """`model` with the bytes of a local text model's config in place of its path, and without what is never used."""
    text = {key: value for key, value in model["text_cfg"].items() if key not in ("hf_tokenizer_name", "hf_model_pretrained")}
    vision = {key: value for key, value in model["vision_cfg"].items() if key != "timm_model_pretrained"}
    if text.get("hf_model_name"):
        text["hf_model_name"] = _sha256(Path(text["hf_model_name"]) / "config.json")
    return {**model, "text_cfg": text, "vision_cfg": vision}


def _tokenizer_files(config: EncoderConfig) -> list[Path]:
    folder = config.tokenizer_folder
    if folder is None:
        return [_find(_OPEN_CLIP_VOCABULARY, Path())]
    found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise ConfigError(f"{config.source}: model.text_cfg.hf_tokenizer_name: {folder} holds no tokenizer files")
    return found


def _sha256(file: Path) -> str:
    try:
        found = file.stat()
        return _sha256_of(file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except OSError as error:
        raise ConfigError(f"{file}: cannot read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _sha256_of(file: Path, *_state: int) -> str:
    """Of a file in one state: a task, or a program, that asks again for a version does not read 100 MB again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
