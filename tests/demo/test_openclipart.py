from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from demo import openclipart
from demo.openclipart import ClipartUnavailableError, clipart_root, fetch, parse_metadata, read_clipart
from tests.demo.clipart_trees import add_clipart, add_link, rdf

# -- metadata ---------------------------------------------------------------------------------------------------------------


def test_metadata_is_read_and_the_creator_is_no_tag() -> None:
    svg = rdf("Red  apple", "A fruit.", ("fruit", "", "latin_america", "Ana Lima", "hash(0x8a0a39c)", "fruit"), "Ana Lima")
    meta = parse_metadata(svg.encode())
    assert (meta.title, meta.description, meta.creator) == ("Red apple", "A fruit.", "Ana Lima")
    assert meta.tags == ("fruit", "latin america")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", None),
        ("unsorted", None),
        ("books-aj.svg", None),
        ("HASH(0x89c79d4)", None),
        ("Clipart by Ana Lima - w_cloud12", "w cloud"),
        ("Cats &amp;amp; dogs", "Cats & dogs"),
        ("AIGA_Symbol_Signs", "AIGA Symbol Signs"),
    ],
)
def test_titles_are_cleaned(written: str, read: str | None) -> None:
    assert parse_metadata(rdf(title=written).encode()).title == read


@pytest.mark.parametrize(
    ("written", "read"),
    [("Jo [jo@example.org]", "Jo"), ("Jo (jo@example.org)", "Jo"), ("mailto:jo@example.org", "jo"), ("HASH(0x8a0ab9c)", None)],
)
def test_creators_carry_no_addresses(written: str, read: str | None) -> None:
    assert parse_metadata(rdf(creator=written).encode()).creator == read


@pytest.mark.parametrize(
    "svg",
    [
        b"",
        b"not XML at all",
        b"<svg><metadata",
        b"<svg><metadata/></svg>",
        b"<svg><metadata><rdf:RDF></wrong></metadata></svg>",
        b"\xff\xfe<\x00m\x00e\x00t\x00a\x00",
        b"<svg></metadata><metadata></svg>",
        b'<?xml version="1.0" encoding="no-such-codec"?><svg><metadata></metadata></svg>',
    ],
)
def test_broken_documents_have_no_metadata(svg: bytes) -> None:
    assert parse_metadata(svg) == openclipart.Metadata()


def test_what_stands_before_a_fault_is_kept() -> None:
    svg = rdf("Kept", "Also kept").replace("<dc:subject>", "<dc:subject></broken>")
    meta = parse_metadata(svg.encode())
    assert (meta.title, meta.description, meta.creator) == ("Kept", "Also kept", None)


def test_declared_encodings_are_honoured() -> None:
    svg = rdf("Köln").replace("UTF-8", "iso-8859-1")
    assert parse_metadata(svg.encode("iso-8859-1")).title == "Köln"


def test_entities_do_not_expand() -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))
    bomb = f'<!DOCTYPE svg [<!ENTITY e0 "boom">{levels}]>' + rdf("&e29;").split("?>", 1)[1]
    started_s = time.perf_counter()
    assert parse_metadata(bomb.encode()).title is None
    assert time.perf_counter() - started_s < 1


def test_only_the_head_of_a_drawing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.svg"
    with path.open("wb") as file:
        file.write(rdf("Large").encode())
        file.truncate(2**33)
    assert openclipart.read_metadata(path).title == "Large"


# -- the tree ---------------------------------------------------------------------------------------------------------------


def test_pictures_and_links_are_read_in_order(clipart_tree: Path) -> None:
    cliparts = read_clipart(clipart_tree)
    assert [c.name for c in cliparts] == sorted(c.name for c in cliparts)
    assert len(cliparts) == 72
    first, link = cliparts[0], next(c for c in cliparts if c.link_to)
    assert (first.folder, first.pixels, first.link_to) == ("animals/birds", 24 * 16, "signs_and_symbols/thing_03.png")
    assert link.uri.startswith("file:///") and "open%20clip%20art" in link.uri and "again" in link.uri
    assert next(c for c in cliparts if c.name == "tools/thing_02.png").text == "Thing 2. tools, number 2"


