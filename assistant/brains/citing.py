"""An answer that can name candidates and nothing else: which tokens may follow, so that brackets hold a candidate's number.

What is not allowed is never generated, so no model has to be trusted with it. Made once for a vocabulary; the rule of one
answer is a function of that answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from assistant.brains.prompts import Prompter


class CitingVocabulary:
    """A vocabulary's tokens by what they do to brackets."""

    def __init__(self, prompter: Prompter, size: int):
        self._prompter = prompter
        texts = [prompter.text([number]) for number in range(size)]
        end = prompter.vocabulary.end_of_turn
        self._plain = [number for number, text in enumerate(texts) if "[" not in text and (text or number == end)]
        self._opening = [number for number, text in enumerate(texts) if text.count("[") == 1 and text.endswith("[")]
        self._outside = sorted(self._plain + self._opening)
        self._inside = {number: text for number, text in enumerate(texts) if text and set(text) <= set("0123456789]")}

    def rule(self, numbers: Iterable[int], *, again: bool = False) -> Callable[[Sequence[int]], Collection[int]]:
        """The rule of one answer that may name these candidates; each once, unless `again`.

        A bracket opens only while there is something left to name, and closes behind a whole number.
        """
        known = frozenset(map(str, numbers))

        def allowed(ids: Sequence[int]) -> Collection[int]:
            before, opened, begun = self._prompter.text(ids).rpartition("[")
            inside = bool(opened) and "]" not in begun
            left = known if again else known - _named(before)
            if inside:
                whole = [f"{number}]" for number in left]
                return [token for token, text in self._inside.items() if any(one.startswith(begun + text) for one in whole)]
            if opened and not again:
                left = left - {begun.partition("]")[0]}
            return self._outside if left else self._plain

        return allowed


def _named(text: str) -> frozenset[str]:
    return frozenset(part.partition("]")[0] for part in text.split("[")[1:] if "]" in part)
