"""The projector: a pin's embedding as K tokens of a language model, in place of a vision tower's output.

The design is LLaVA's (arXiv 2304.08485, a connector between a frozen encoder and a language model), at its cheapest: the
night's one vector a pin goes in, K token embeddings come out, whatever the picture's size. A native tower makes 1,024 tokens of
a picture of 1024 x 1024 pixels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = 1
CONFIG, WEIGHTS = "projector.json", "projector.safetensors"


class ProjectorError(Exception):
    """A projector's folder is missing, damaged or made for something else; the message says which."""


@dataclass(frozen=True)
class ProjectorConfig:
    """What a projector is made for. Two that differ in any of these never mix.

    embedding_version: The encoder whose vectors it reads.
    language_model: The name of the language model whose token embeddings it makes.
    dim: D, of a pin's embedding.
    tokens: K, how many tokens a pin becomes.
    hidden: H, of the language model's token embeddings.
    width: Of the layer in between.
    """

    embedding_version: str
    language_model: str
    dim: int
    tokens: int
    hidden: int
    width: int


class Projector(nn.Module):
    """(N, D) L2-normalised vectors of pins to (N, K, H) token embeddings.

    Its output has the language model's own scale: each token is normalised and multiplied by one learned factor, which starts
    at the root mean square of the model's token embeddings, so that an untrained projector is noise of the right size.
    """

    def __init__(self, config: ProjectorConfig, scale: float = 1.0):
        super().__init__()
        self.config = config
        self.inner = nn.Linear(config.dim, config.width)
        self.outer = nn.Linear(config.width, config.tokens * config.hidden)
        self.norm = nn.LayerNorm(config.hidden, elementwise_affine=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, pins_ND: Tensor) -> Tensor:
        raised = pins_ND.to(self.inner.weight.dtype) * self.config.dim**0.5  # of the order of 1: where GELU bends
        tokens = self.outer(nn.functional.gelu(self.inner(raised))).view(-1, self.config.tokens, self.config.hidden)
        return torch.as_tensor(self.norm(tokens) * self.scale)

    def save(self, folder: Path) -> None:
        """Writes the config, which has the weights' SHA-256, beside the weights (float16)."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, str(folder / WEIGHTS))
        said = {"format": FORMAT, "sha256": _sha256(folder / WEIGHTS), **asdict(self.config)}
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, embedding_version: str, language_model: str) -> Projector:
        """Raises ProjectorError where a file is missing or damaged, or of another encoder or language model."""
        try:
            said = json.loads((folder / CONFIG).read_text())
            if said.pop("format") != FORMAT:
                raise ProjectorError(f"the projector in {folder} is of another format than {FORMAT}: train it again")
            sha256 = said.pop("sha256")
            config = ProjectorConfig(**said)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProjectorError(f"there is no readable projector in {folder}: {error}") from None
        for what, wanted in (("embedding_version", embedding_version), ("language_model", language_model)):
            if getattr(config, what) != wanted:
                raise ProjectorError(
                    f"the projector in {folder} is for {what} {getattr(config, what)}, this is {wanted}: train one for it"
                )
        if not (folder / WEIGHTS).is_file() or _sha256(folder / WEIGHTS) != sha256:
            raise ProjectorError(f"{folder / WEIGHTS} is missing or damaged: its SHA-256 is not the one in {CONFIG}")
        projector = cls(config)
        try:
            projector.load_state_dict({name: value.float() for name, value in load_file(str(folder / WEIGHTS)).items()})
        except RuntimeError as error:
            raise ProjectorError(f"the weights in {folder} do not fit their config: {error}") from None
        return projector.eval().requires_grad_(False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
