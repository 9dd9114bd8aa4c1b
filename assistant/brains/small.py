"""How the small language model is asked: in the very questions that it was trained on, and no others.

It chooses a tool, and whether a pin fits a request, by which answer it finds likelier, which takes one pass over a short prompt
and no generated text. Its thinking is a check of each candidate by that closed question, one line each. Small talk it has
unlearned: to a turn without candidates it says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from assistant.brains import smollm2
from assistant.brains.adapter import add_adapter
from assistant.brains.core import Asked, CoreBrain
from assistant.brains.decoder import Decoder
from assistant.brains.engine import Engine
from assistant.brains.prompts import Prompter, Segment, smollm2_vocabulary
from assistant.brains.wording import Shown, ask_answer, ask_fits, ask_tool
from assistant.projector import Projector
from assistant.turns import Candidate, Piece, Request, ToolCall, ToolName, Turn

WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights" / "smollm2"
"""The projector and the LoRA weights that come with the repository, for the encoder that comes with it."""

TOOLS: tuple[ToolName, ...] = ("search_text", "search_interests", "talk")
"""Those that it was trained to tell apart."""
MOST_PINS, MOST_INTERESTS, WORDS_KEPT = 12, 2, 40
SMALL_TALK = (
    "I am a small model, and pins are all that I can talk about. Ask me for a subject, or for something that you might like."
)
BEGINS = ("[", "None")
"""How its answers over pins begin: with the first that fits, or with "None of these fits."; whatever else comes is noise."""
REASONS = {"search_text": "it reads as a subject", "search_interests": "it asks for suggestions", "talk": "it asks for no pins"}


class SmallManner:
    """See the module."""

    def choose(self, engine: Engine, request: Request, tools: Sequence[ToolName]) -> ToolCall:
        offered = [tool for tool in TOOLS if tool in tools] or list(tools)
        tool, sure = offered[0], 1.0
        if len(offered) > 1:
            chances = likelihoods(engine, ask_tool(_shortened(request.text)), offered)
            sure = max(chances)
            tool = offered[chances.index(sure)]
        query = request.text if tool == "search_text" else ""
        return ToolCall(tool, query, f"{REASONS.get(tool, 'no other was offered')} ({sure:.2f})")

    def check(self, engine: Engine, turn: Turn) -> Checks | None:
        return Checks(engine, turn) if turn.candidates and turn.thinking_tokens else None

    def ask(self, turn: Turn) -> Asked | str:
        if not turn.candidates:
            return SMALL_TALK
        pins = [(one.number, Shown(one.vector, one.title)) for one in turn.candidates[:MOST_PINS]]
        likes = [Shown(interest.vector) for interest in turn.interests[:MOST_INTERESTS]]
        return Asked(ask_answer(pins, _shortened(turn.request.text), likes), tuple(number for number, _ in pins), BEGINS)


class Checks:
    """Asks of each candidate whether it fits, until the turn's thinking is used up; the rest stay as they are.

    kept: What fits; where nothing does, what came nearest.
    """

    def __init__(self, engine: Engine, turn: Turn):
        self._engine, self._turn = engine, turn
        self.kept: tuple[Candidate, ...] = turn.candidates
        self.prompt_tokens = 0

    def __iter__(self) -> Iterator[Piece]:
        chances: dict[int, float] = {}
        request = _shortened(self._turn.request.text)
        for candidate in self._turn.candidates[: min(self._turn.thinking_tokens, MOST_PINS)]:
            segments = ask_fits(Shown(candidate.vector), request)
            chance = likelihoods(self._engine, segments, ("yes", "no"))[0]
            self.prompt_tokens += len(self._engine.prompter.prompt(segments).ids)
            chances[candidate.number] = chance
            verdict = "fits" if chance >= 0.5 else "does not fit"
            yield Piece("thinking", f"[{candidate.number}] {verdict} ({chance:.2f})\n")
        fitting = [one for one in self._turn.candidates if chances.get(one.number, 0.0) >= 0.5]
        nearest = max(self._turn.candidates, key=lambda one: chances.get(one.number, 0.0))
        self.kept = tuple(fitting or [nearest])
        if not fitting:
            yield Piece("thinking", f"Nothing fits well; [{nearest.number}] comes nearest.\n", tokens=0)


def likelihoods(engine: Engine, segments: Sequence[Segment], answers: Sequence[str]) -> list[float]:
    """How likely each answer is, as a share of all of them."""
    prompter = engine.prompter
    end = prompter.vocabulary.end_of_turn
    scores = engine.score(prompter.prompt(segments), [(*prompter.data(answer), end) for answer in answers])
    weights = [math.exp(float(score - scores.max())) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _shortened(text: str) -> str:
    return " ".join(text.split()[:WORDS_KEPT])


def load_small(embedding_version: str, folder: Path = WEIGHTS_FOLDER, rows: int = 16) -> CoreBrain:
    """The small brain for one encoder's vectors. Raises ProjectorError for another's, LanguageModelError without a model."""
    name = smollm2.LANGUAGE_MODEL
    projector = Projector.load(folder, embedding_version, name)
    model, tokenizer = smollm2.load()
    add_adapter(model, folder, language_model=name, embedding_version=embedding_version)
    backend = tokenizer.backend_tokenizer
    vocabulary = smollm2_vocabulary(backend)
    prompter = Prompter(backend, vocabulary, projector.config.tokens)
    engine = Engine(Decoder.of(model, name, vocabulary.placeholder, projector), prompter, rows=rows)
    return CoreBrain(engine, embedding_version, SmallManner())
