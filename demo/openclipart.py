"""Fetches Debian's openclipart packages and reads them as pictures with titles, tags and creators.

The packages (about 156 MB, nearly all in the public domain) hold some 4,200 distinct pictures, the RDF metadata of each, and
a thousand symbolic links that file one picture under a second name: real repins. They are fetched with the system's own
apt-get, need no root, and stay in a cache folder.

    python -m demo.openclipart --cache .cache/openclipart

How pictures become pins and days is not decided here, but in demo/days.py.
"""

from __future__ import annotations

import argparse
import html
import logging
import os
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from demo.debian import PackagesUnavailableError, fetch_packages, unpacked
from embedding.contracts import pin_text

log = logging.getLogger(__name__)

PACKAGES = ("openclipart-png", "openclipart-svg")

ORDINARY_PIXELS = 25_000_000
"""Below what the encoder refuses unless told otherwise. Sixteen clip arts are larger: 40 to 623 megapixels."""

_LEFT_OUT = ("computer/icons/etiquette-theme", "computer/icons/flat-theme", "computer/icons/lemon-theme")
"""Icon themes: hundreds of near-equal icons that share one title."""

_GENERATED_TITLE = "gramastar"
"""1,375 stars that a program drew; they would be a quarter of all pictures."""

_METADATA_LIMIT_BYTES = 4 * 1024 * 1024
_READ_BYTES = 64 * 1024

ClipartUnavailableError = PackagesUnavailableError
"""The clip art could not be fetched or found; the message says what to do."""


@dataclass(frozen=True)
class Metadata:
    """What an SVG's RDF says of the picture; None or empty where it says nothing of use."""

    title: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    creator: str | None = None


@dataclass(frozen=True)
class Clipart:
    """One PNG of the packages.

    `name` is its path below `png/` and names it for good; `path` is where it lies here. `link_to` is the name of the
    picture that a symbolic link shows. `pixels` is width times height by the file's header, 0 if that is no PNG header.
    """

    name: str
    path: Path
    meta: Metadata
    pixels: int
    link_to: str | None = None

    @property
    def folder(self) -> str:
        """The folder below `png/`, such as `food/fruit`."""
        return self.name.rpartition("/")[0]

    @property
    def uri(self) -> str:
        """Absolute, percent-encoded `file://` URI; a link's own, not that of the file it leads to."""
        return self.path.absolute().as_uri()

    @property
    def text(self) -> str:
        """The text that the encoder reads; empty where there is none."""
        return pin_text(self.meta.title, self.meta.description, self.meta.tags)


# -- fetching ---------------------------------------------------------------------------------------------------------------


def clipart_root(cache_dir: Path) -> Path:
    """The folder with `png/` and `svg/` in a cache that `fetch` has filled; it exists only when both are complete."""
    return unpacked(cache_dir) / "usr" / "share" / "openclipart"


def fetch(cache_dir: Path) -> Path:
    """Downloads (156 MB) and unpacks the packages, unless they are there, and returns `clipart_root(cache_dir)`.

    As `demo.debian.fetch_packages` does. Raises ClipartUnavailableError.
    """
    fetch_packages(PACKAGES, cache_dir)
    return clipart_root(cache_dir)


# -- reading ----------------------------------------------------------------------------------------------------------------


def read_clipart(root: Path) -> list[Clipart]:
    """All PNGs below `root/png` with the metadata of their SVGs below `root/svg`, sorted by name.

    Leaves out three icon themes, computer-drawn stars, and links to any of these. A picture without readable metadata is
    kept, with an empty `Metadata`. Raises ClipartUnavailableError if there is no `root/png`.
    """
    png_dir = root / "png"
    if not png_dir.is_dir():
        raise ClipartUnavailableError(f"no clip art at {root}: run python -m demo.openclipart --cache DIR first")
    real_png_dir = png_dir.resolve()
    files: dict[str, Clipart] = {}
    links: list[Clipart] = []
    for path in _png_paths(png_dir):
        clipart = _read_one(path, root, real_png_dir)
        if clipart is not None and clipart.link_to is None:
            files[clipart.name] = clipart
        elif clipart is not None:
            links.append(clipart)
    links = [link for link in links if link.link_to in files]
    return sorted([*files.values(), *links], key=lambda clipart: clipart.name)


