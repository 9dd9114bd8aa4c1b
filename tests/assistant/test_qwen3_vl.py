"""The swap: a Qwen3-VL as it is published, at toy size, loaded without its tower, says what the whole model says."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from assistant.brains import qwen3_vl
from assistant.brains.decoder import read
from assistant.brains.engine import Engine
from assistant.brains.prompts import Data, Pin, Prompt, Template, turn
from assistant.brains.qwen3_vl import Loaded, WeightsError
from assistant.brains.rows import Generation
from assistant.projector import ProjectorError
from tests.assistant.toy_models import DIM, NAME, VERSION, toy_projector, toy_qwen3_vl, toy_tokenizer

TEMPLATES = {
    "instruct": "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "thinking": "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
}


def publish(folder: Path, tied: bool, shards: bool, edition: str = "instruct") -> Qwen3VLForConditionalGeneration:
    """Writes a toy model as Qwen3-VL's are published, and its projector; returns the whole model."""
    tokenizer = toy_tokenizer()
    model = toy_qwen3_vl(tokenizer, tied=tied)
    model.save_pretrained(folder / "model", max_shard_size="60KB" if shards else "1GB")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "model" / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[edition]}))
    said = json.loads((folder / "model" / "config.json").read_text())
    rope = said["text_config"].pop("rope_parameters")  # as the published files have it
    said["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (folder / "model" / "config.json").write_text(json.dumps(said))
    toy_projector(model.lm_head.in_features).save(folder / "projector")
    return model


def load(folder: Path) -> Loaded:
    return qwen3_vl.load(folder / "model", folder / "projector", VERSION, name=NAME)


@pytest.fixture(scope="module", params=list(product((True, False), (True, False))), ids=str)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Qwen3VLForConditionalGeneration]:
    tied, shards = request.param
    folder = tmp_path_factory.mktemp("published")
    model = publish(folder, tied, shards)
    assert (folder / "model" / "model.safetensors.index.json").is_file() == shards
    return folder, model


def shown(loaded: Loaded, number: int) -> Prompt:
    pins = np.random.default_rng(number).standard_normal((number, DIM)).astype(np.float32)
    parts = [part for pin in pins for part in (Pin(pin), Data("a red tree"))]
    return loaded.prompter.prompt([*turn("user", Template("Which?"), *parts), *loaded.reply(thinks=False)])


def test_the_swapped_model_says_what_the_whole_one_says(published: tuple[Path, Qwen3VLForConditionalGeneration]) -> None:
    folder, whole = published
    loaded = load(folder)
    assert loaded.edition == "instruct"
    decoder = loaded.decoder
    with torch.inference_mode():
        text = shown(loaded, 0)
        ours = decoder.logits(read(decoder, [decoder.embed(text)])[0][0])
        torch.testing.assert_close(ours, whole(input_ids=torch.tensor([text.ids])).logits[0])
        pins = shown(loaded, 5)
        embeds = decoder.embed(pins)
        assert not torch.equal(embeds, whole.get_input_embeddings()(torch.tensor(pins.ids)))
        ours = decoder.logits(read(decoder, [embeds])[0][0])
        positions = torch.arange(len(pins.ids)).expand(3, 1, -1)  # the three axes agree: a line
        theirs = whole(inputs_embeds=embeds[None], position_ids=positions, attention_mask=torch.ones(1, len(pins.ids)))
        torch.testing.assert_close(ours, theirs.logits[0])


def test_the_tower_is_not_in_memory(published: tuple[Path, Qwen3VLForConditionalGeneration]) -> None:
    folder, whole = published
    config = qwen3_vl._read_config(folder / "model")
    empty = qwen3_vl.without_tower(config)
    assert empty.model.language_model.config._attn_implementation == "sdpa"
    assert all(value.is_meta for value in empty.state_dict().values())
    decoder = load(folder).decoder
    tower = {name for name in whole.state_dict() if "visual" in name}
    assert tower
    assert not {name for name in empty.state_dict() if "visual" in name}
    kept = {value.data_ptr(): value.numel() for part in (decoder.text_model, decoder.head) for value in part.parameters()}
    language = {value.data_ptr(): value.numel() for name, value in whole.named_parameters() if "visual" not in name}
    assert sum(kept.values()) == sum(language.values())


def test_conversations_of_one_batch_do_not_influence_each_other(
    published: tuple[Path, Qwen3VLForConditionalGeneration],
) -> None:
    loaded = load(published[0])
    prompts = [shown(loaded, number) for number in (0, 7, 2, 1)]
    with Engine(loaded.decoder, loaded.prompter, rows=4) as engine:
        how = Generation(max_tokens=25)
        alone = ["".join(piece.text for piece in engine.submit(prompt, how)) for prompt in prompts]
        together = [engine.submit(prompt, how) for prompt in prompts]
        assert ["".join(piece.text for piece in stream) for stream in together] == alone
        assert len(set(alone)) == len(prompts)


def test_a_thinking_edition_is_known_by_its_template(tmp_path: Path) -> None:
    publish(tmp_path, tied=True, shards=False, edition="thinking")
    loaded = load(tmp_path)
    assert loaded.edition == "thinking"
    said = loaded.prompter._whole.decode(loaded.prompter.prompt(loaded.reply(thinks=True)).ids, skip_special_tokens=False)
    assert said == "<|im_start|>assistant\n<think>\n"
    assert loaded.prompter.vocabulary.end_of_thinking in loaded.prompter.prompt(loaded.reply(thinks=False)).ids


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, tied=False, shards=False)
    model, projector = tmp_path / "model", tmp_path / "projector"
    with pytest.raises(ProjectorError, match="embedding_version"):
        qwen3_vl.load(model, projector, "another-encoder", name=NAME)
    with pytest.raises(ProjectorError, match="language_model"):
        qwen3_vl.load(model, projector, VERSION)
    toy_projector(16).save(tmp_path / "narrow")
    with pytest.raises(WeightsError, match="hidden size 16"):
        qwen3_vl.load(model, tmp_path / "narrow", VERSION, name=NAME)

    file = model / "model.safetensors"
    tensors = load_file(str(file))
    for broken, why in (
        ({key: value for key, value in tensors.items() if key != "lm_head.weight"}, "missing, for example lm_head.weight"),
        (
            {key: value for key, value in tensors.items() if ".layers.2.mlp" not in key},
            "3 of the language model's tensors are missing",
        ),
        (tensors | {"model.audio.weight": torch.ones(1)}, "of no part of Qwen3-VL"),
        (tensors | {"model.language_model.norm.weight": torch.ones(3)}, "its config says"),
    ):
        save_file(broken, str(file))
        with pytest.raises(WeightsError, match=why):
            load(tmp_path)
    save_file({key: value for key, value in tensors.items() if not key.startswith("model.visual.")}, str(file))
    load(tmp_path)  # nobody needs the tower's tensors
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(WeightsError, match="not whole"):
        load(tmp_path)
