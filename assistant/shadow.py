"""Shadow mode: a second brain answers a share of the turns again, unseen, and what it took and said is compared in a table.

    shadow = Shadow(lake, tools, brain, ShadowConfig(share=0.05))
    with shadow:
        navigator = Navigator(tools, served_brain, watcher=shadow)

It works aside: a turn that has ended is put into a bounded queue, or dropped and counted where that is full; nothing that
happens here delays or fails a user's turn. Which turns are chosen is a hash of their id, so that every process chooses alike.
Both brains get the same pins. The table has ids, counts and times, and no word that anybody wrote or was told (`shadow_turns`,
docs/decisions/0017-one-turn.md).
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from assistant.citations import CitationFilter
from assistant.navigator import TurnRecord, offered
from assistant.tools import ToolError, Tools
from assistant.turns import Brain, BrainError, Usage
from embedding.contracts import SHADOW_TURNS
from embedding.tables.lake import DayChangedError, Lake, append_once, counter
from embedding.tables.staging import Stager

SHARE_VARIABLE = "PINLAKE_SHADOW_SHARE"
SERVED_PRICES_VARIABLE, SHADOW_PRICES_VARIABLE = "PINLAKE_SERVED_PRICES", "PINLAKE_SHADOW_PRICES"
ERROR_CHARS = 200
WRITING = (OSError, DeltaError, DayChangedError, pa.ArrowException)
"""What writing the table may raise; the rows wait for the next attempt."""

log = logging.getLogger("pinlake")


class ShadowSettingError(ValueError):
    """A setting of the shadow that cannot be; the message says which."""


@dataclass(frozen=True)
class Prices:
    """What a brain's tokens cost, a million each, in any one currency. Thinking counts as output, as providers bill it."""

    prompt: float
    cached: float
    output: float

    @classmethod
    def parse(cls, text: str) -> Prices:
        """From `0.40,0.10,1.60`: prompt, cached prompt and output. Raises ShadowSettingError."""
        try:
            prices = [float(part) for part in text.split(",")]
            if len(prices) != 3 or min(prices) < 0:
                raise ValueError
        except ValueError:
            raise ShadowSettingError(f"prices are three numbers, of prompt, cached and output tokens, not {text!r}") from None
        return cls(*prices)

    def cost(self, usage: Usage) -> float:
        fresh, output = max(0, usage.prompt - usage.cached), usage.thinking + usage.answer
        return (self.prompt * fresh + self.cached * usage.cached + self.output * output) / 1e6


@dataclass(frozen=True)
class ShadowConfig:
    """How much is shadowed and how it is written.

    share: Of turns, 0 to 1. waiting: Turns that may wait for the shadow; more are dropped. rows: Of a commit. every_s: So often
    fewer are committed, too. kept_rows: That wait while the table cannot be written; older ones are dropped.
    """

    share: float
    served_prices: Prices | None = None
    shadow_prices: Prices | None = None
    waiting: int = 32
    rows: int = 100
    every_s: float = 60.0
    kept_rows: int = 10_000

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ShadowConfig | None:
        """PINLAKE_SHADOW_SHARE, PINLAKE_SERVED_PRICES and PINLAKE_SHADOW_PRICES (`Prices.parse`); None for no share.

        Raises ShadowSettingError.
        """
        environ = os.environ if environ is None else environ
        try:
            share = float(environ.get(SHARE_VARIABLE) or 0)
        except ValueError:
            raise ShadowSettingError(f"{SHARE_VARIABLE} is a number between 0 and 1") from None
        said = (environ.get(name) for name in (SERVED_PRICES_VARIABLE, SHADOW_PRICES_VARIABLE))
        served, shadow = (Prices.parse(text) if text else None for text in said)
        return cls(share, served, shadow) if share else None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ShadowSettingError(f"the share of turns is between 0 and 1, not {self.share}")
        if min(self.waiting, self.rows, self.kept_rows) < 1 or self.every_s <= 0:
            raise ShadowSettingError("waiting, rows and kept_rows are at least 1, every_s is more than 0")


def is_chosen(turn_id: str, share: float) -> bool:
    """Whether a turn is of the share: the same for the same id, everywhere and always."""
    return int.from_bytes(hashlib.sha256(turn_id.encode()).digest()[:8]) < share * 2**64


@dataclass
class Counts:
    """What has become of the turns that were chosen: waiting or under way is what none of these counts."""

    chosen: int = 0
    dropped: int = 0
    written: int = 0
    failed: int = 0


