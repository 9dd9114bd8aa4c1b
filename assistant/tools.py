"""Native retrieval: what a turn can ask the live release and the taste graph, and the candidates that come of it.

    tools = Tools(lake, live)
    asked = tools.now()                # one release for all that a turn asks, also while another takes its place
    asked.text("red bicycle", k=20)    # candidates, best first

Tools find pins by the vectors of last night: no picture of a pin is read here. A picture that the user attaches is encoded,
within bounds, and never kept. What is found depends on titles only as far as the encoder has read them: nothing here obeys one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake.exceptions import DeltaError

from assistant.data_text import one_line, tags_of
from assistant.steering import steered
from assistant.turns import Candidate, Interest, Limits
from embedding.encoder.config import ConfigError
from embedding.encoder.limits import ImageLimits, ImageRejected
from embedding.index.live import OneRelease, Serving
from embedding.index.reader import Release, Selection
from embedding.index.recall import Floats
from embedding.index.release import ReleaseError
from embedding.index.searcher import Searcher
from embedding.tables.lake import Lake
from embedding.taste import store
from embedding.taste.graph import GraphError, UnknownUserError
from embedding.taste.recommend import DUPLICATE, FUSION, Recommender, UserInterest, read_interests

DEEPER = 5
"""How many times the candidates that are wanted are looked at, where some may be left out or change places."""
GRAPH_EVERY_S = 60.0
"""How often tools look whether another graph is live."""
READING = (OSError, DeltaError, pa.ArrowException, ReleaseError, ConfigError)
"""What reading the lake may raise."""


class ToolError(Exception):
    """A tool cannot find what it was asked for; the message is a sentence for the user. retryable: it may, later."""

    def __init__(self, message: str, *, retryable: bool = False):
        super().__init__(message)
        self.retryable = retryable


class UnknownPinError(ToolError):
    """A pin that the release does not hold."""


class UnknownPersonError(ToolError):
    """A user of whom nothing is known."""


class BadPictureError(ToolError):
    """A picture that cannot be read, or is too large."""


@dataclass(frozen=True)
class Narrowed:
    """What a search is confined to: a board, a tag, or neither."""

    board: int | None = None
    tag: str | None = None

    def __bool__(self) -> bool:
        return self.board is not None or self.tag is not None

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether a described pin is among them, by the same rule as `Release.select`."""
        return (self.board is None or row["board_id"] == self.board) and (self.tag is None or self.tag in (row["tags"] or ()))


EVERYWHERE = Narrowed()


