"""Which language model the core brain has: the packaged small one, or Qwen3-VL, by the environment.

| variable | meaning |
|---|---|
| PINLAKE_LANGUAGE_MODEL | folder of a Qwen3-VL as published (Instruct); unset: the small model |
| PINLAKE_PROJECTOR | folder of the projector for it and for the live encoder; unset: the packaged one, for the small model |
| PINLAKE_THINKING_MODEL, PINLAKE_THINKING_PROJECTOR | the Thinking edition, which answers in thinking mode; unset: none |
| PINLAKE_ASSISTANT_DEVICE | where Qwen3-VL runs, `cuda:0` say; default `cpu` |
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from assistant.brains.core import CoreBrain
from assistant.brains.instructed import load_qwen3_vl
from assistant.brains.qwen3_vl import WeightsError
from assistant.brains.small import WEIGHTS_FOLDER, load_small
from assistant.brains.smollm2 import LanguageModelError
from assistant.projector import ProjectorError
from assistant.turns import Answering, Brain, BrainError, Request, ToolCall, ToolName, Turn

MODEL, PROJECTOR, DEVICE = "PINLAKE_LANGUAGE_MODEL", "PINLAKE_PROJECTOR", "PINLAKE_ASSISTANT_DEVICE"
THINKING_MODEL, THINKING_PROJECTOR = "PINLAKE_THINKING_MODEL", "PINLAKE_THINKING_PROJECTOR"


class TwoEditions:
    """Two checkpoints as one brain: the quick one decides and answers, the other answers in thinking mode."""

    def __init__(self, quick: CoreBrain, thinking: CoreBrain):
        self._quick, self._thinking = quick, thinking

    @property
    def name(self) -> str:
        return f"{self._quick.name}+{self._thinking.name.removeprefix('core/')}"

    def decide(self, request: Request, tools: Sequence[ToolName]) -> ToolCall:
        return self._quick.decide(request, tools)

    def answer(self, turn: Turn) -> Answering:
        return (self._thinking if turn.mode == "thinking" else self._quick).answer(turn)

    def close(self) -> None:
        self._quick.close()
        self._thinking.close()


def core_brain(embedding_version: str, environ: Mapping[str, str] | None = None) -> Brain:
    """The brain for one encoder's vectors. Raises BrainError where weights are missing, damaged or made for another."""
    environ = os.environ if environ is None else environ
    try:
        if not environ.get(MODEL):
            return load_small(embedding_version, Path(environ.get(PROJECTOR) or WEIGHTS_FOLDER))
        quick = _qwen3_vl(environ, MODEL, PROJECTOR, embedding_version)
        if not environ.get(THINKING_MODEL):
            return quick
        try:
            return TwoEditions(quick, _qwen3_vl(environ, THINKING_MODEL, THINKING_PROJECTOR, embedding_version))
        except BaseException:
            quick.close()
            raise
    except (LanguageModelError, ProjectorError, WeightsError) as error:
        raise BrainError(str(error)) from None


def _qwen3_vl(environ: Mapping[str, str], model: str, projector: str, embedding_version: str) -> CoreBrain:
    if not environ.get(projector):
        raise ProjectorError(f"{model} names a language model, and {projector} no projector for it: jobs/train_projector.py")
    device = environ.get(DEVICE) or "cpu"
    return load_qwen3_vl(Path(environ[model]), Path(environ[projector]), embedding_version, device=device)