class Shadow:
    """Watches a Navigator's turns. Thread-safe. A context manager: leaving it finishes what waits, within `patience_s`."""

    def __init__(
        self,
        lake: Lake,
        tools: Tools,
        brain: Brain,
        config: ShadowConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
        patience_s: float = 30.0,
    ):
        self._lake, self._tools, self._brain, self._config = lake, tools, brain, config
        self._clock, self._patience_s = clock, patience_s
        self._waiting: queue.Queue[TurnRecord] = queue.Queue(config.waiting)
        self._rows: list[dict[str, Any]] = []
        self._run_id, self._written_at = f"assistant-{uuid.uuid4().hex[:12]}", clock()
        self._thread = threading.Thread(target=self._follow, name="pinlake-shadow", daemon=True)
        self._ended = threading.Event()
        self.counts = Counts()

    def __call__(self, record: TurnRecord) -> None:
        """Takes note of a turn, or drops it. Returns at once."""
        if not is_chosen(record.turn_id, self._config.share) or self._ended.is_set():
            return
        self.counts.chosen += 1
        try:
            self._waiting.put_nowait(_light(record))
        except queue.Full:
            self.counts.dropped += 1

    def __enter__(self) -> Shadow:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(self._patience_s)

    def _follow(self) -> None:
        while not (self._ended.is_set() and self._waiting.empty()):
            try:
                record = self._waiting.get(timeout=min(1.0, self._config.every_s))
            except queue.Empty:
                record = None
            try:
                if record is not None:
                    self._rows.append(self._compared(record))
                if len(self._rows) >= self._config.rows or self._clock() - self._written_at >= self._config.every_s:
                    self._write()
            except Exception:  # whatever it is, it is the shadow's own, and the next turn may do better
                self.counts.failed += 1
                log.exception("a shadow failed")
        self._write()

    def _compared(self, record: TurnRecord) -> dict[str, Any]:
        """A row of the table: both brains over one turn."""
        done, error = record.done, None
        row: dict[str, Any] = {
            "turn_id": record.turn_id,
            "ds": record.asked_at.date().isoformat(),
            "asked_at": record.asked_at,
            "mode": record.turn.mode,
            "release_id": record.release_id,
            "embedding_version": record.turn.embedding_version,
            "candidates": len(record.turn.candidates),
            "tool": record.call.tool,
            "run_id": self._run_id,
            **_figures("served", done.brain, done.usage, self._config.served_prices),
            "served_first_token_ms": done.first_token_ms,
            "served_total_ms": done.total_ms,
            "served_cited": len(done.cited),
            "served_removed": done.removed,
            "shadow_brain": self._brain.name,
        }
        try:
            row |= self._decision(record) | self._answer(record)
        except BrainError as failure:
            error = str(failure)[:ERROR_CHARS]
        return row | {"shadow_error": error}

    def _decision(self, record: TurnRecord) -> dict[str, Any]:
        if record.call.tool in ("search_picture", "search_pin"):
            return {}
        started = self._clock()
        call = self._brain.decide(record.turn.request, offered(record.turn.interests))
        return {"same_tool": call.tool == record.call.tool, "shadow_decide_ms": self._ms(started)}

    def _answer(self, record: TurnRecord) -> dict[str, Any]:
        passed, said, first_ms, started = CitationFilter(record.turn.candidates), list[str](), None, self._clock()
        with closing(self._brain.answer(record.turn)) as answering:
            for piece in answering:
                first_ms = self._ms(started) if first_ms is None else first_ms
                if piece.kind == "answer":
                    said.append(passed.feed(piece.text))
            said.append(passed.end())
            usage = answering.usage
        total_ms, answer = self._ms(started), "".join(said)
        return {
            **_figures("shadow", self._brain.name, usage, self._config.shadow_prices),
            "shadow_first_token_ms": first_ms,
            "shadow_total_ms": total_ms,
            "shadow_cited": len(passed.cited),
            "shadow_removed": passed.removed,
            "cited_jaccard": jaccard(record.done.cited, passed.cited),
            "answers_cosine": self._cosine(record.answer, answer),
        }

    def _cosine(self, one: str, other: str) -> float | None:
        if not one.strip() or not other.strip():
            return None
        try:
            vectors_2D = self._tools.text_vectors([one, other])
        except ToolError:
            return None
        return float(vectors_2D[0] @ vectors_2D[1])

    def _write(self) -> None:
        """Commits what has been compared, a day at a time. What cannot be written now waits, within bounds."""
        self._written_at = self._clock()
        by_day = defaultdict(list)
        for row in self._rows:
            by_day[row["ds"]].append(row)
        for ds, rows in sorted(by_day.items()):
            try:
                self._append(ds, rows)
            except WRITING as error:
                log.error("%d rows of %s wait to be written: %s", len(rows), SHADOW_TURNS.name, error)
                break
            self.counts.written += len(rows)
            self._rows = [row for row in self._rows if row["ds"] != ds]
        if (over := len(self._rows) - self._config.kept_rows) > 0:
            self.counts.dropped += over
            self._rows = self._rows[over:]

    def _append(self, ds: str, rows: Sequence[dict[str, Any]]) -> None:
        names = SHADOW_TURNS.file_schema.names
        found = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], SHADOW_TURNS.file_schema)
        seen = {self._run_id: counter(self._lake.open(SHADOW_TURNS), self._run_id)}
        moved = {self._run_id: seen[self._run_id] + 1}
        with Stager(self._lake.table_uri(SHADOW_TURNS), SHADOW_TURNS, {"ds": ds}) as stager:
            stager.add(found)
            stager.flush()
            append_once(self._lake, SHADOW_TURNS, {"ds": ds}, stager.files, seen=seen, moved=moved, run_id=self._run_id)

    def _ms(self, started: float) -> float:
        return round(1_000 * (self._clock() - started), 1)


def jaccard(one: Sequence[int], other: Sequence[int]) -> float:
    """|A and B| / |A or B|; 1 where both are empty."""
    either = set(one) | set(other)
    return len(set(one) & set(other)) / len(either) if either else 1.0


def _light(record: TurnRecord) -> TurnRecord:
    """Without a picture's bytes: what waits must not hold megabytes, and no brain reads them."""
    request = record.turn.request
    if not request.picture:
        return record
    return replace(record, turn=replace(record.turn, request=replace(request, picture=b"")))


def _figures(which: str, brain: str, usage: Usage, prices: Prices | None) -> dict[str, Any]:
    return {
        f"{which}_brain": brain,
        f"{which}_prompt_tokens": usage.prompt,
        f"{which}_cached_tokens": usage.cached,
        f"{which}_thinking_tokens": usage.thinking,
        f"{which}_answer_tokens": usage.answer,
        f"{which}_cost": None if prices is None else prices.cost(usage),
    }
