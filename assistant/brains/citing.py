"""An answer that can name candidates and nothing else: which tokens may follow, so that brackets hold a candidate's number.

What is not allowed is never generated, so no model has to be trusted with it. Made once for a vocabulary; the rule of one
answer is a function of that answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from assistant.brains.prompts import Prompter

LONGEST = 6
"""Tokens that a number and its bracket may take: none is opened that could be cut off."""


class CitingVocabulary:
    """A vocabulary's tokens by what they do to brackets."""

    def __init__(self, prompter: Prompter, size: int):
        self._prompter = prompter
        texts = [prompter.text([number]) for number in range(size)]
        end = prompter.vocabulary.end_of_turn
        self._plain = frozenset(number for number, text in enumerate(texts) if "[" not in text and (text or number == end))
        opening = (number for number, text in enumerate(texts) if text.count("[") == 1 and text.endswith("["))
        self._outside = self._plain.union(opening)
        self._texts = texts
        self._inside = {number: text for number, text in enumerate(texts) if text and set(text) <= set("0123456789]")}

    def rule(
        self, numbers: Iterable[int], most_tokens: int, begins: Sequence[str] = ()
    ) -> Callable[[Sequence[int]], Collection[int]]:
        """The rule of one answer, of so many tokens at most, that may name each of these candidates once.

        A bracket opens only while there is something left to name, and closes behind a whole number. begins: The texts of
        the tokens that an answer may begin with; (): any.
        """
        known = frozenset(map(str, numbers))
        first = frozenset(token for token, text in enumerate(self._texts) if text in begins)

        def allowed(ids: Sequence[int]) -> Collection[int]:
            if first and not ids:
                return first
            before, opened, begun = self._prompter.text(ids).rpartition("[")
            left = known - _named(before)
            if opened and "]" not in begun:
                whole = [f"{number}]" for number in left]
                return [token for token, text in self._inside.items() if any(one.startswith(begun + text) for one in whole)]
            left = left - {begun.partition("]")[0]} if opened else left
            return self._outside if left and len(ids) + LONGEST <= most_tokens else self._plain

        return allowed


def _named(text: str) -> frozenset[str]:
    return frozenset(part.partition("]")[0] for part in text.split("[")[1:] if "]" in part)