def test_themes_stars_and_links_to_nowhere_are_left_out(tmp_path: Path) -> None:
    add_clipart(tmp_path, "a/kept", "no metadata here")
    add_clipart(tmp_path, "computer/icons/flat-theme/action/go", rdf("Go"))
    add_clipart(tmp_path, "shapes/star", rdf("gramastar"))
    add_link(tmp_path, "b/star_again", "shapes/star")
    add_link(tmp_path, "b/theme", "computer/icons/flat-theme/action/go")
    add_link(tmp_path, "b/dangling", "a/nothing")
    (tmp_path / "png" / "b" / "outside.png").symlink_to("/etc/passwd")
    assert [(c.name, c.meta) for c in read_clipart(tmp_path)] == [("a/kept.png", openclipart.Metadata())]


def test_a_missing_tree_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(ClipartUnavailableError, match=r"python -m demo\.openclipart"):
        read_clipart(tmp_path)


# -- fetching, with stand-ins for apt-get and dpkg-deb ------------------------------------------------------------------------

FAKE_APT = """#!/bin/sh
echo "$*" >> "$FAKE_LOG"
case "$*" in
  *update*) exit 100 ;;
esac
[ "$FAKE_APT" = missing ] && echo "E: Unable to locate package openclipart-png" >&2 && exit 100
[ "$FAKE_APT" = offline ] && echo "E: Failed to fetch: Unable to connect" >&2 && exit 100
case "$FAKE_APT $*" in
  "stale "*Dir::State::Lists*) ;;
  stale*) echo "E: 404 Not Found" >&2; exit 100 ;;
esac
touch openclipart-png_1%3a0.18_all.deb openclipart-svg_1%3a0.18_all.deb
"""
FAKE_DPKG = """#!/bin/sh
echo "$*" >> "$FAKE_LOG"
[ -e "$FAKE_LOG.damaged" ] && rm "$FAKE_LOG.damaged" && echo "unexpected end of archive" >&2 && exit 2
mkdir -p "$3/usr/share/openclipart/png" "$3/usr/share/openclipart/svg"
"""


@pytest.fixture
def fake_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts stand-ins on the PATH, and returns the file where they note what they were told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {"apt-get": FAKE_APT, "dpkg-deb": FAKE_DPKG}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_APT", "works")
    return tmp_path / "log"


def test_fetch_unpacks_once_and_keeps_no_packages(fake_tools: Path, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    assert fetch(cache_dir) == clipart_root(cache_dir)
    assert sorted(path.name for path in cache_dir.iterdir()) == ["fetch.lock", "unpacked"]
    calls = fake_tools.read_text()
    assert fetch(cache_dir) == clipart_root(cache_dir)
    assert fake_tools.read_text() == calls


def test_stale_lists_are_replaced_by_private_ones(fake_tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_APT", "stale")
    assert fetch(tmp_path / "cache").is_dir()
    assert f"Dir::State::Lists={tmp_path}/cache/apt/lists" in fake_tools.read_text()


@pytest.mark.parametrize(("state", "advice"), [("missing", "universe"), ("offline", "run the same command again")])
def test_a_failed_download_says_what_to_do(
    state: str,
    advice: str,
    fake_tools: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_APT", state)
    assert openclipart.main(["--cache", str(tmp_path / "cache")]) == 1
    message = capsys.readouterr().err
    assert advice in message and "openclipart-png" in message and "Traceback" not in message
    assert not clipart_root(tmp_path / "cache").exists()


def test_a_damaged_package_is_fetched_again(fake_tools: Path, tmp_path: Path) -> None:
    Path(f"{fake_tools}.damaged").touch()
    with pytest.raises(ClipartUnavailableError, match="run again"):
        fetch(tmp_path / "cache")
    assert fetch(tmp_path / "cache").is_dir()


def test_half_an_unpacking_is_started_over(fake_tools: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / "unpacking" / "usr" / "share" / "openclipart" / "png" / "old.png"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    assert not list(fetch(tmp_path / "cache").rglob("old.png"))


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClipartUnavailableError, match="apt-get and dpkg-deb not found"):
        fetch(tmp_path / "cache")
