"""The check of citations: nothing leaves a turn that names a pin which was not retrieved.

A brain's words pass through here piece by piece. `[3]` of a candidate stays; whatever else reads like a citation, `[99]`,
`[ 3 , 41 ]`, `pin 12345`, a pin id as a bare number, becomes the candidates' numbers that are in it, or goes. What a piece ends
in, and may become a citation with the next one, is held back until that is known, so that the result is the same however the
text was cut, unless that is a list of numbers of hundreds of characters (docs/decisions/0017-one-turn.md).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from assistant.turns import Candidate

PIN_ID_DIGITS = 7
"""A number of so many digits or more is taken for a pin id."""
MAX_HELD = 500
"""Characters that are held back at most: so long a list of numbers is no citation."""
MARK = "…"
"""Takes the place of a removed citation where, without it, what stands on its two sides would read as one."""

_DIGIT = r"[\d⁰¹²³⁴⁵⁶⁷⁸⁹₀-₉①-⑨]"
_BLANK = r"\s\u200c\u200d"
_NO_LETTER_BEFORE, _NO_LETTER_AFTER = r"(?<![^\W\d_])", r"(?![^\W\d_])"


def _words(*words: str) -> str:
    return rf"{_NO_LETTER_BEFORE}(?:{'|'.join(words)}){_NO_LETTER_AFTER}"


def _begun(*words: str) -> str:
    """The beginnings of words at the end of a text."""
    starts = {word[:end] for word in words for end in range(1, len(word))}
    return rf"(?:{_NO_LETTER_BEFORE}(?:{'|'.join(sorted(starts))}))?"


_LABELS = ("id", "ids", "no", "nos", "nr", "number", "numbers")
_LIST = ("pin", "pins", "and", "or", "und", "oder", "y", "e", "et", *_LABELS)
# Within brackets: all that may stand between numbers. After the word `pin`: what leads to one number, on the same line.
_ITEM = rf"(?:[{_BLANK},;:&+/#.=–—-]|{_words(*_LIST)})"
_LEAD = rf"(?:[ \t\u00a0\u200c\u200d:#=]|{_words(*_LABELS)}\.?)"
_BRACKET = rf"[\[［【](?:{_ITEM}|{_DIGIT})*{_DIGIT}[{_BLANK}]*[\]］】]?"
_NAMED = rf"{_NO_LETTER_BEFORE}pins?{_NO_LETTER_AFTER}{_LEAD}*{_DIGIT}+"
_LONG = rf"\d{{{PIN_ID_DIGITS},}}"
_CITATION = re.compile(rf" ?(?:{_BRACKET}|{_NAMED}|(?P<bare>{_LONG}))", re.IGNORECASE)
_OPEN = re.compile(
    rf"(?:[\[［【](?:{_ITEM}|{_DIGIT})*{_begun(*_LIST)}"
    rf"|{_NO_LETTER_BEFORE}pins?{_NO_LETTER_AFTER}(?:{_LEAD}*{_DIGIT}+|{_LEAD}*{_begun(*_LABELS)})"
    rf"|{_NO_LETTER_BEFORE}(?:p|pi|pins?)|\d+)\Z",
    re.IGNORECASE,
)
"""The end of a text that may be the beginning of a citation."""
_NUMBER = re.compile(rf"{_DIGIT}+")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_KEPT = frozenset("\n\t\u200c\u200d")


class CitationFilter:
    """Of one answer. `feed` takes pieces and gives what may be shown; `end` gives the rest.

    cited: The candidates' pin ids in the order in which the answer names them, each once.
    removed: How many numbers were taken out.
    """

    def __init__(self, candidates: Sequence[Candidate]):
        self._numbers = {pin.number: pin.pin_id for pin in candidates}
        self._by_id = {pin.pin_id: pin.number for pin in candidates}
        self._shown, self._held, self._before = "", "", ""
        self.cited: list[int] = []
        self.removed = 0

    def feed(self, piece: str) -> str:
        """What may be shown now. Characters that nobody sees are left out: they would hide a number from this check."""
        self._held += "".join(char for char in piece if char in _KEPT or unicodedata.category(char) not in _UNSEEN)
        shown = self._pass(final=False)
        if len(self._held) > MAX_HELD:  # no answer means this: it is ended here, and what comes next stands apart from it
            shown += self._pass(final=True)
            if _OPEN.search(self._shown):
                self._shown, shown = self._shown + MARK, shown + MARK
        return shown

    def end(self) -> str:
        """The rest, once the answer has ended."""
        return self._pass(final=True)

    def _pass(self, *, final: bool) -> str:
        begin = len(self._before)  # the character before what is held says whether a word begins
        text, shown_before = self._before + self._held, len(self._shown)
        opened = None if final else _OPEN.search(text, begin)
        limit = len(text) if opened is None else opened.start()
        if not final:  # a blank goes with the citation that may follow it
            limit -= limit > begin and text[limit - 1] == " "
        at = begin
        while (match := _CITATION.search(text, at)) is not None and match.start() < limit:
            self._shown += text[at : match.start()]
            self._replace(match)
            at = match.end()
        end = max(at, limit)
        self._shown += text[at:end]
        self._before, self._held = text[:end][-1:], text[end:]
        return self._shown[shown_before:]

    def _replace(self, match: re.Match[str]) -> None:
        found = [self._number_of(digits, bare=match["bare"] is not None) for digits in _NUMBER.findall(match[0])]
        kept = list(dict.fromkeys(number for number in found if number is not None))
        self.removed += found.count(None)
        for number in kept:
            if self._numbers[number] not in self.cited:
                self.cited.append(self._numbers[number])
        if kept:
            self._shown += match[0][: match[0].startswith(" ")] + "".join(f"[{number}]" for number in kept)
        elif _OPEN.search(self._shown):
            self._shown += MARK

    def _number_of(self, digits: str, *, bare: bool) -> int | None:
        """The candidate that a number names, by its number in the turn or its pin id; None for none."""
        if len(digits) > 20:
            return None
        value = int("".join(str(unicodedata.digit(digit)) for digit in digits))
        if value in self._numbers and not bare:
            return value
        return self._by_id.get(value)


def check(text: str, candidates: Sequence[Candidate]) -> tuple[str, list[int], int]:
    """A whole text: what may be shown, the pins that it cites, and how many citations were removed."""
    passed = CitationFilter(candidates)
    shown = passed.feed(text) + passed.end()
    return shown, passed.cited, passed.removed