class Tools:
    """Opens turns. Thread-safe."""

    def __init__(
        self,
        lake: Lake,
        live: Serving,
        limits: Limits | None = None,
        image_limits: ImageLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Opens the live graph; without one, or where it is damaged, pins are found by likeness alone."""
        self._lake, self._live, self._clock = lake, live, clock
        self.limits = limits or Limits()
        self.image_limits = image_limits or ImageLimits.from_environment()
        self._lock, self._looked = threading.Lock(), clock()
        self._recommender = _recommender(lake, live)

    def now(self) -> Asked:
        """The tools over the release that is live at this moment."""
        one = OneRelease(self._live.release)
        recommender = self._current()
        return Asked(self._lake, one, None if recommender is None else recommender.asking(one), self.limits, self.image_limits)

    def warm(self) -> None:
        """Loads the release's encoder, which takes seconds: before the first user comes. Raises ToolError as a search does."""
        self.now().text("a picture", 1)

    def text_vectors(self, texts: Sequence[str]) -> Floats:
        """Texts as the live release's encoder reads them, (N, D), L2-normalised. Raises ToolError, also for an empty one."""
        one = OneRelease(self._live.release)
        with _reading():
            try:
                return np.stack([Searcher(self._lake, one).text_vector(one.release, text) for text in texts])
            except ValueError as error:
                raise ToolError(str(error)) from None

    def _current(self) -> Recommender | None:
        """With the live graph, looked up now and then: a graph is published a night."""
        with self._lock:
            due, now = self._clock() - self._looked >= GRAPH_EVERY_S, self._clock()
            if due:
                self._looked = now
        if due:
            try:
                live, open_now = store.live_graph_id(self._lake), self._recommender and self._recommender.graph_id
                if live != open_now:
                    self._recommender = _recommender(self._lake, self._live) or self._recommender
            except READING:
                pass  # what was open goes on serving
        return self._recommender


def _recommender(lake: Lake, live: Serving) -> Recommender | None:
    try:
        return Recommender(lake, live)
    except (GraphError, *READING):
        return None


class Asked:
    """The tools over one release, for one turn. Every method raises ToolError, with a sentence, where it cannot find."""

    def __init__(
        self, lake: Lake, one: OneRelease, recommender: Recommender | None, limits: Limits, image_limits: ImageLimits
    ) -> None:
        self.release: Release = one.release
        self._lake, self._searcher, self._recommender = lake, Searcher(lake, one), recommender
        self._limits, self._image_limits = limits, image_limits

    @property
    def release_id(self) -> str:
        return self.release.manifest.release_id

    @property
    def embedding_version(self) -> str:
        return self.release.manifest.embedding_version

    def interests(self, user_id: int | None) -> tuple[Interest, ...]:
        """The user's most important interests, labelled; none where nothing is known: everybody begins so."""
        found = self._user_interests(user_id)
        unnamed = self.release.describe([interest.medoid_pin for interest in found if not interest.label])
        return tuple(
            Interest(
                one_line(interest.label or unnamed.get(interest.medoid_pin, {}).get("title"), self._limits.title_chars)
                or "pins that they saved",
                float(interest.importance),
                interest.embedding,
            )
            for interest in found
        )

    def _user_interests(self, user_id: int | None) -> list[UserInterest]:
        if user_id is None:
            return []
        try:
            return read_interests(self._lake, self.embedding_version, user_id)[: self._limits.interests]
        except UnknownUserError:
            return []
        except READING as error:
            raise _unreadable(error) from error

    def text(
        self, words: str, k: int, among: Narrowed = EVERYWHERE, interests: Sequence[Interest] = ()
    ) -> tuple[Candidate, ...]:
        """Pins that look and read like the words, of which interests change the order (steering.py).

        A candidate's score is its cosine with the words; its `why` names the interest that has brought it up.
        """
        if not words.strip():
            raise ToolError("there are no words to search for: say what you look for")
        with _reading():
            words_D = self._searcher.text_vector(self.release, words)
            found = self._near(words_D, DEEPER * k, among)
        said = f"reads and looks like “{one_line(words, 60)}”"
        if not interests or not found:
            return self._candidates([(pin, score, said) for pin, score in found], k)
        ids = [pin for pin, _ in found]
        cosines_N = np.array([score for _, score in found], np.float32)
        order, nearest_N = steered(cosines_N, self.release.vectors_of(np.array(ids, np.int64)), interests)
        why = [said] * len(ids)
        for place, row in enumerate(order):
            if row > place:  # it was further down by the words alone
                why[row] = f"{said}, and is near your interest: {interests[nearest_N[row]].label}"
        return self._candidates([(ids[row], found[row][1], why[row]) for row in order], k)

    def picture(self, data: bytes, k: int, among: Narrowed = EVERYWHERE) -> tuple[Candidate, ...]:
        """Pins that look like a picture file, which is decoded within the limits and not kept."""
        if len(data) > min(self._limits.picture_bytes, self._image_limits.max_bytes):
            most = min(self._limits.picture_bytes, self._image_limits.max_bytes)
            raise BadPictureError(f"the picture has {len(data):,} bytes, at most {most:,} are taken: send a smaller one")
        with _reading():
            try:
                picture_D = self._searcher.image_vector(self.release, data, self._image_limits)
            except ImageRejected as error:
                raise BadPictureError(f"the picture cannot be read ({error}): send a JPEG, PNG, WebP or GIF") from None
            found = self._near(picture_D, DEEPER * k, among)
        return self._candidates([(pin, score, "looks like your picture") for pin, score in found], k)

    def like_pin(self, pin_id: int, k: int, among: Narrowed = EVERYWHERE) -> tuple[Candidate, ...]:
        """Pins that look and read like one of the release."""
        found = self._like(pin_id, DEEPER * k, among)
        return self._candidates([(pin, score, "looks and reads like this pin") for pin, score in found], k)

    def beside_pin(self, pin_id: int, k: int, among: Narrowed = EVERYWHERE) -> tuple[Candidate, ...]:
        """Pins that others keep beside one, by walks over boards; score: the share of the walks' steps that ended there."""
        self._require(pin_id)
        found = self._beside(pin_id, DEEPER * k, among)
        return self._candidates([(pin, score, "kept by others beside this pin") for pin, score in found], k)

    def pin(self, pin_id: int, k: int, among: Narrowed = EVERYWHERE) -> tuple[Candidate, ...]:
        """Both: pins like one and pins that others keep beside it, by reciprocal rank fusion, as in `Recommender`.

        score: cosine with the pin.
        """
        near, walked = self._like(pin_id, DEEPER * k, among), self._beside(pin_id, DEEPER * k, among)
        fused, why = dict[int, float](), dict[int, str]()
        for said, found in (("looks and reads like this pin", near), ("kept by others beside this pin", walked)):
            for rank, (pin, _) in enumerate(found):
                fused[pin] = fused.get(pin, 0.0) + 1 / (FUSION + rank)
                why[pin] = f"{why[pin]}, and {said}" if pin in why else said
        best = sorted(fused, key=lambda pin: (-fused[pin], pin))
        if not best:
            return ()
        cosines = self.release.vectors_of(np.array(best, np.int64)) @ self.release.vector_of(pin_id)
        return self._candidates([(pin, float(cosine), why[pin]) for pin, cosine in zip(best, cosines, strict=True)], k)

    def recommended(self, user_id: int | None, k: int, among: Narrowed = EVERYWHERE) -> tuple[Candidate, ...]:
        """Pins for a user, from all their interests. Score: fused ranks, as `Recommender` says."""
        if user_id is None:
            raise UnknownPersonError("nobody is signed in: interests are known of users alone")
        if self._recommender is None:
            raise ToolError("recommendations are not there at the moment: search by words meanwhile", retryable=True)
        with _reading():
            try:
                found = self._recommender.recommend(user_id, DEEPER * k if among else k)
            except UnknownUserError:
                raise UnknownPersonError(f"nothing is known of user {user_id} yet: save some pins first") from None
            held = self._confined([(one.pin_id, one.score) for one in found], among)
        why = {one.pin_id: one.why for one in found}
        return self._candidates([(pin, score, why[pin]) for pin, score in held], k)

    def shown(self, pin_ids: Sequence[int]) -> tuple[Candidate, ...]:
        """Pins that were shown before, with the numbers that they had; those that are gone leave gaps."""
        with _reading():
            told = self._candidates([(pin, 1.0, "shown before") for pin in pin_ids], len(pin_ids), distinct=False)
        number = {pin: place + 1 for place, pin in reversed(list(enumerate(pin_ids)))}
        return tuple(replace(pin, number=number[pin.pin_id]) for pin in told)

    def _require(self, pin_id: int) -> None:
        if not self.release.describe([pin_id]):
            raise UnknownPinError(f"there is no pin {pin_id} in what is shown now: it may have been deleted")

    def _like(self, pin_id: int, k: int, among: Narrowed) -> list[tuple[int, float]]:
        with _reading():
            self._require(pin_id)
            return [(pin, score) for pin, score in self._near(self.release.vector_of(pin_id), k + 1, among) if pin != pin_id]

    def _beside(self, pin_id: int, k: int, among: Narrowed) -> list[tuple[int, float]]:
        with _reading():
            if self._recommender is None or self._recommender.graph is None:
                return []
            pins, scores = self._recommender.related(pin_id, k)
            return self._confined(list(zip(pins.tolist(), map(float, scores), strict=True)), among)

    def _near(self, query_D: Floats, k: int, among: Narrowed) -> list[tuple[int, float]]:
        """(pin, cosine), nearest first."""
        selection: Selection | None = self.release.select(board=among.board, tag=among.tag) if among else None
        scores, ids = self.release.search(query_D[None, :], k, selection)
        return [(int(pin), float(score)) for pin, score in zip(ids[0], scores[0], strict=True) if pin >= 0]

    def _confined(self, found: Sequence[tuple[int, float]], among: Narrowed) -> list[tuple[int, float]]:
        """Those that the release holds and that are among what is wanted."""
        rows = self.release.describe([pin for pin, _ in found])
        return [(pin, score) for pin, score in found if pin in rows and among.holds(rows[pin])]

    def _candidates(self, found: Sequence[tuple[int, float, str]], k: int, *, distinct: bool = True) -> tuple[Candidate, ...]:
        """The first k, described; of near-duplicates the first one alone, where they are to be distinct."""
        with _reading():
            rows = self.release.describe([pin for pin, _, _ in found])
            held = [one for one in dict(zip((pin for pin, _, _ in found), found, strict=True)).values() if one[0] in rows]
            vectors_ND = self.release.vectors_of(np.array([pin for pin, _, _ in held], np.int64))
        chosen = list(_distinct(vectors_ND, k)) if distinct else list(range(min(k, len(held))))
        return tuple(
            self._described(number, rows[held[row][0]], held[row][1], vectors_ND[row], held[row][2])
            for number, row in enumerate(chosen, start=1)
        )

    def _described(self, number: int, row: dict[str, Any], score: float, vector_D: Floats, why: str) -> Candidate:
        title = one_line(row["title"], self._limits.title_chars)
        tags = tags_of(row["tags"], self._limits.tags, self._limits.tag_chars)
        return Candidate(number, row["pin_id"], title, tags, row["board_id"], row["image_uri"], score, vector_D, why)


def _distinct(vectors_ND: Floats, k: int) -> Iterable[int]:
    """The first k rows of which none is nearly the same as one before."""
    taken: list[int] = []
    for row in range(len(vectors_ND)):
        if len(taken) == k:
            break
        if not taken or float((vectors_ND[taken] @ vectors_ND[row]).max()) < DUPLICATE:
            taken.append(row)
    return taken


class _reading:  # noqa: N801 - a context, as contextlib's are named
    """Turns what reading the lake may raise into a ToolError that says so."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, READING):
            raise _unreadable(error) from error


def _unreadable(error: Exception) -> ToolError:
    return ToolError(f"the pins cannot be read at the moment ({type(error).__name__}): try again", retryable=True)
