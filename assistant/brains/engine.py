"""Answers of several conversations at once from one language model: continuous batching, as Orca has it (OSDI 2022).

One thread runs the model. Between two steps, prompts that wait join the batch under way, and answers that are finished, closed
or late leave it; what the others say does not change. Nothing is shared between conversations but weights, and prefixes that
were asked for by `remember`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType

import numpy as np
import torch

from assistant.brains.decoder import Decoder, KeysValues, read
from assistant.brains.prompts import Prompt, Prompter
from assistant.brains.rows import DeadlineError, EngineFullError, EngineStoppedError, Generation, Row, Stream, TooLongError
from assistant.brains.scores import score
from assistant.brains.slots import Slots
from assistant.turns import BrainError
from embedding.index.recall import Floats


class Engine:
    """Generates and scores. Thread-safe. Its thread starts with it and ends with `close`.

    rows: Conversations in a batch at most.
    waiting: Prompts and scorings that may wait; one more is refused with EngineFullError.
    held_tokens: Of all rows together, counting each as long as the longest may become: bounds the memory of keys and values.
    read_tokens: Of prompts that join in one step; a longer prompt joins alone. Others' answers stand still meanwhile.
    clock: Seconds, monotonic.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompter: Prompter,
        *,
        rows: int = 16,
        waiting: int = 64,
        held_tokens: int = 32_768,
        read_tokens: int = 4_096,
        clock: Callable[[], float] = time.monotonic,
    ):
        if decoder.placeholder != prompter.vocabulary.placeholder:
            raise ValueError("the decoder fills another placeholder than the prompts have")
        self.decoder, self.prompter = decoder, prompter
        self._most_rows, self._waiting, self._held, self._read = rows, waiting, held_tokens, read_tokens
        self._clock = clock
        self._slots = Slots(decoder, rows)
        self._rows: list[Row] = []
        self._queue: deque[Row] = deque()
        self._jobs: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._prefixes: dict[tuple[int, ...], list[KeysValues]] = {}
        self._change = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # -- for callers -------------------------------------------------------------------------------------------------------

    def submit(self, prompt: Prompt, how: Generation | None = None) -> Stream:
        """Begins an answer. Raises EngineFullError, TooLongError or EngineStoppedError; later errors come by the stream."""
        how = how or Generation()
        stream = Stream(self._wake)
        deadline = None if how.deadline_s is None else self._clock() + how.deadline_s
        row = Row(prompt, how, self.prompter, stream, deadline)
        self._check_length(prompt, row.most)
        with self._change:
            self._check_room()
            self._queue.append(row)
            self._change.notify_all()
        return stream

    def score(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> Floats:
        """The sum of natural log-probabilities of each continuation's tokens after the prompt, which is read once for all.

        Shape (number of continuations,). Raises as `submit`, and ValueError for an empty continuation.
        """
        if not all(continuations):
            raise ValueError("a continuation has no token")
        self._check_length(prompt, len(prompt.ids) + max(map(len, continuations), default=0))
        found = self._do(lambda: score(self.decoder, prompt, continuations)) if continuations else np.empty(0, np.float32)
        assert isinstance(found, np.ndarray)
        return found

    def remember(self, prompt: Prompt) -> None:
        """Reads a beginning that many prompts share, and keeps its keys and values: prompts that begin so read only their rest.

        Raises as `submit`, and ValueError for a beginning with pins.
        """
        if len(prompt.pins):
            raise ValueError("a beginning that is kept has no pins: their placeholders look all the same")
        self._check_length(prompt, len(prompt.ids))
        self._do(lambda: self._prefixes.setdefault(prompt.ids, read(self.decoder, [self.decoder.embed(prompt)])[1]))

    @property
    def active(self) -> int:
        """Rows in the batch."""
        return len(self._rows)

    @property
    def queued(self) -> int:
        """What waits."""
        return len(self._queue) + len(self._jobs)

    def close(self) -> None:
        """Ends the thread; answers that are not finished fail with EngineStoppedError."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_length(self, prompt: Prompt, most: int) -> None:
        limit = min(self._held, self.decoder.longest)
        if not prompt.ids:
            raise ValueError("a prompt has a token at least")
        if most > limit:
            raise TooLongError(f"{most} tokens of prompt and answer; the model and this engine have room for {limit}")

    def _check_room(self) -> None:
        if self._stopping:
            raise EngineStoppedError("the engine is closed")
        if self.queued >= self._waiting:
            raise EngineFullError(f"{self.queued} prompts wait already")

    def _do(self, work: Callable[[], object]) -> object:
        """Runs work on the engine's thread, between two steps."""
        future: Future[object] = Future()
        with self._change:
            self._check_room()
            self._jobs.append((work, future))
            self._change.notify_all()
        return future.result()

    def _wake(self) -> None:
        with self._change:
            self._change.notify_all()

    # -- the thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._stopping or self._queue or self._jobs or self._rows)
                    if self._stopping:
                        break
                    self._leave()
                    joining, prefix = self._joining()
                    job = self._jobs.popleft() if self._jobs else None
                if job:
                    self._work(*job)
                try:
                    if joining:
                        self._join(joining, prefix)
                    if self._rows:
                        self._step()
                except Exception as error:  # noqa: BLE001
                    # Whatever the model failed of (memory, above all), its conversations end and later ones go on.
                    self._fail([*self._rows, *joining], f"the model failed: {type(error).__name__}: {error}")
        with self._change:
            rows, jobs = [*self._rows, *self._queue], [*self._jobs]
            self._queue.clear()
            self._jobs.clear()
        self._fail(rows, "the engine was closed")
        for _, future in jobs:
            future.set_exception(EngineStoppedError("the engine was closed"))

    def _work(self, work: Callable[[], object], future: Future[object]) -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)  # raised where the work was asked for

    def _fail(self, rows: Sequence[Row], why: str) -> None:
        for row in rows:
            row.stream.failed(EngineStoppedError(why))
        self._rows = []
        self._slots = Slots(self.decoder, self._most_rows)

    def _leave(self) -> None:
        """Rows that nobody listens to, and late ones, leave; those that wait as well as those under way."""
        now = self._clock()
        for number in reversed(range(len(self._rows))):
            if self._is_over(self._rows[number], now):
                self._remove(number)
        kept = [row for row in self._queue if not self._is_over(row, now)]
        self._queue = deque(kept)

    def _is_over(self, row: Row, now: float) -> bool:
        if row.stream.closed:
            row.stream.ended(row.usage, "closed")
            return True
        if row.deadline is not None and now > row.deadline:
            row.stream.failed(DeadlineError("the answer was not finished in its time"))
            return True
        return False

    def _remove(self, number: int) -> None:
        last = self._rows.pop()
        if number < len(self._rows):
            self._slots.move(len(self._rows), number, last.length)
            self._rows[number] = last

    def _joining(self) -> tuple[list[Row], tuple[int, ...]]:
        """Those that wait longest and share a remembered beginning, as many as there is room for."""
        joining: list[Row] = []
        prefix: tuple[int, ...] = ()
        longest = max((row.most for row in self._rows), default=0)
        while self._queue and len(self._rows) + len(joining) < self._most_rows:
            row = self._queue[0]
            longest = max(longest, row.most)
            rows = len(joining) + 1
            to_read = rows * max(len(each.prompt.ids) for each in (*joining, row))
            begins = self._beginning(row.prompt.ids)
            if (len(self._rows) + rows) * longest > self._held or (joining and (to_read > self._read or begins != prefix)):
                break
            prefix = begins
            joining.append(self._queue.popleft())
        return joining, prefix

    def _beginning(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        fitting = (known for known in self._prefixes if len(known) < len(ids) and ids[: len(known)] == known)
        return max(fitting, key=len, default=())

    def _join(self, joining: list[Row], prefix: tuple[int, ...]) -> None:
        """Reads the new prompts together, and says the first token of each."""
        past, start, ready = self._prefixes.get(prefix, []), len(prefix), []
        for row in joining:
            try:
                ready.append((row, self.decoder.embed(row.prompt)[start:]))
            except ValueError as error:
                row.stream.failed(BrainError(str(error)))
        if not ready:
            return
        hidden, made = read(self.decoder, [embeds for _, embeds in ready], past)
        used = len(self._rows)
        self._slots.reserve(used + len(ready), max(row.most for row in (*self._rows, *(row for row, _ in ready))), used)
        sizes = [len(embeds) for _, embeds in ready]
        for number, (row, _) in enumerate(ready):
            self._slots.write(used + number, past, made, number, sizes[number])
            row.length, row.cached = start + sizes[number], start
            self._rows.append(row)
        ends = torch.tensor(sizes, device=hidden.device) - 1
        self._advance(used, hidden[torch.arange(len(ready), device=hidden.device), ends])

    def _step(self) -> None:
        """One token more of every conversation."""
        cache, positions, mask = self._slots.step([row.length for row in self._rows])
        tokens = torch.tensor([[row.next] for row in self._rows], device=self.decoder.device)
        hidden = self.decoder.forward(torch.nn.functional.embedding(tokens, self.decoder.weight), positions, cache, mask)
        for row in self._rows:
            row.length += 1
        self._advance(0, hidden[:, -1])

    def _advance(self, first: int, hidden_BH: torch.Tensor) -> None:
        """Gives rows from `first` on what the model says next; those that are done leave."""
        logits = self.decoder.logits(hidden_BH)
        likeliest = logits.argmax(-1).tolist()
        over = []
        for number, token in enumerate(likeliest):
            row = self._rows[first + number]
            try:
                goes_on = row.advance(token, logits[number])
            except Exception as error:  # noqa: BLE001
                row.stream.failed(BrainError(f"the answer's constraint failed: {error}"))  # the caller's own code
                goes_on = False
            if not goes_on:
                over.append(first + number)
        for number in reversed(over):
            self._remove(number)
