"""From pins to examples: what each question is, which answers it offers and which one is right.

Works on the pins of one bucket, all of one split, so that wrong answers and companions come from the same side of the split.
Pseudo-random by the bucket's pins and the seed: equal pins give equal examples.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from assistant.training.conversations import (
    ANSWER,
    CONVERSATIONS,
    DESCRIPTION,
    FITS,
    SAME_BOARD,
    TAG,
    TAGS,
    TITLE,
    TOOL,
)
from assistant.training.requests import BY_TOOL, sentences

RECIPE_VERSION = 3
"""Part of the examples' id: raise it with any change of what is asked or answered."""
CHOICES = 4
MOST_WORDS, MOST_TAGS, MOST_SHOWN = 8, 4, 6
YES, NO = "yes", "no"
NOTHING_FITS = "None of these fits."
STAGE = {TITLE: 1, DESCRIPTION: 1, TAGS: 1}

TOLD = pa.schema(
    [
        *[(name, pa.int64()) for name in ("pin_id", "user_id", "board_id", "duplicate_group")],
        *[(name, pa.string()) for name in ("split", "title", "description")],
        ("tags", pa.list_(pa.string())),
        ("embedding", pa.binary()),
        ("picture_embedding", pa.binary()),  # of the picture alone; null for a pin without one
    ]
)
"""What is known of a pin where examples are made."""


@dataclass(frozen=True)
class Told:
    """A pin as examples see it, its words made short."""

    pin_id: int
    board_id: int | None
    group: int
    title: str
    description: str
    tags: tuple[str, ...]
    vectors: dict[bool, bytes] = field(repr=False)  # by `alone`

    def says(self, word: str) -> bool:
        said = f"{self.title} {self.description} {' '.join(self.tags)}".casefold()
        return word.casefold() in said


def shorten(text: str | None, words: int = MOST_WORDS) -> str:
    """The first words on one line, without brackets, which are the answers' own; "" for what has no letter."""
    found = " ".join((text or "").replace("[", "(").replace("]", ")").split()[:words]).strip(" .,;:")
    return found if any(letter.isalpha() for letter in found) else ""


def short_tags(tags: Sequence[str | None] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag for tag in (shorten(tag, 3) for tag in tags or ()) if tag))


def told(row: dict[str, Any]) -> Told:
    vectors = {False: row["embedding"]} | ({True: row["picture_embedding"]} if row["picture_embedding"] else {})
    return Told(
        row["pin_id"],
        row["board_id"],
        row["duplicate_group"],
        shorten(row["title"]),
        shorten((row["description"] or "").split(". ")[0], 2 * MOST_WORDS),
        short_tags(row["tags"]),
        vectors,
    )


