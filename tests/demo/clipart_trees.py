"""A small tree of clip art in the shape of the Debian packages: PNGs, SVGs with RDF, and links to other folders."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

RDF = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<svg xmlns="http://www.w3.org/2000/svg"><metadata>
  <rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
      xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
    <dc:title>{title}</dc:title><dc:description>{description}</dc:description>
    <dc:subject><rdf:Bag>{tags}</rdf:Bag></dc:subject>
    <dc:publisher><cc:Agent><dc:title>The Publisher</dc:title></cc:Agent></dc:publisher>
    <dc:creator><cc:Agent><dc:title>{creator}</dc:title></cc:Agent></dc:creator>
  </cc:Work></rdf:RDF></metadata><path d="M0 0"/></svg>"""

FOLDERS = ("animals/birds", "food/fruit", "tools", "signs_and_symbols")
CREATORS = ("Ana", "Bo", "Cem")


def rdf(title: str = "", description: str = "", tags: tuple[str, ...] = (), creator: str = "") -> str:
    items = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    return RDF.format(title=title, description=description, tags=items, creator=creator)


def add_clipart(
    root: Path, name: str, svg: str, size: tuple[int, int] = (24, 16), colour: tuple[int, ...] = (9, 9, 9, 255)
) -> None:
    """One picture; `name` is a path below png/ and svg/ without the suffix."""
    png_path, svg_path = root / "png" / f"{name}.png", root / "svg" / f"{name}.svg"
    for path in (png_path, svg_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, colour).save(png_path)
    svg_path.write_text(svg, encoding="utf-8")


def add_link(root: Path, name: str, target: str) -> None:
    """`name` shows `target`; both are paths below png/ without the suffix."""
    for kind in ("png", "svg"):
        link = root / kind / f"{name}.{kind}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / kind / f"{target}.{kind}")
