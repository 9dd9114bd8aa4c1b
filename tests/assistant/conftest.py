"""What the assistant's tests share: a core brain on a language model of toy size."""

from __future__ import annotations

import pytest
import torch

from assistant.brains.core import CoreBrain
from assistant.brains.decoder import Decoder
from assistant.brains.engine import Engine
from assistant.brains.prompts import Prompter, smollm2_vocabulary
from assistant.brains.small import SmallManner
from assistant.projector import Projector, ProjectorConfig
from assistant.service.brains import make_brain
from assistant.service.serving import MakeBrain
from embedding.index.reader import Release
from embedding.tables.lake import Lake
from tests.assistant.toy_models import NAME, TOKENS, toy_llama, toy_tokenizer

POSITIONS = 8_192


@pytest.fixture(scope="session")
def toy_brain() -> MakeBrain:
    """How a service gets its brain: the core brain and its engine, as shipped, on a language model that says random words."""

    def make(_: Lake, release: Release) -> CoreBrain:
        tokenizer = toy_tokenizer()
        model = toy_llama(tokenizer)
        model.config.max_position_embeddings = POSITIONS
        vocabulary = smollm2_vocabulary(tokenizer)
        with torch.no_grad():  # it never ends by itself: how long an answer is, the tests say
            model.get_parameter("model.embed_tokens.weight")[vocabulary.end_of_turn] = 0
        torch.manual_seed(0)
        version = release.manifest.embedding_version
        config = ProjectorConfig(version, NAME, release.manifest.dim, TOKENS, model.config.hidden_size, 16)
        decoder = Decoder.of(model, NAME, vocabulary.placeholder, Projector(config).eval().requires_grad_(False))
        engine = Engine(decoder, Prompter(tokenizer, vocabulary, TOKENS))
        return CoreBrain(engine, version, SmallManner())

    return make


@pytest.fixture(scope="session")
def small_brain() -> MakeBrain:
    """The brain that comes with the repository."""
    return make_brain("core")
