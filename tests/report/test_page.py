"""The report over a small real lake: what it says, what it does without, and that nothing in it can run or be fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from embedding.contracts import NIGHTS, QUARANTINE, Reason
from embedding.index.recall import Floats
from embedding.index.release import LIVE, Manifest, release_uri
from embedding.report.facts import read_quarantine
from embedding.report.gallery import WORDS, EncoderUnavailableError, EncodeTexts, LoadTextEncoder
from embedding.report.page import write_report
from embedding.report.sections import REASONS
from embedding.tables.lake import Lake
from tests.report.conftest import DAYS, append, make_release, night, quarantined, unit_vectors

VOID = {"meta", "img", "line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """A page taken apart: its text, its tags and its attributes. Fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def no_encoder(lake: Lake, manifest: Manifest) -> EncodeTexts:
    raise EncoderUnavailableError("no weights on this machine")


def random_encoder(lake: Lake, manifest: Manifest) -> EncodeTexts:
    def encode(texts: Sequence[str]) -> Floats:
        return unit_vectors(len(texts), seed=1)

    return encode


def report(lake: Lake, folder: Path, load_encoder: LoadTextEncoder = random_encoder) -> tuple[str, Page]:
    target = folder / "report.html"
    write_report(lake, target, load_encoder=load_encoder, clock=lambda: datetime(2026, 11, 19, 7, 5, tzinfo=UTC))
    source = target.read_text(encoding="utf-8")
    return source, Page(source)


def test_says_what_the_tables_say(lake: Lake, tmp_path: Path) -> None:
    _, page = report(lake, tmp_path)
    assert "The night of 18 November 2026 was good" in page.text
    assert "1,234 pins landed (1,000 new, 234 changed) and 7 deleted" in page.text
    assert "1,111 contents encoded, 111 vectors reused, 12 quarantined, in 1 min 10 s." in page.text
    for fact in ("99.0 %", "27.5", "coverage 0.641 is below 0.900", "1.0000", "Flat, all rows", "40", *DAYS):
        assert fact in page.text
    for fact in ("2026-11-18-0123456789ab", "pinclip-base-0123456789ab", "Made by pinlake report on 2026-11-19 07:05 UTC"):
        assert fact in page.text
    assert "pin 5000" in page.text
    assert "no pin id" in page.text


def test_nothing_hostile_becomes_markup(lake: Lake, tmp_path: Path) -> None:
    source, page = report(lake, tmp_path)
    assert "<script>alert(1)</script>" in page.text, "the title is to be seen, as text"
    assert "<script" not in source
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "javascript:alert(document.cookie)" in page.text


def test_is_self_contained(lake: Lake, tmp_path: Path) -> None:
    source, page = report(lake, tmp_path)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "xlink:href"))
    pictures = [value for name, value in page.attributes if name == "src"]
    assert pictures
    assert all(value.startswith("data:image/webp;base64,") for value in pictures)
    assert not re.search(r"@import|url\(|https?://", source)
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


def test_galleries_show_pins_words_and_what_is_missing(lake: Lake, tmp_path: Path) -> None:
    _, page = report(lake, tmp_path)
    for words in WORDS:
        assert words in page.text
    assert "no picture" in page.text
    assert "missing image" in page.text
    assert "unsupported scheme" in page.text


def test_without_encoder_says_why(lake: Lake, tmp_path: Path) -> None:
    _, page = report(lake, tmp_path, no_encoder)
    assert "cannot be loaded here: no weights on this machine" in page.text
    assert "Pin number" in page.text, "neighbours of pins need no encoder"


def test_unknown_encoder_is_no_error(lake: Lake, tmp_path: Path) -> None:
    write_report(lake, tmp_path / "report.html")
    assert "Words were not tried" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_empty_lake_is_left_empty(empty_lake: Lake, tmp_path: Path) -> None:
    _, page = report(empty_lake, tmp_path)
    assert "No night has run yet" in page.text
    assert "No release has been built yet." in page.text
    assert not Path(empty_lake.home).exists(), "a report creates no table"


