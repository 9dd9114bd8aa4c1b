"""What a projector is trained on, and the training: on planted pins, a toy language model and a real lake."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer

from assistant.brains import qwen3_vl
from assistant.brains.adapter import add_adapter
from assistant.brains.decoder import Decoder
from assistant.brains.prompts import Prompter, smollm2_vocabulary
from assistant.brains.scores import score
from assistant.projector import Projector, ProjectorError
from assistant.training.batches import encode_example
from assistant.training.checkpoint import Checkpoint
from assistant.training.conversations import (
    ANSWER,
    FITS,
    KINDS,
    SAME_BOARD,
    TAG,
    TITLE,
    TOOL,
    Example,
    examples_of,
    read_examples,
    read_manifest,
)
from assistant.training.examples import NOTHING_FITS, TOLD, make_examples
from assistant.training.requests import BY_TOOL, sentences
from assistant.training.seeing import Seeing
from assistant.training.train import TrainingSetting, save_weights, start, train
from demo.days import DEMO_DAYS
from embedding.encoder.training_set import TEST, TRAIN, read_pins
from embedding.encoder.training_set import read_manifest as read_set_manifest
from embedding.index.recall import Floats
from embedding.tables.lake import Lake
from tests.assistant.test_qwen3_vl import publish
from tests.assistant.toy_models import NAME, VERSION, toy_llama, toy_tokenizer

COLOURS, THINGS = ("red", "green", "blue", "black", "white", "pink"), ("cat", "tree", "car", "house", "fish")
DIM = 16


def planted_pins(split: str = TRAIN) -> pa.Table:
    """A pin for each colour and thing, on the thing's board, its vector the sum of one for the colour and one for the thing."""
    rng = np.random.default_rng(5)
    colours, things = rng.normal(size=(len(COLOURS), DIM)), rng.normal(size=(len(THINGS), DIM))
    rows = []
    for at, colour in enumerate(COLOURS):
        for which, thing in enumerate(THINGS):
            vector = (colours[at] + things[which]).astype(np.float32)
            packed = (vector / np.linalg.norm(vector)).tobytes()
            number = 10 * at + which + 1
            rows.append(
                {
                    "pin_id": number,
                    "user_id": which + 1,
                    "board_id": which + 1,
                    "duplicate_group": number,
                    "split": split,
                    "title": f"{colour} {thing}",
                    "description": f"A {thing} [99] that is {colour}. And more",
                    "tags": [thing, colour],
                    "embedding": packed,
                    "picture_embedding": packed if at % 2 else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=TOLD)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(examples_of(make_examples(planted_pins(), seed=0, most=1_000)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return toy_tokenizer()


def prompter_of(tokenizer: Tokenizer, setting: TrainingSetting) -> Prompter:
    return Prompter(tokenizer, smollm2_vocabulary(tokenizer), setting.tokens_a_pin)


def of_kind(examples: list[Example], *kinds: str) -> list[Example]:
    return [example for example in examples if example.kind in kinds]


def test_one_answer_is_right_and_no_judged_prompt_says_it(examples: list[Example], tokenizer: Tokenizer) -> None:
    prompter = prompter_of(tokenizer, TrainingSetting())
    assert {example.kind for example in examples} == set(KINDS) - {"word"}
    for example in of_kind(examples, TITLE, TAG, SAME_BOARD, FITS):
        assert example.titles == ("",) * len(example.pins)
        assert (
            len({choice.casefold() for choice in example.choices})
            == len(example.choices)
            == (4 if len(example.choices) > 2 else 2)
        )
        if example.kind in (TITLE, TAG):
            prompt = prompter.text(encode_example(example, prompter).prompt.ids)
            assert not any(choice in prompt for choice in example.choices)
    for example in of_kind(examples, SAME_BOARD):
        boards = {pin % 10 for pin in example.pins}
        assert (len(boards) == 1) == (example.right == 0)
    for kind in (SAME_BOARD, FITS):
        answers = [example.right for example in of_kind(examples, kind)]
        assert sum(answers) * 2 == len(answers), f"{kind} is no even game"


def test_answers_name_shown_pins_that_fit_and_all_of_them(examples: list[Example]) -> None:
    titles = {row["pin_id"]: row["title"] for row in planted_pins().to_pylist()}
    found = of_kind(examples, ANSWER)
    for example in found:
        wanted = [word for word in (*COLOURS, *THINGS) if word in example.words.split() or f"{word}?" in example.words.split()]
        fitting = [(at, pin) for at, pin in enumerate(example.pins, 1) if all(word in titles[pin].split() for word in wanted)]
        said = ", ".join(f"[{at}] {titles[pin]}" for at, pin in fitting)
        assert example.choices == ((f"{said}." if fitting else NOTHING_FITS),)
    assert {len(example.choices[0].split("[")) for example in found} >= {1, 2, 3}


def test_equal_pins_give_equal_examples_and_sentences_of_requests_are_split() -> None:
    pins = planted_pins()
    shuffled = pins.take(np.random.default_rng(1).permutation(len(pins)))
    assert make_examples(pins, 0, 1_000).equals(make_examples(shuffled, 0, 1_000))
    assert not make_examples(pins, 0, 1_000).equals(make_examples(pins, 1, 1_000))
    for tool in BY_TOOL:
        trained, judged = (set(sentences(tool, held_out=held_out)) for held_out in (False, True))
        assert trained and judged and not trained & judged


def toy_training(tokenizer: Tokenizer, examples: list[Example], folder: Path, tokens: float) -> tuple[Seeing, TrainingSetting]:
    setting = TrainingSetting(
        tokens_a_pin=2, width=64, name_steps=60, batch_tokens=400, scale_tokens=tokens, checkpoint_every_s=0.0
    )
    prompter = prompter_of(tokenizer, setting)
    folder.mkdir(exist_ok=True)
    seeing = start(toy_llama(tokenizer), NAME, VERSION, prompter, of_kind(examples, TITLE), setting)
    train(seeing, examples, prompter, setting, folder)
    return seeing, setting


def score_all(seeing: Seeing, examples: list[Example], prompter: Prompter) -> list[tuple[Floats, Floats]]:
    return seeing.eval().score([encode_example(example, prompter) for example in examples])


def accuracy(seeing: Seeing, examples: list[Example], prompter: Prompter) -> float:
    found = seeing.score([encode_example(example, prompter) for example in examples])
    return float(np.mean([int(np.argmax(sums)) == example.right for (sums, _), example in zip(found, examples, strict=True)]))


def with_vectors_of_others(examples: list[Example]) -> list[Example]:
    order = np.random.default_rng(3).permutation(len(examples))
    return [replace(example, vectors_ND=examples[at].vectors_ND) for example, at in zip(examples, order, strict=True)]


def test_training_teaches_a_toy_model_to_see_and_its_weights_serve(
    tokenizer: Tokenizer, examples: list[Example], tmp_path: Path
) -> None:
    setting = TrainingSetting(tokens_a_pin=2)
    prompter = prompter_of(tokenizer, setting)
    titles, fits = of_kind(examples, TITLE), of_kind(examples, FITS)
    seeing, _ = toy_training(tokenizer, examples, tmp_path / "run", 1.4)
    seen, blind = (accuracy(seeing.eval(), asked, prompter) for asked in (fits, with_vectors_of_others(fits)))
    assert seen > 0.75 and seen > blind + 0.2, f"{seen:.2f} of the pins, {blind:.2f} with the vectors of others"

    # What was written is what was trained: folded into a fresh model, the engine's own scores are the same.
    save_weights(seeing, tmp_path / "weights", setting, {})
    model = toy_llama(tokenizer)
    add_adapter(model, tmp_path / "weights", language_model=NAME, embedding_version=VERSION)
    projector = Projector.load(tmp_path / "weights", VERSION, NAME)
    decoder = Decoder.of(model, NAME, seeing.placeholder, projector)
    for example in titles[:5]:
        encoded = encode_example(example, prompter)
        served = score(decoder, encoded.prompt, encoded.choices)
        np.testing.assert_allclose(served, seeing.score([encoded])[0][0], atol=0.15)
    with pytest.raises(ProjectorError, match="another-encoder"):
        add_adapter(model, tmp_path / "weights", language_model=NAME, embedding_version="another-encoder")
    file = tmp_path / "weights" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ProjectorError, match="damaged"):
        add_adapter(model, tmp_path / "weights", language_model=NAME, embedding_version=VERSION)


def test_a_projector_for_qwen3_vl_learns_alone(examples: list[Example], tmp_path: Path) -> None:
    """As jobs/train_projector.py --language-model does it: the published weights stay, and what was trained serves them."""
    publish(tmp_path, tied=True, shards=False)
    model, name, tokenizer, vocabulary = qwen3_vl.load_to_train(tmp_path / "model", "cpu")
    setting = TrainingSetting(tokens_a_pin=2, width=64, name_steps=60, batch_tokens=400, scale_tokens=0.6, lora_rank=0)
    prompter = Prompter(tokenizer, vocabulary, setting.tokens_a_pin)
    titles = of_kind(examples, TITLE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seeing = start(model, name, VERSION, prompter, titles, setting)
    untrained = np.mean([sums[one.right] for one, (sums, _) in zip(titles, score_all(seeing, titles, prompter), strict=True)])
    train(seeing, examples, prompter, setting, tmp_path)
    trained = np.mean([sums[one.right] for one, (sums, _) in zip(titles, score_all(seeing, titles, prompter), strict=True)])
    assert trained > untrained + 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    save_weights(seeing, tmp_path / "weights", setting, {})
    served = qwen3_vl.load(tmp_path / "model", tmp_path / "weights", VERSION)
    for example in titles[:3]:
        encoded = encode_example(example, served.prompter)
        found = score(served.decoder, encoded.prompt, encoded.choices)
        np.testing.assert_allclose(found, seeing.score([encoded])[0][0], atol=0.15)


def test_a_killed_training_ends_where_an_undisturbed_one_does(
    tokenizer: Tokenizer, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = toy_training(tokenizer, examples, tmp_path / "whole", 0.02)
    write, writes = Checkpoint.write, []

    def dies(self: Checkpoint, stage: int, step: int, tensors: dict[str, torch.Tensor]) -> None:
        write(self, stage, step, tensors)
        writes.append((stage, step))
        if len(writes) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            toy_training(tokenizer, examples, tmp_path / "killed", 0.02)
    resumed, _ = toy_training(tokenizer, examples, tmp_path / "killed", 0.02)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_lake_becomes_examples_split_as_its_training_set(
    lake_of_three_nights: Lake, spark_environment: None, tmp_path: Path
) -> None:
    from jobs import build_conversations, build_training_set

    lake = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    common = ["--home", lake.home, "--run-id", "talking"]
    build_training_set.main([*common, "--bag-size", "2", "--held-out-share", "0.4"])
    build_conversations.main([*common, "--words", "64"])
    said = json.loads(Path(build_conversations.made_uri(lake, "talking")).read_text())
    manifest = read_manifest(lake, said["conversations_id"])
    assert manifest.counts[TRAIN]["word"] == 64
    pins = read_pins(lake, read_set_manifest(lake, manifest.training_set), ["pin_id", "split"])
    by_split = {split: {row["pin_id"] for row in pins.to_pylist() if row["split"] == split} for split in (TRAIN, TEST)}
    for split, own in by_split.items():
        found = read_examples(lake, manifest, split, [kind for kind in KINDS if kind not in ("word", TOOL)])
        assert found and {pin for example in found for pin in example.pins} <= own
        assert {example.alone for example in found} == {True, False}
    vectors = np.concatenate([example.vectors_ND for example in found])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert manifest.training_set.startswith(DEMO_DAYS[-1])
