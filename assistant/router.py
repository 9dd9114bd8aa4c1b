"""Which mode a request is answered in, quick or thinking: rules where the words say it, a small learned model elsewhere.

Rules come first, since a person can read them, and who writes "compare" gets what they ask for. Where no rule speaks, logistic
regression over hashed n-grams decides; it needs no encoder, so that a change of encoder changes no routing. The same model
learned which tool a request needs: a brain's own choice can be judged by it. Trained by `python -m assistant.train_router` on
assistant/data/requests.jsonl, judged on its test part by `python -m benchmarks.router`
(docs/decisions/0017-one-turn.md).
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from assistant.turns import Mode, Request, ToolCall, ToolName
from embedding.index.recall import Floats

FORMAT = 1
BUCKETS = 2_048
"""Of the hashed n-grams."""
MODES: tuple[Mode, ...] = ("quick", "thinking")
TOOLS: tuple[ToolName, ...] = ("search_text", "search_interests", "talk")
FOLDER = Path(__file__).parent / "weights"
CONFIG, WEIGHTS = "router.json", "router.safetensors"

MANY_WORDS, FEW_WORDS, MANY_CONDITIONS = 25, 2, 4

_QUICK_WORDS = re.compile(r"^(?:just|only|quick(?:ly)?|fast|schnell|nur|solo|rápido)\b|\bjust show\b", re.IGNORECASE)
_THINKING_WORDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (reason, re.compile(pattern, re.IGNORECASE))
    for reason, pattern in (
        (
            "you ask for a comparison",
            r"^compare\b|\bcompare (?:\d|it|them|this|these|with|the)|\bdifferences? between\b|\bpros and cons\b"
            r"|\btrade-?offs?\b|\d (?:vs\.?|versus|or) \d|\bvergleich|\bunterschied|^compara\b|\bdiferencia\b",
        ),
        (
            "you ask why",
            r"^(?:why (?:do|does|did|is|are|was|were|would|should)|how come|warum|wieso|weshalb|por qué)\b|\band why\b"
            r"|\bund warum\b|\by por qué\b|\bsay why\b|\btell me (?:the reason|why)\b",
        ),
        ("you ask for an explanation", r"^explain\b|\bexplain (?:how|why|what|the|it|this|these)\b|\berkläre?\b|\bexplica\b"),
        (
            "you ask for a plan",
            r"^plan (?:a|an|my|our|the|for)\b|\b(?:help me|help us|let'?s|to|you) plan\b|\bstep by step\b|\bplane (?:mir|uns)\b"
            r"|\bplanear\b",
        ),
        ("you ask for help with a choice", r"\bhelp me (?:choose|decide|pick)\b|\b(?:can't|cannot) decide\b|\bshould i\b"),
        (
            "there is a budget to keep",
            r"\b(?:my|our|on a|small|tight) budget\b|\b(?:under|below|at most|less than) \d+ ?(?:euros?|dollars?|€|\$)",
        ),
        ("you ask to think", r"^think\b|\bthink (?:about|hard|again|it over|twice)\b|\btake your time\b|\büberleg"),
    )
)
_OF_MINE = re.compile(
    r"\bmy (?:own )?(?:boards?|pins?|saves?|saved|taste|interests?|style|collection|likes)\b"
    r"|\bi(?:'ve| have)? (?:saved?|pinned)\b|\b(?:for|like) me\b|\bi(?:'d| would| might) (?:like|love|save)\b|\brecommend"
    r"|\bmeine[nrm]? (?:pins|pinnwände|geschmack)\b|\bfür mich\b|\bpara mí\b",
    re.IGNORECASE,
)
_OF_SHOWN = re.compile(
    r"\b(?:number|no\.?|nr\.?|pin) ?\d|#\d|\b(?:first|second|third|fourth|fifth|last|next) (?:one|two|three)\b"
    r"|\b(?:of|about|like|from|with) (?:these|those|them)\b|\bthe (?:first|second|third|fourth|fifth|last)$",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"[,;:]|\b(?:but|without|except|not|no|must|at least|at most|under|below|over|instead|aber|ohne|nicht|kein\w*|pero|sin)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+|\?")


class RouterError(Exception):
    """The router's weights are missing or damaged; the message says which."""


@dataclass(frozen=True)
class Routed:
    """A mode, and why, in words for the user. by: `rule`, or `model`."""

    mode: Mode
    reason: str
    by: str


def by_rule(request: Request) -> Routed | None:
    """What the words say by themselves; None where they do not."""
    text, words = request.text.strip(), _WORD.findall(request.text)
    for reason, pattern in _THINKING_WORDS:
        if pattern.search(text):
            return Routed("thinking", reason, "rule")
    if _QUICK_WORDS.search(text):
        return Routed("quick", "you ask for something quick", "rule")
    if len(words) >= MANY_WORDS:
        return Routed("thinking", f"a long request, of {len(words)} words", "rule")
    if (conditions := len(_CONDITION.findall(text))) >= MANY_CONDITIONS:
        return Routed("thinking", f"{conditions} conditions to weigh", "rule")
    if len(words) <= FEW_WORDS:
        attached = "a picture alone" if request.picture is not None else "a pin alone" if request.pin_id is not None else ""
        return Routed("quick", attached or "a request of a word or two", "rule")
    return None


