"""Which language model answers, by the environment: Qwen3-VL in two editions, at toy size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assistant.brains.configured import core_brain
from assistant.projector import Projector
from assistant.turns import BrainError, Candidate, Message, Request, Turn
from tests.assistant.test_qwen3_vl import publish
from tests.assistant.toy_models import DIM, VERSION


def named_projector(folder: Path) -> Path:
    """The toy projector, locked to the folder's name, as a training leaves it."""
    projector = Projector.load(folder / "projector", VERSION, "toy-model")
    projector.config = replace(projector.config, language_model="model")
    projector.save(folder / "trained")
    return folder / "trained"


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    said: dict[str, str] = {}
    for edition, prefix, projector in (
        ("instruct", "PINLAKE_LANGUAGE_MODEL", "PINLAKE_PROJECTOR"),
        ("thinking", "PINLAKE_THINKING_MODEL", "PINLAKE_THINKING_PROJECTOR"),
    ):
        folder = tmp_path_factory.mktemp(edition)
        publish(folder, tied=True, shards=False, edition=edition)
        said |= {prefix: str(folder / "model"), projector: str(named_projector(folder))}
    return said


def test_each_mode_has_its_edition(environ: dict[str, str]) -> None:
    brain = core_brain(VERSION, environ)
    try:
        vector = np.eye(DIM, dtype=np.float32)[0]
        pin = Candidate(1, 4_611, "A red tree", ("tree",), None, None, 0.5, vector, "words")
        turn = Turn(Request((Message("user", "a tree?"),)), "quick", VERSION, (pin,), answer_tokens=12)
        kinds = [piece.kind for piece in brain.answer(turn)]
        assert kinds and set(kinds) == {"answer"}
        thinking = brain.answer(replace(turn, mode="thinking", thinking_tokens=8))
        kinds = [piece.kind for piece in thinking]
        assert kinds[0] == "thinking" and 0 < thinking.usage.thinking <= 9
        assert brain.name == "core/model+model"
        assert brain.decide(turn.request, ("search_text", "talk")).tool in ("search_text", "talk")
        with pytest.raises(BrainError, match="another-encoder"):
            brain.answer(replace(turn, embedding_version="another-encoder"))
    finally:
        brain.close()  # type: ignore[attr-defined]


def test_what_is_missing_or_made_for_another_is_said(environ: dict[str, str]) -> None:
    with pytest.raises(BrainError, match="PINLAKE_PROJECTOR no projector"):
        core_brain(VERSION, {"PINLAKE_LANGUAGE_MODEL": environ["PINLAKE_LANGUAGE_MODEL"]})
    with pytest.raises(BrainError, match="another-encoder"):
        core_brain("another-encoder", environ)
    with pytest.raises(BrainError, match="nowhere"):
        core_brain(VERSION, environ | {"PINLAKE_LANGUAGE_MODEL": "/nowhere/model"})
