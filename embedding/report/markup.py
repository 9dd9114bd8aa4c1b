"""HTML that is escaped unless it says that it is HTML, and numbers as people read them.

Titles, addresses and error texts come out of exports and are hostile until proven otherwise. Every string that is not
`Html` is escaped by `element`, so that forgetting to escape shows as ugly text and never as a running script. Nothing here
knows of pins.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from datetime import date
from typing import TypeAlias

NONE = "–"
_ELLIPSIS = "…"
_VOID = frozenset({"meta", "img", "line", "rect", "circle", "path", "polyline"})


class Html(str):
    """Text that is HTML already. Made by this module's functions and from literals in the source, never from data."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
Attribute: TypeAlias = str | int | float | bool | None


def fragment(*children: Child) -> Html:
    """Children one after the other: `Html` as it is, other text escaped, None left out, lists flattened."""
    return Html("".join(_render(child) for child in children))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int | float):
        return html.escape(printable(str(child)))
    return "".join(_render(each) for each in child)


def element(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """One element. Attribute `class_` reads class, `data_x` data-x; None and False leave an attribute out, True has no value.

    >>> element("td", "<b>", class_="num")
    '<td class="num">&lt;b&gt;</td>'
    """
    pairs = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID and not children:
        return Html(f"<{name}{pairs}/>")
    return Html(f"<{name}{pairs}>{fragment(*children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(printable(str(value)))}"'


def printable(text: str) -> str:
    """Text without control characters and lone surrogates, which no UTF-8 file can hold; line ends become spaces.

    Characters that turn the direction of writing go too: they could make a line read as what it is not.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, cut at the end."""
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def shorten_middle(text: str, limit: int) -> str:
    """At most `limit` characters, cut in the middle: an address says most at its start and its end.

    >>> shorten_middle("s3://pictures/2026/11/18/bicycle.png", 20)
    's3://p…8/bicycle.png'
    """
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return text[:head] + _ELLIPSIS + text[len(text) - (limit - 1 - head) :]


def count(number: int | None) -> str:
    return NONE if number is None else f"{number:,}"


def share(number: float | None) -> str:
    """A share as a percentage. Never rounded up to 100 %: one lost pin in a million shows."""
    if number is None:
        return NONE
    text = f"{100 * number:.1f}"
    return f"{99.9 if text == '100.0' and number < 1 else text} %"


def decimal(number: float | None, digits: int) -> str:
    return NONE if number is None else f"{number:,.{digits}f}"


def seconds(number: float | None) -> str:
    """A duration: `4.2 s`, `3 min`, `2 h 5 min`."""
    if number is None:
        return NONE
    if number < 59.5:
        return f"{number:.1f} s" if number < 9.95 else f"{number:.0f} s"
    minutes, rest = divmod(round(number), 60)
    large, small = (f"{minutes} min", rest) if minutes < 60 else (f"{minutes // 60} h", minutes % 60)
    return f"{large} {small} {'s' if minutes < 60 else 'min'}" if small else large


def size(number: int) -> str:
    """Bytes in the decimal unit that leaves a short number."""
    amount = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 99.5 else f"{amount:.1f} {unit}"
        amount /= 1_000
    return f"{amount:,.1f} TB"


def day(ds: str) -> str:
    """A data day as people write it, `18 November 2026`; text that is no day stays as it is."""
    try:
        parsed = date.fromisoformat(ds)
    except ValueError:
        return ds
    return f"{parsed.day} {parsed:%B %Y}"


def plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