def tool_by_rule(request: Request, offered: Sequence[ToolName]) -> ToolCall | None:
    """The tool that the words name by themselves, where it is offered; None where they name none."""
    if request.shown and "talk" in offered and _OF_SHOWN.search(request.text):
        return ToolCall("talk", reason="you speak of what was shown")
    if "search_interests" in offered and request.user_id is not None and _OF_MINE.search(request.text):
        return ToolCall("search_interests", reason="you speak of what you like")
    return None


def features(request: Request) -> Floats:
    """(BUCKETS + 8,): L2-normalised counts of hashed words, pairs of words and n-grams of characters; what else is known."""
    words = [word.lower() for word in _WORD.findall(request.text)]
    counted = np.zeros(BUCKETS, np.float32)
    for gram in _grams(words):
        counted[zlib.crc32(gram.encode()) % BUCKETS] += 1
    counted = np.log1p(counted)
    counted /= max(1e-6, float(np.linalg.norm(counted)))
    beside = (
        min(len(words), 40) / 20,
        min(len(_CONDITION.findall(request.text)), 6) / 3,
        request.text.rstrip().endswith("?"),
        bool(request.shown),
        len(request.messages) > 1,
        request.user_id is not None,
        request.picture is not None or request.pin_id is not None,
        1.0,
    )
    return np.concatenate([counted, np.array(beside, np.float32)])


def _grams(words: Sequence[str]) -> list[str]:
    framed = ["^", *words, "$"]
    pairs = [f"{one} {two}" for one, two in pairwise(framed)]
    parts = [
        f"#{f'<{word}>'[at : at + size]}" for word in words for size in (3, 4) for at in range(max(1, len(word) + 3 - size))
    ]
    return [*words, *pairs, *parts]


@dataclass(frozen=True)
class Model:
    """Two logistic regressions: weights (features, 1) of the mode, (features, 3) of the tool."""

    mode_F1: Floats  # noqa: N815 - a shape suffix
    tool_F3: Floats  # noqa: N815

    def thinking(self, request: Request) -> float:
        """Probability that the request wants thinking."""
        return float(1 / (1 + np.exp(-(features(request) @ self.mode_F1)[0])))

    def tools(self, request: Request) -> dict[ToolName, float]:
        """Probabilities of the tools."""
        raised = np.exp((scores := features(request) @ self.tool_F3) - scores.max())
        return dict(zip(TOOLS, (raised / raised.sum()).tolist(), strict=True))

    def save(self, folder: Path = FOLDER) -> None:
        """Writes the weights (float16) and a config, which has their SHA-256."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"mode": self.mode_F1.astype(np.float16), "tool": self.tool_F3.astype(np.float16)}, folder / WEIGHTS)
        said = {"format": FORMAT, "sha256": _sha256(folder / WEIGHTS), "buckets": BUCKETS, "tools": list(TOOLS)}
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Model:
        """Raises RouterError where they are missing, damaged or of another format."""
        try:
            said = json.loads((folder / CONFIG).read_text())
            expected = {"format": FORMAT, "sha256": _sha256(folder / WEIGHTS), "buckets": BUCKETS, "tools": list(TOOLS)}
            if said != expected:
                raise RouterError(f"{folder / WEIGHTS} is damaged or of another format than {CONFIG}: train the router again")
            read = load_file(folder / WEIGHTS)
            return cls(read["mode"].astype(np.float32), read["tool"].astype(np.float32))
        except (OSError, ValueError, KeyError) as error:
            raise RouterError(f"there is no readable router in {folder}: {error}") from None


class Router:
    """Thread-safe: nothing changes after construction. Without a model, rules alone: where they are silent, quick."""

    def __init__(self, model: Model | None = None):
        self._model = model

    @classmethod
    @cache
    def shipped(cls) -> Router:
        """With the weights of this repository. Raises RouterError."""
        return cls(Model.load())

    def route(self, request: Request) -> Routed:
        """The request's mode and the reason for it."""
        if (routed := by_rule(request)) is not None:
            return routed
        if self._model is None:
            return Routed("quick", "nothing in it asks for more", "rule")
        thinking = self._model.thinking(request)
        if thinking >= 0.5:
            return Routed("thinking", f"it reads like a question to think about ({thinking:.0%})", "model")
        return Routed("quick", f"it reads like a simple search ({1 - thinking:.0%})", "model")

    def tool(self, request: Request, offered: Sequence[ToolName] = TOOLS) -> ToolCall:
        """The tool that the words ask for, by rules and then by the model, of those that are offered.

        A brain's choice is compared with it.
        """
        if (ruled := tool_by_rule(request, offered)) is not None:
            return ruled
        if self._model is None:
            return ToolCall("search_text", request.text, "no model is loaded")
        likely = {tool: share for tool, share in self._model.tools(request).items() if tool in offered}
        tool = max(likely, key=lambda name: likely[name])
        return ToolCall(tool, request.text if tool == "search_text" else "", f"{likely[tool]:.0%} by the router's model")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
