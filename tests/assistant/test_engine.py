"""Answers of a batch are what each would be alone; text comes in whole characters; constraints, budgets and limits hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from assistant.brains.decoder import Decoder
from assistant.brains.engine import Engine
from assistant.brains.prompts import Data, Pin, Prompt, Prompter, Template, qwen3_vl_vocabulary, reply, turn
from assistant.brains.rows import DeadlineError, EngineFullError, EngineStoppedError, Generation, Stream, TooLongError
from embedding.index.recall import Floats
from tests.assistant.toy_models import DIM, NAME, TOKENS, toy_llama, toy_projector, toy_qwen3_vl, toy_tokenizer

TOKENIZER = toy_tokenizer()
PROMPTER = Prompter(TOKENIZER, qwen3_vl_vocabulary(TOKENIZER), TOKENS)


@pytest.fixture(scope="module", params=["llama", "qwen3_vl"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    model = toy_llama(TOKENIZER) if request.param == "llama" else toy_qwen3_vl(TOKENIZER)
    hidden = model.get_input_embeddings().weight.shape[1]
    return Decoder.of(model, NAME, PROMPTER.vocabulary.placeholder, toy_projector(hidden))


@pytest.fixture
def engine(decoder: Decoder) -> Iterator[Engine]:
    with Engine(decoder, PROMPTER, rows=4, waiting=8) as engine:
        yield engine


def vectors(number: int) -> Floats:
    pins = np.random.default_rng(number).standard_normal((number, DIM)).astype(np.float32)
    return np.asarray(pins / np.linalg.norm(pins, axis=1, keepdims=True), np.float32)


def ask(text: str, pins: int = 0) -> Prompt:
    shown = [part for vector in vectors(pins) for part in (Template("\n"), Pin(vector), Data("a title"))]
    return PROMPTER.prompt([*turn("system", Template("Be brief.")), *turn("user", Data(text), *shown), *reply()])


ASKED = [ask("a cat"), ask("the green tree and the red bicycle", 3), ask("x" * 90, 1), ask("?", 5), ask("a mat", 2)]


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)


def greedy(decoder: Decoder, prompt: Prompt, tokens: int) -> list[int]:
    """Without a cache, a batch or a mask: the whole text is read again for each token."""
    embeds, ids = decoder.embed(prompt), []
    with torch.inference_mode():
        for _ in range(tokens):
            hidden = decoder.text_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
            ids.append(int(decoder.logits(hidden[0, -1]).argmax()))
            if ids[-1] == PROMPTER.vocabulary.end_of_turn:
                return ids[:-1]
            embeds = torch.cat([embeds, decoder.weight[ids[-1:]]])
    return ids


def test_a_batch_says_what_each_would_say_alone(engine: Engine, decoder: Decoder) -> None:
    """Five prompts for four rows, of different lengths and numbers of pins: they join and leave at different times."""
    wanted = [greedy(decoder, prompt, 5 + 9 * number) for number, prompt in enumerate(ASKED)]
    streams = [engine.submit(prompt, Generation(max_tokens=5 + 9 * number)) for number, prompt in enumerate(ASKED)]
    said = [text_of(stream) for stream in streams]
    assert said == [PROMPTER.text(ids) for ids in wanted]
    assert [stream.usage.answer for stream in streams] == [len(ids) for ids in wanted]
    assert any("\ufffd" not in text and len(text.encode()) > len(text) for text in said) or any(
        "\ufffd" in text for text in said
    )
