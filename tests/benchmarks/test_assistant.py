"""The assistant's protocol reads a native prompt as transformers does, scales layers only, and counts costs as by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.brains.prompts import qwen3_vl_vocabulary
from benchmarks.assistant_cost import Prices, api, load_at_goal, own
from benchmarks.assistant_report import judge, ways
from benchmarks.assistant_shapes import Depth, Watch, teraflop
from benchmarks.assistant_turns import DIM, SIDE, STEPS, Bench, Shown, prompts
from tests.assistant.toy_models import toy_qwen3_vl, toy_tokenizer


def pins(number: int) -> list[Shown]:
    rng = np.random.default_rng(1)
    made = []
    for title in ("a red bicycle", "tree", "a cat on a mat")[:number]:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(file, "JPEG")
        made.append(Shown(title, file.getvalue(), rng.standard_normal(DIM).astype(np.float32)))
    return made


def test_a_native_prompt_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Two conversations of two pictures each, of other lengths, with DeepStack and three axes of positions: the same logits."""
    tokenizer = toy_tokenizer()
    model = toy_qwen3_vl(tokenizer)
    torch.nn.Module.to(model, torch.bfloat16)
    depth = Depth(text=4, text_whole=8, vision=3, vision_whole=3)
    watch = Watch(depth)
    watch.attach(model)
    bench = Bench(model, watch, qwen3_vl_vocabulary(tokenizer), tokenizer, tmp_path)
    rows = prompts(bench.native_prompter, pins(3), 2, 2)
    assert len({len(row.ids) for row in rows}) == 2
    with torch.inference_mode():
        shown = [pins(3)[(row * 7 + number) % 3] for row in range(2) for number in range(2)]
        pictures = [Image.open(io.BytesIO(pin.jpeg)).convert("RGB") for pin in shown]
        made = bench.processor(images=pictures, return_tensors="pt")
        pixels, grid = made["pixel_values"].bfloat16(), made["image_grid_thw"]
        seen = model.model.get_image_features(pixels, grid, return_dict=True)
        levels = [torch.cat(part) for part in (seen.pooler_output, *seen.deepstack_features)]
        hidden, _, deltas = bench._read_native(rows, levels, 2)
        for number, row in enumerate(rows):
            ids = torch.tensor([row.ids])
            model.model.rope_deltas = None
            theirs = model(
                input_ids=ids,
                pixel_values=pixels.chunk(2)[number],
                image_grid_thw=grid.chunk(2)[number],
                mm_token_type_ids=(ids == bench.vocabulary.placeholder).int(),
            )
            ours = bench.decoder.logits(hidden[number, len(row.ids) - 1])
            torch.testing.assert_close(ours, theirs.logits[0, -1].float(), atol=0.05, rtol=0.05)
            assert int(model.model.rope_deltas) == deltas[number]

        native, projected = bench.native(pins(3), 2, 2), bench.projected(pins(3), 2, 2, 4)
    assert native.tokens - projected.tokens == 2 * (1_024 - 4)
    for timed in (native, projected):
        # Half of the text layers were run: what they took counts twice, whatever else took time counts once.
        assert timed.measured["step"] < timed.stages["step"] < 2 * timed.measured["step"]
        assert timed.measured["prompt"] < timed.stages["prompt"] < 2 * timed.measured["prompt"]
    assert native.stages["tower"] == native.measured["tower"]
    assert STEPS > 1


def test_the_arithmetic_is_the_model_s() -> None:
    """2B: 1.41 thousand million weights in its layers, twice an operation each a token; attention aside at so few tokens."""
    one = teraflop("2B", 101, 0) - teraflop("2B", 100, 0)
    assert one == pytest.approx(2 * 1.41e9 / 1e12, rel=0.02)
    assert teraflop("2B", 100, 3) - teraflop("2B", 100, 2) == pytest.approx(4.33, rel=0.02)


def test_costs_are_computed_as_by_hand() -> None:
    """A batch of 16 takes 2 s and 80 steps of 0.1 s: 10 s for 16 turns, 173.6 hours for a million, half of the time idle."""
    prices = Prices(machine_hour=3.6, load=0.5, input_million=2.0, output_million=10.0, picture_tokens=1_000, answer_tokens=81)
    assert own(prices, 2.0, 0.1, 16) == pytest.approx(173.6 * 3.6 / 0.5, rel=1e-3)
    assert api(prices, 20, 500) == pytest.approx(20_500 * 2.0 + 81 * 10.0)
    assert api(prices, 20, 500, pictures=False) == pytest.approx(500 * 2.0 + 81 * 10.0)
    least = load_at_goal(prices, own(prices, 2.0, 0.1, 16), api(prices, 20, 500))
    assert own(replace(prices, load=least), 2.0, 0.1, 16) == pytest.approx(0.1 * api(prices, 20, 500))


def test_a_claim_that_does_not_hold_is_missed() -> None:
    def row(way: str, first_s: float, tokens: int) -> dict[str, object]:
        stages = {"prompt": [first_s], "step": [0.1], "prepare": [0.5], "tower": [1.0], "fetch": [0.1]}
        said: dict[str, object] = {"way": way, "candidates": 20, "batch": 1, "text_tokens": 300, "tokens": tokens, "runs": 1}
        return said | {"stages": stages, "measured": {stage: times[0] for stage, times in stages.items()}}

    for prompt_s, hour, holds in ((8.5, 0.1, [True, True]), (8.0, 0.1, [False, True]), (8.5, 100.0, [True, False])):
        found = ways([row("native", prompt_s, 20_800), row("(c) K=4", 0.5, 400)], "2B")
        assert [each["first_s"] for each in found] == [prompt_s + 1.5, prompt_s + 0.1, 0.5]
        assert [verdict.holds for verdict in judge(found, Prices(hour), 20)] == holds
