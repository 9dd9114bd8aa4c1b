"""One turn of a conversation, from the request to the last event: limits, mode, retrieval, answer, check of citations.

    with LiveRelease(lake) as live:
        navigator = Navigator(Tools(lake, live), brain)
        for event in navigator.chat(Request((Message("user", "a red bicycle"),))):
            print(event.name, event.data())

A turn keeps nothing once it has ended, and asks one release alone. Who stops listening closes the generator, which ends the
brain's answer with it. Why it is so: docs/decisions/0017-one-turn.md.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast, get_args

from assistant import events
from assistant.citations import CitationFilter
from assistant.router import Router
from assistant.tools import Asked, Narrowed, ToolError, Tools
from assistant.turns import Brain, BrainError, Candidate, Interest, Limits, Mode, Piece, Request, ToolCall, ToolName, Turn

log = logging.getLogger("pinlake")

MODES = get_args(Mode)
SLOW = "this answer takes too long and was ended: ask for less, or again"


class RequestRefused(Exception):  # noqa: N818 - it refuses a request, and reports no error of ours
    """A request over a limit, which its name says; the message is a sentence for the user."""

    def __init__(self, limit: str, message: str):
        super().__init__(message)
        self.limit = limit


def check(request: Request, limits: Limits) -> None:
    """Raises RequestRefused for what is over a limit, or is no request at all. No work is done before it."""
    if not request.messages or request.messages[-1].role != "user":
        raise RequestRefused("messages", "the last message must be the user's")
    if len(request.messages) > limits.messages:
        raise RequestRefused("messages", f"a conversation may have {limits.messages} messages: begin a new one")
    if (longest := max(len(message.text) for message in request.messages)) > limits.message_chars:
        raise RequestRefused(
            "message_chars", f"a message has {longest:,} characters, at most {limits.message_chars:,} are read"
        )
    if request.picture is not None and len(request.picture) > limits.picture_bytes:
        raise RequestRefused(
            "picture_bytes", f"the picture has {len(request.picture):,} bytes, at most {limits.picture_bytes:,}"
        )
    if len(request.shown) > limits.shown:
        raise RequestRefused("shown", f"{len(request.shown)} pins are said to be shown, at most {limits.shown} may be")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise RequestRefused("max_tokens", "max_tokens must be at least 1")
    if not request.text.strip() and request.picture is None and request.pin_id is None:
        raise RequestRefused("message_chars", "there is nothing asked: write something, attach a picture or point at a pin")


def budget(mode: Mode, request: Request, limits: Limits) -> tuple[int, int]:
    """Tokens for (thinking, answer). A request's own bound takes from the thinking first, and leaves it at most half."""
    most = request.max_tokens
    if most is None:
        return (limits.thinking_tokens if mode == "thinking" else 0), limits.answer_tokens
    if mode == "quick":
        return 0, min(most, limits.answer_tokens)
    thinking = min(limits.thinking_tokens, max(0, most - limits.answer_tokens), most // 2)
    return thinking, min(most - thinking, limits.answer_tokens)


def offered(interests: Sequence[Interest]) -> tuple[ToolName, ...]:
    """The tools that a brain may choose from: a user's interests are one where something is known of them."""
    return ("search_text", "search_interests", "talk") if interests else ("search_text", "talk")


@dataclass(frozen=True)
class TurnRecord:
    """A turn that has ended well, for who looks on: the shadow. Never stored as it is: it has what people wrote."""

    turn_id: str
    asked_at: datetime
    turn: Turn
    call: ToolCall
    release_id: str
    answer: str
    done: events.Done


def _interests(asked: Asked, user_id: int | None) -> tuple[Interest, ...]:
    """The user's interests; none while they cannot be read, since a search does without."""
    try:
        return asked.interests(user_id)
    except ToolError as error:
        log.warning("a turn goes without interests: %s", error)
        return ()


Watcher = Callable[[TurnRecord], None]
"""Who is told of turns that have ended well. Returns at once, and raises nothing."""


class Navigator:
    """Answers turns. Thread-safe: turns share its tools and brains, and nothing else."""

    def __init__(
        self,
        tools: Tools,
        brain: Brain,
        *,
        thinking: Brain | None = None,
        router: Router | None = None,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """
        Args:
            brain: Decides, and answers.
            thinking: Answers in thinking mode, where that is another checkpoint; `brain` does so without.
            router: The shipped one where none is given.
            watcher: Is told of each turn that ended well.
            clock: Seconds.
        """
        self._tools, self._brains, self._clock, self._watcher = tools, (brain, thinking or brain), clock, watcher
        self._router = router or Router.shipped()
        self.limits = tools.limits

    def chat(self, request: Request, mode: Mode | str = "auto", turn_id: str | None = None) -> Generator[events.Event]:
        """The events of one turn, as they happen; the last one is `done` or `error`. What a user can be told of raises nothing.

        mode: `quick`, `thinking`, or `auto` for what the router says. turn_id: Drawn at random where none is given.
        """
        started, asked_at = self._clock(), datetime.now(UTC)
        try:
            check(request, self.limits)
            chosen, reason = self._mode(request, mode)
            yield events.ModeChosen(chosen, reason)
            asked = self._tools.now()
            interests = _interests(asked, request.user_id)
            call = self._call(request, interests)
            yield events.ToolChosen(call)
            candidates = self._retrieve(call, request, asked, interests)
            yield events.Candidates(asked.release_id, asked.embedding_version, candidates)
            tokens = budget(chosen, request, self.limits)
            turn = Turn(request, chosen, asked.embedding_version, candidates, interests, *tokens)
            for event, answer in self._answer(turn, started):
                if isinstance(event, events.Done) and self._watcher is not None:
                    turn_id = turn_id or uuid.uuid4().hex
                    self._watcher(TurnRecord(turn_id, asked_at, turn, call, asked.release_id, answer, event))
                yield event
        except RequestRefused as error:
            yield events.Failed(str(error), retryable=False)
        except ToolError as error:
            yield events.Failed(str(error), retryable=error.retryable)
        except BrainError as error:
            yield events.Failed(str(error), retryable=True)

    def _mode(self, request: Request, mode: Mode | str) -> tuple[Mode, str]:
        if mode in MODES:
            return cast(Mode, mode), "you asked for it"
        if mode != "auto":
            raise RequestRefused("mode", f"there is no mode {mode!r}: quick, thinking or auto")
        routed = self._router.route(request)
        return routed.mode, routed.reason

    def _call(self, request: Request, interests: tuple[Interest, ...]) -> ToolCall:
        """Which tool is asked for what. A picture or a pin says it by itself, else the brain does, within what is offered."""
        if request.picture is not None:
            return ToolCall("search_picture", reason="you attached a picture")
        if request.pin_id is not None:
            return ToolCall("search_pin", reason="you pointed at a pin")
        tools = offered(interests)
        call = self._brains[0].decide(request, tools)
        if call.tool not in tools:
            return ToolCall("search_text", request.text, f"your words are searched: {call.tool} has nothing to go by")
        if call.tool == "search_text":
            return replace(call, query=call.query.strip()[: self.limits.message_chars] or request.text)
        return call

    def _retrieve(
        self, call: ToolCall, request: Request, asked: Asked, interests: tuple[Interest, ...]
    ) -> tuple[Candidate, ...]:
        k, among = self.limits.candidates, Narrowed(request.board, request.tag)
        if request.picture is not None:
            return asked.picture(request.picture, k, among)
        if request.pin_id is not None:
            return asked.pin(request.pin_id, k, among)
        if call.tool == "talk":
            return asked.shown(request.shown[:k])
        if call.tool == "search_interests":
            return asked.recommended(request.user_id, k, among)
        return asked.text(call.query, k, among, interests)

    def _answer(self, turn: Turn, started: float) -> Iterator[tuple[events.Event, str]]:
        """Each event with the answer so far."""
        brain = self._brains[turn.mode == "thinking"]
        filters = {kind: CitationFilter(turn.candidates) for kind in ("thinking", "answer")}
        said, first_ms = list[str](), None
        with closing(brain.answer(turn)) as answering:
            for event in self._checked(answering, filters, started):
                if first_ms is None:
                    first_ms = self._ms(started)
                if isinstance(event, events.Answer):
                    said.append(event.text)
                yield event, "".join(said)
            usage = answering.usage
        cited, removed = tuple(filters["answer"].cited), sum(passed.removed for passed in filters.values())
        done = events.Done(cited, removed, brain.name, turn.mode, usage, first_ms, self._ms(started))
        yield done, "".join(said)

    def _checked(
        self, pieces: Iterable[Piece], filters: Mapping[str, CitationFilter], started: float
    ) -> Iterator[events.Thinking | events.Answer]:
        """The pieces through the check of citations; what it holds back comes when its kind of piece ends."""
        made: Mapping[str, type[events.Thinking | events.Answer]] = {"thinking": events.Thinking, "answer": events.Answer}
        kind: str | None = None
        for piece in pieces:
            if self._clock() - started > self.limits.turn_s:
                raise BrainError(SLOW)
            if kind not in (None, piece.kind) and (rest := filters[str(kind)].end()):
                yield made[str(kind)](rest)
            kind = piece.kind
            if text := filters[kind].feed(piece.text):
                yield made[kind](text)
        if kind is not None and (rest := filters[kind].end()):
            yield made[kind](rest)

    def _ms(self, started: float) -> float:
        return round(1_000 * (self._clock() - started), 1)
