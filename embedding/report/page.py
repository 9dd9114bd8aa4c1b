"""Writes the report: gathers the facts, lays out the page, puts it in place. `pinlake report` calls `write_report`.

The page is one file that asks nothing of a network and runs nothing: style, charts and thumbnails are inline, and its own
content security policy forbids scripts, so that a hostile title stays a title even if the escaping were to fail.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from embedding.index.reader import Release
from embedding.index.release import Manifest, ReleaseError
from embedding.report import sections
from embedding.report.facts import Facts, gather_facts
from embedding.report.gallery import Galleries, LoadTextEncoder, load_text_encoder, make_galleries
from embedding.report.headline import judge, render_headline
from embedding.report.markup import Html, day, element, fragment
from embedding.report.taste_section import Tastes, make_tastes, taste_section
from embedding.tables import storage
from embedding.tables.lake import Lake

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NAVIGATION = {
    "nights": "Nights",
    "quarantine": "Quarantine",
    "recall": "Recall",
    "gallery": "Galleries",
    "taste": "Taste",
    "releases": "Releases",
    "tables": "Tables",
}


def _utc_now() -> datetime:
    return datetime.now(UTC)


def write_report(
    lake: Lake,
    target: Path,
    *,
    load_encoder: LoadTextEncoder = load_text_encoder,
    clock: Callable[[], datetime] = _utc_now,
) -> None:
    """Writes the report on `lake` to the file `target`, atomically. Changes nothing in the lake.

    What is not there yet, or cannot be read, is said on the page and never raised.

    Args:
        load_encoder: Gives the text tower of a release's encoder; a parameter for tests.
        clock: The time that the page says it was made; a parameter for tests.

    Raises:
        ValueError: PINLAKE_IMAGE_SCHEMES or PINLAKE_IMAGE_ROOTS cannot be used.
    """
    facts = gather_facts(lake)
    live = facts.releases.live
    galleries, tastes = _ask(lake, live.manifest, load_encoder) if live else (None, None)
    page = render_page(facts, galleries, tastes, f"{clock():%Y-%m-%d %H:%M} UTC")
    storage.write_atomic(str(target), page.encode("utf-8"))


def _ask(lake: Lake, manifest: Manifest, load_encoder: LoadTextEncoder) -> tuple[Galleries, Tastes | None]:
    """What the live release finds, and what it knows of users; it is opened once."""
    try:
        release = Release(lake, manifest)
    except ReleaseError as error:
        return Galleries(release_fault=str(error)), None
    return make_galleries(lake, release, load_encoder), make_tastes(lake, release)


def render_page(facts: Facts, galleries: Galleries | None, tastes: Tastes | None, made_at: str) -> str:
    """The whole HTML document. `galleries` and `tastes` are None where nothing is live, or it cannot be opened."""
    night = facts.night
    verdict = judge(facts, galleries.release_fault if galleries else None)
    body = element(
        "body",
        _top(),
        element(
            "main",
            render_headline(facts, verdict),
            sections.nights_section(facts.nights),
            sections.quarantine_section(facts.quarantine, night.embedding_version if night else None),
            sections.recall_section(facts.releases.live),
            sections.galleries_section(galleries),
            taste_section(facts.taste, tastes),
            sections.releases_section(facts.releases),
            sections.tables_section(facts.tables),
        ),
        sections.footer(facts, made_at),
    )
    title = f"pinlake: {day(night.ds)}, {night.status}" if night else "pinlake: no night yet"
    return "<!doctype html>\n" + element("html", _head(title), body, lang="en") + "\n"


def _head(title: str) -> Html:
    style = Html(resources.files("embedding.report").joinpath("page.css").read_text(encoding="utf-8"))
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )


def _top() -> Html:
    links = [element("a", words, href=f"#{anchor}") for anchor, words in _NAVIGATION.items()]
    brand = element("strong", "pinlake")
    return element("header", element("div", brand, element("nav", fragment(links), aria_label="Sections")), class_="top")