def _png_paths(png_dir: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(png_dir):
        below = Path(folder).relative_to(png_dir)
        subfolders[:] = sorted(sub for sub in subfolders if (below / sub).as_posix() not in _LEFT_OUT)
        yield from (Path(folder, name) for name in sorted(names) if name.lower().endswith(".png"))


def _read_one(path: Path, root: Path, real_png_dir: Path) -> Clipart | None:
    """The clip art at `path`; None for one that is left out, or a link that leads nowhere or outside."""
    below = path.relative_to(root / "png")
    link_to = None
    if path.is_symlink():
        target = path.resolve()
        if not target.is_file() or not target.is_relative_to(real_png_dir):
            return None
        link_to = target.relative_to(real_png_dir).as_posix()
    meta = read_metadata(root / "svg" / below.with_suffix(".svg"))
    if (meta.title or "").lower() == _GENERATED_TITLE:
        return None
    return Clipart(below.as_posix(), path, meta, _pixels(path), link_to)


def _pixels(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        return 0
    width, height = struct.unpack(">II", header[16:])
    return int(width) * int(height)


def read_metadata(svg_path: Path) -> Metadata:
    """The metadata of one SVG; empty where the file, its RDF or a field is missing or beyond reading. Never raises."""
    try:
        with svg_path.open("rb") as file:
            head = b""
            while b"</metadata" not in head and len(head) < _METADATA_LIMIT_BYTES and (chunk := file.read(_READ_BYTES)):
                head += chunk
    except OSError:
        return Metadata()
    return parse_metadata(head)


def parse_metadata(svg: bytes) -> Metadata:
    """The metadata in the bytes of an SVG, as far as it can be read; see `read_metadata`."""
    fields = _rdf_fields(svg)
    creator = _clean_creator(_first(fields, "creator/Agent/title"))
    tags = (_clean_tag(tag) for tag in fields.get("subject/Bag/li", ()))
    own_name = {name.lower() for name in (creator, _first(fields, "creator/Agent/title")) if name}
    return Metadata(
        title=_clean_title(_first(fields, "title")),
        description=_clean_description(_first(fields, "description")),
        tags=tuple(dict.fromkeys(tag for tag in tags if tag and tag not in own_name)),
        creator=creator,
    )


def _rdf_fields(svg: bytes) -> dict[str, list[str]]:
    """Texts of the elements below metadata/RDF/Work, by path without namespace prefixes.

    Only the metadata element is parsed, cut out of the document: without its DTD no entity can expand, and what is wrong
    elsewhere in the drawing does no harm. What was read before a fault of the XML is kept.
    """
    start, end = svg.find(b"<metadata"), svg.find(b"</metadata")
    if start < 0:
        return {}
    cut = svg[start:end] + b"</metadata>" if end > start else svg[start:]
    fields: dict[str, list[str]] = {}
    stack: list[str] = []

    def start_element(name: str, _attributes: dict[str, str]) -> None:
        stack.append(name.rpartition(":")[2])
        fields.setdefault("/".join(stack), []).append("")

    def characters(text: str) -> None:
        fields["/".join(stack)][-1] += text

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start_element
    parser.EndElementHandler = lambda _name: stack.pop()
    parser.CharacterDataHandler = characters
    with suppress(expat.ExpatError):
        parser.Parse(_decode(cut, svg[:200]), True)
    prefix = "metadata/RDF/Work/"
    return {path.removeprefix(prefix): texts for path, texts in fields.items() if path.startswith(prefix)}


def _decode(xml: bytes, declaration: bytes) -> str:
    declared = re.search(rb"encoding=[\"']([A-Za-z0-9._-]+)", declaration)
    try:
        return xml.decode(declared.group(1).decode() if declared else "utf-8", errors="replace")
    except LookupError:
        return xml.decode("utf-8", errors="replace")


def _first(fields: dict[str, list[str]], path: str) -> str:
    """The first text at `path`, white space folded; some files escaped their text twice, so one more layer is undone."""
    text = next(iter(fields.get(path, ())), "")
    return " ".join(html.unescape(text).split())


def _clean_title(title: str) -> str | None:
    """Drops file names and names of collections; of "Clipart by Jane - w_cloud12" keeps the words "w cloud"."""
    collection = re.fullmatch(r"clip ?art by .+? - (.+)", title, re.IGNORECASE)
    if collection:
        title = re.sub(r"[\d_]+", " ", collection.group(1))
    title = " ".join(title.replace("_", " ").split())
    is_junk = not title or title.lower() in {"unsorted", "various cliparts"} or re.search(r"\.(svg|png)$", title.lower())
    return None if is_junk or _is_perl_reference(title) else title


def _clean_description(description: str) -> str | None:
    is_address = re.fullmatch(r"\S+@\S+", description)
    return None if not description or is_address or _is_perl_reference(description) else description


def _clean_tag(tag: str) -> str | None:
    tag = " ".join(html.unescape(tag).replace("_", " ").split()).lower()
    return None if tag in {"", "unsorted"} or _is_perl_reference(tag) else tag


def _clean_creator(creator: str) -> str | None:
    """Drops mail addresses, so that "Jane (jane@example.org)" and "Jane" are one; of a bare address keeps the user name."""
    creator = re.sub(r"\s*[(<\[][^)>\]]*@[^)>\]]*[)>\]]", "", creator)
    creator = re.sub(r"^(?:mailto:)?([^\s@]+)@\S+$", r"\1", creator)
    return None if not creator or _is_perl_reference(creator) else creator


def _is_perl_reference(text: str) -> bool:
    """The tool that wrote the metadata printed some empty fields as HASH(0x89c79d4), and split others to "hash"."""
    return re.fullmatch(r"hash(\(0x[0-9a-f]+\))?", text.lower()) is not None


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m demo.openclipart", description="Fetches Debian's openclipart packages.")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the pictures (about 400 MB)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        root = fetch(args.cache)
    except ClipartUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log.info("clip art is in %s", root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