class Bucket:
    """The pins of one bucket, and what is looked up among them."""

    def __init__(self, rows: Sequence[dict[str, Any]], seed: int):
        rows = sorted(rows, key=lambda row: row["pin_id"])
        self.split = str(rows[0]["split"])
        self.pins = [told(row) for row in rows]
        self.rng = random.Random(f"{seed}/{self.split}/{rows[0]['pin_id']}")  # noqa: S311 - no secret
        self.by_board: dict[int, list[Told]] = defaultdict(list)
        self.by_tag: dict[str, list[Told]] = defaultdict(list)
        for pin in self.pins:
            if pin.board_id is not None:
                self.by_board[pin.board_id].append(pin)
            for tag in pin.tags:
                self.by_tag[tag].append(pin)

    def rows(self) -> Iterator[dict[str, Any]]:
        for pin in self.pins:
            for alone in sorted(pin.vectors):
                yield from self.of_pin(pin, alone)
        yield from self.of_tools()

    def of_pin(self, pin: Told, alone: bool) -> Iterator[dict[str, Any]]:
        if pin.title:
            others = [self.other(pin).title for _ in range(8 * CHOICES)]
            yield from self.choice(TITLE, pin, alone, pin.title, others)
        if pin.description and pin.description.casefold() != pin.title.casefold():
            yield self.row(DESCRIPTION, pin, alone, [(pin, "")], "", [pin.description], 0)
        if pin.tags:
            yield self.row(TAGS, pin, alone, [(pin, "")], "", [", ".join(pin.tags[:MOST_TAGS])], 0)
            drawn = (self.rng.choice(other.tags) for other in (self.other(pin) for _ in range(8 * CHOICES)) if other.tags)
            yield from self.choice(TAG, pin, alone, self.rng.choice(pin.tags), [tag for tag in drawn if not pin.says(tag)])
        yield from self.of_boards(pin, alone)
        yield from self.of_requests(pin, alone)

    def choice(self, kind: str, pin: Told, alone: bool, right: str, wrong: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The question with one right and CHOICES - 1 wrong answers; none where there are too few different ones."""
        known = {right.casefold()}
        chosen: list[str] = []
        for text in wrong:
            if text and text.casefold() not in known and len(chosen) < CHOICES - 1:
                known.add(text.casefold())
                chosen.append(text)
        if len(chosen) == CHOICES - 1:
            place = self.rng.randrange(CHOICES)
            yield self.row(kind, pin, alone, [(pin, "")], "", [*chosen[:place], right, *chosen[place:]], place)

    def of_boards(self, pin: Told, alone: bool) -> Iterator[dict[str, Any]]:
        """A pin with one of its board, and with one of another."""
        mates = [one for one in self.by_board.get(pin.board_id or 0, []) if self.differs(one, pin) and alone in one.vectors]
        strangers = [
            one for one in (self.other(pin) for _ in range(8)) if one.board_id != pin.board_id and alone in one.vectors
        ]
        if pin.board_id is not None and mates and strangers:
            for right, second in ((0, self.rng.choice(mates)), (1, strangers[0])):
                pair = [(pin, ""), (second, "")]
                self.rng.shuffle(pair)
                yield self.row(SAME_BOARD, pin, alone, pair, "", [YES, NO], right)

    def of_requests(self, pin: Told, alone: bool) -> Iterator[dict[str, Any]]:
        """What one might ask who wants this pin: whether it fits, whether another does, and an answer over several."""
        subjects = [*pin.tags[:MOST_TAGS], *([pin.title] if len(pin.title.split()) <= 4 and pin.title else [])]
        if not subjects:
            return
        subject = self.rng.choice(subjects)
        request = self.asked(subject)
        unfit = [one for one in (self.other(pin) for _ in range(40)) if not one.says(subject) and alone in one.vectors]
        if not unfit:
            return
        yield self.row(FITS, pin, alone, [(pin, "")], request, [YES, NO], 0)
        yield self.row(FITS, pin, alone, [(unfit[0], "")], request, [YES, NO], 1)
        fit = [one for one in self.by_tag.get(subject, []) if self.differs(one, pin) and alone in one.vectors]
        fit = [pin, *self.rng.sample(fit, min(len(fit), self.rng.randint(0, 2)))]
        if self.rng.random() < 0.1:
            fit = []
        different = list({one.pin_id: one for one in unfit}.values())
        shown = [*fit, *different[: max(1, self.rng.randint(2, MOST_SHOWN) - len(fit))]]
        self.rng.shuffle(shown)
        said = [f"[{number}] {named(one)}" for number, one in enumerate(shown, 1) if any(one is good for good in fit)]
        with_titles = self.rng.random() < 0.5
        pins = [(one, one.title if with_titles else "") for one in shown]
        yield self.row(ANSWER, pin, alone, pins, request, [", ".join(said) + "." if said else NOTHING_FITS], 0)

    def of_tools(self) -> Iterator[dict[str, Any]]:
        """A request and the tool that it needs: sentences that are held out for the held-out splits."""
        tools = list(BY_TOOL)
        subjects = [pin for pin in self.pins if pin.tags]
        for pin in self.rng.sample(subjects, len(subjects) // 4):
            tool = self.rng.choice(tools)
            sentence = self.rng.choice(sentences(tool, held_out=self.split != "train"))
            request = sentence.format(self.rng.choice(pin.tags))
            yield self.row(TOOL, pin, False, [], request, list(tools), tools.index(tool))

    def asked(self, subject: str) -> str:
        known = sentences("search_text", held_out=self.split != "train")
        return subject if self.rng.random() < 0.4 else self.rng.choice(known).format(subject)

    def other(self, pin: Told) -> Told:
        """A pin at random that is no near-duplicate, if there is one."""
        for _ in range(20):
            found = self.rng.choice(self.pins)
            if self.differs(found, pin):
                return found
        return pin

    @staticmethod
    def differs(one: Told, pin: Told) -> bool:
        return one.group != pin.group

    def row(
        self, kind: str, pin: Told, alone: bool, pins: Sequence[tuple[Told, str]], words: str, choices: list[str], right: int
    ) -> dict[str, Any]:
        return {
            "split": self.split,
            "stage": STAGE.get(kind, 2),
            "kind": kind,
            "about": pin.pin_id,
            "alone": alone,
            "pins": [{"pin_id": one.pin_id, "vector": one.vectors[alone], "title": title} for one, title in pins],
            "words": words,
            "choices": choices,
            "right": right,
            "place": self.rng.getrandbits(62),
        }


def named(pin: Told) -> str:
    """What an answer calls a pin."""
    return pin.title or ", ".join(pin.tags[:2]) or "a picture"


def make_examples(pins: pa.Table, seed: int, most: int) -> pa.Table:
    """From TOLD, a bucket's pins, to CONVERSATIONS. Of an over-full bucket the first `most` by pin."""
    rows = pins.sort_by("pin_id").slice(0, most).to_pylist()
    return pa.Table.from_pylist(list(Bucket(rows, seed).rows()) if rows else [], schema=CONVERSATIONS)