def test_empty_tables(empty_lake: Lake, tmp_path: Path) -> None:
    empty_lake.create_all()
    _, page = report(empty_lake, tmp_path)
    assert "No night has run yet" in page.text
    assert "There is no live release to show." in page.text


def test_first_night_without_release_or_quarantine(empty_lake: Lake, tmp_path: Path) -> None:
    unknown = {"coverage": None, "images_per_s": None, "land_s": 0.0, "embed_s": None, "encode_s": None}
    nothing = dict.fromkeys(("landed", "new", "changed", "deleted", "embedded", "encoded", "reused", "quarantined"), 0)
    append(empty_lake, NIGHTS, [night(DAYS[0], **unknown, **nothing)])
    _, page = report(empty_lake, tmp_path)
    assert "passed, but 1 thing needs a look" in page.text
    assert "no release is live" in page.text
    assert "0 quarantined, in" in page.text


def test_failed_night_keeps_the_earlier_release(empty_lake: Lake, tmp_path: Path) -> None:
    append(empty_lake, NIGHTS, [night(DAYS[0]), night(DAYS[1], status="failed", failures=["rows were lost or doubled"])])
    make_release(empty_lake, tmp_path, DAYS[:1])
    _, page = report(empty_lake, tmp_path)
    assert "The night of 17 November 2026 failed its gate" in page.text
    assert "rows were lost or doubled" in page.text
    assert "(16 November 2026) still serves" in page.text


def test_night_that_is_not_released_yet(lake: Lake, tmp_path: Path) -> None:
    append(lake, NIGHTS, [night("2026-11-19", pin_embeddings_version=2)])
    _, page = report(lake, tmp_path)
    assert "passed, but 1 thing needs a look" in page.text
    assert "no release holds this night yet" in page.text


def test_day_that_ran_again(lake: Lake, tmp_path: Path) -> None:
    again = night(DAYS[1], run_id="by-hand", checked_at=datetime(2026, 11, 19, 5, tzinfo=UTC), encoded=0)
    append(lake, NIGHTS, [again])
    _, page = report(lake, tmp_path)
    assert page.text.count("ran again") == 1


def test_damaged_release_is_said_first(lake: Lake, tmp_path: Path) -> None:
    index = Path(release_uri(lake, "2026-11-18-0123456789ab")) / "index-00000.faiss"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    _, page = report(lake, tmp_path)
    assert "needs a look" in page.text
    assert "index-00000.faiss is damaged" in page.text


def test_damaged_pointer_is_said_first(lake: Lake, tmp_path: Path) -> None:
    (Path(lake.releases_uri) / LIVE).write_text("not json", encoding="utf-8")
    _, page = report(lake, tmp_path)
    assert "is not a pointer to a release" in page.text


def test_quarantine_is_counted_by_reason_and_day(lake: Lake) -> None:
    groups = read_quarantine(lake)
    counts = [(group.key.ds, group.key.reason, group.rows, len(group.examples)) for group in groups]
    assert counts == [
        (DAYS[2], "missing_image", 9, 2),
        (DAYS[2], "null_id", 1, 1),
        (DAYS[2], "unsupported_scheme", 1, 1),
        (DAYS[1], "truncated_image", 1, 1),
    ]
    assert [example.pin_id for example in groups[0].examples] == [5_000, 5_008]
    assert [group.key.ds for group in read_quarantine(lake, also=DAYS[1], days=1)] == [DAYS[2]] * 3 + [DAYS[1]]


def test_quarantine_of_an_unknown_reason(lake: Lake, tmp_path: Path) -> None:
    append(lake, QUARANTINE, [quarantined(DAYS[2], "a_reason_of_the_future")])
    assert "a_reason_of_the_future" in report(lake, tmp_path)[1].text


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason: Reason) -> None:
    assert REASONS[reason]
