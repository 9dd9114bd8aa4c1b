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
from assistant.turns import BrainError
from embedding.index.recall import Floats
from tests.assistant.toy_models import DIM, NAME, TOKENS, toy_llama, toy_projector, toy_qwen3_vl, toy_tokenizer

TOKENIZER = toy_tokenizer()
PROMPTER = Prompter(TOKENIZER, qwen3_vl_vocabulary(TOKENIZER), TOKENS)


@pytest.fixture(scope="module", params=["llama", "qwen3_vl"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    model = toy_llama(TOKENIZER) if request.param == "llama" else toy_qwen3_vl(TOKENIZER)
    hidden = model.lm_head.in_features
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
    assert [text_of(stream) for stream in streams] == [PROMPTER.text(ids) for ids in wanted]
    assert [stream.usage.answer for stream in streams] == [len(ids) for ids in wanted]


def test_joining_under_way_and_leaving_early_change_nothing(engine: Engine, decoder: Decoder) -> None:
    long = engine.submit(ASKED[1], Generation(max_tokens=60))
    pieces = iter(long)
    said = [next(pieces).text for _ in range(5)]
    leaving, joining = (engine.submit(prompt, Generation(max_tokens=50)) for prompt in ASKED[3:])
    for _ in leaving:
        break  # whoever leaves the loop gives up the row
    said += [piece.text for piece in pieces]
    assert "".join(said) == PROMPTER.text(greedy(decoder, ASKED[1], 60))
    assert text_of(joining) == PROMPTER.text(greedy(decoder, ASKED[4], 50))


def test_who_stops_listening_frees_the_row(decoder: Decoder) -> None:
    with Engine(decoder, PROMPTER, rows=1) as engine:
        gate = threading.Event()

        def held(ids: Sequence[int]) -> None:
            if len(ids) == 3:
                gate.wait()

        first = engine.submit(ASKED[0], Generation(max_tokens=300, allowed=held))
        second = engine.submit(ASKED[1], Generation(max_tokens=4))
        unheard = engine.submit(ASKED[2], Generation(max_tokens=300))
        unheard.close()
        first.close()
        gate.set()
        assert text_of(second) == PROMPTER.text(greedy(decoder, ASKED[1], 4))
        list(first)
        list(unheard)
        assert (first.finish, unheard.finish) == ("closed", "closed")
        assert first.usage.answer < 300
        assert unheard.usage.answer == 0


def test_a_full_queue_and_prompts_that_are_too_long_are_refused(decoder: Decoder) -> None:
    gate = threading.Event()

    def held(_: Sequence[int]) -> None:
        gate.wait()

    engine = Engine(decoder, PROMPTER, rows=1, waiting=2)
    try:
        first = engine.submit(ASKED[0], Generation(max_tokens=3, allowed=held))
        while engine.queued:
            pass  # until it has left the queue
        waiting = [engine.submit(ASKED[1], Generation(max_tokens=3)) for _ in range(2)]
        with pytest.raises(EngineFullError):
            engine.submit(ASKED[1])
        with pytest.raises(TooLongError, match="512"):
            engine.submit(ASKED[1], Generation(max_tokens=512))
        gate.set()
        assert text_of(first) == PROMPTER.text(greedy(decoder, ASKED[0], 3))
        assert text_of(waiting[0]) == text_of(waiting[1]) != ""
    finally:
        gate.set()
        engine.close()
    with pytest.raises(EngineStoppedError):
        engine.submit(ASKED[0])


def test_late_answers_and_broken_requests_fail_alone(decoder: Decoder) -> None:
    now = [0.0]
    with Engine(decoder, PROMPTER, rows=4, clock=lambda: now[0]) as engine:

        def late(ids: Sequence[int]) -> None:
            now[0] = 10.0 if len(ids) == 5 else now[0]

        slow = engine.submit(ASKED[0], Generation(max_tokens=300, deadline_s=9.0, allowed=late))
        good = engine.submit(ASKED[1], Generation(max_tokens=12, deadline_s=11.0))
        wrong = engine.submit(Prompt(ASKED[1].ids, ASKED[1].pins[:1]))
        thrown = engine.submit(ASKED[2], Generation(allowed=lambda ids: [] if ids else [1 // 0]))
        for stream, error, why in (
            (slow, DeadlineError, "time"),
            (wrong, BrainError, "6 placeholders"),
            (thrown, BrainError, "zero"),
        ):
            with pytest.raises(error, match=why):
                list(stream)
        assert text_of(good) == PROMPTER.text(greedy(decoder, ASKED[1], 12))


def test_answers_keep_to_what_is_allowed(engine: Engine) -> None:
    """Two answers side by side, each confined to one of its own sentences."""

    def only(*sentences: str) -> Generation:
        spelled = [PROMPTER.data(sentence) for sentence in sentences]

        def allowed(ids: Sequence[int]) -> set[int]:
            begun = [each for each in spelled if tuple(each[: len(ids)]) == tuple(ids)]
            return {each[len(ids)] for each in begun if len(each) > len(ids)}

        return Generation(max_tokens=80, allowed=allowed)

    asked = [("see [3]", "see [12]"), ("none of these", "nothing")]
    streams = [engine.submit(ASKED[number], only(*sentences)) for number, sentences in enumerate(asked)]
    for stream, sentences in zip(streams, asked, strict=True):
        assert text_of(stream) in sentences
        assert stream.finish == "stop"


def test_thinking_ends_by_itself_or_by_force(engine: Engine, decoder: Decoder) -> None:
    end = PROMPTER.vocabulary.end_of_thinking
    assert end is not None
    free = greedy(decoder, ASKED[2], 40)
    after = tuple(PROMPTER.data("So: "))
    forced = engine.submit(ASKED[2], Generation(max_tokens=6, thinking_tokens=7, after_thinking=after))
    own_end = next(token for token in free if token != free[0])  # as if it were the token that ends thinking
    himself = engine.submit(ASKED[2], Generation(max_tokens=6, thinking_tokens=40, end_of_thinking=own_end))
    for stream, thought, ending in (
        (forced, free[:7], (end, *after)),
        (himself, free[: free.index(own_end)], (own_end,)),
    ):
        pieces = list(stream)
        assert "".join(piece.text for piece in pieces if piece.kind == "thinking") == PROMPTER.text(thought)
        rest = greedy(decoder, Prompt((*ASKED[2].ids, *thought, *ending), ASKED[2].pins), 6)
        assert "".join(piece.text for piece in pieces if piece.kind == "answer") == PROMPTER.text(rest)
        assert (stream.usage.thinking, stream.usage.answer) == (len(thought), len(rest))
        assert sum(piece.tokens for piece in pieces) == len(thought) + len(rest)


def test_an_answer_ends_before_a_stop_text(engine: Engine, decoder: Decoder) -> None:
    whole = PROMPTER.text(greedy(decoder, ASKED[1], 60))
    stop = whole[len(whole) // 2 :][:3]
    stream = engine.submit(ASKED[1], Generation(max_tokens=60, stop=(stop, "never said")))
    assert text_of(stream) == whole[: whole.index(stop)]
    assert stream.finish == "stop"


def test_a_seed_chooses_the_answer_whoever_else_is_asked(engine: Engine) -> None:
    hot = [Generation(max_tokens=20, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    alone = [text_of(engine.submit(ASKED[0], how)) for how in hot]
    together = [engine.submit(ASKED[0], how) for how in hot]
    assert [text_of(stream) for stream in together] == alone
    assert alone[0] == alone[1] != alone[2]


def test_scores_are_the_model_s_own_probabilities(engine: Engine, decoder: Decoder) -> None:
    under_way = engine.submit(ASKED[3], Generation(max_tokens=30))
    continuations = [PROMPTER.data("a red bicycle, or a tree"[:size]) for size in range(1, 22)]
    found = engine.score(ASKED[1], continuations)
    before = len(ASKED[1].ids)
    for ids, score in zip(continuations, found, strict=True):
        embeds = torch.cat([decoder.embed(ASKED[1]), decoder.weight[ids]])
        with torch.inference_mode():
            said = decoder.logits(decoder.text_model(inputs_embeds=embeds[None]).last_hidden_state[0]).log_softmax(-1)
        assert score == pytest.approx(float(said[before - 1 : -1].gather(-1, torch.tensor(ids)[:, None]).sum()), abs=1e-3)
    assert text_of(under_way) == PROMPTER.text(greedy(decoder, ASKED[3], 30))


def test_a_remembered_beginning_is_not_read_again(engine: Engine, decoder: Decoder) -> None:
    beginning = PROMPTER.prompt(turn("system", Template("Be brief.")))
    assert ASKED[1].ids[: len(beginning.ids)] == beginning.ids
    engine.remember(beginning)
    streams = [engine.submit(prompt, Generation(max_tokens=20)) for prompt in ASKED]
    assert [text_of(stream) for stream in streams] == [PROMPTER.text(greedy(decoder, prompt, 20)) for prompt in ASKED]
    assert {stream.usage.cached for stream in streams} == {len(beginning.ids)}
