"""What somebody has written, made fit to be read as data: on one line, without control characters, and of a bounded length."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of control, format, surrogate, private and unassigned characters, and of breaks of lines."""


def one_line(text: str | None, most: int) -> str:
    """`text` in one line of at most `most` characters, without what nobody sees: control characters, marks of direction.

    A cut is marked by an ellipsis. No more than a few times `most` characters are looked at, however long the text.

    >>> one_line("Red \\x1b[31m bicycle\\n now", 12)
    'Red [31m bi…'
    """
    looked_at = (text or "")[: 8 * most]
    seen = "".join(" " if char.isspace() or unicodedata.category(char) in _UNSEEN else char for char in looked_at)
    folded = " ".join(seen.split())
    return folded if len(folded) <= most else folded[: most - 1].rstrip() + "…"


def tags_of(tags: Sequence[str | None] | None, most: int, most_chars: int) -> tuple[str, ...]:
    """The first `most` tags that say something, each as `one_line`."""
    cut = (one_line(tag, most_chars) for tag in (tags or ())[: 4 * most])
    return tuple(tag for tag in cut if tag)[:most]
