"""A million real short texts and their vectors, for benchmarks of the index where real pictures do not reach.

    python -m benchmarks.texts --cache .cache/texts

Sentences and titles of three to fourteen words out of Debian packages: dictionaries, WordNet's glosses, manuals, proverbs,
the documentation of Linux, Java, Rust and PostgreSQL. The text tower of `pinclip-base`, the platform's own encoder, makes
vectors of them: 256 float32 dimensions, L2-normalised, as a search by text does (in bf16 where the processor can). They
are as uneven as texts are: clusters of near-duplicates beside lonely ones. About 140 MB are fetched with apt-get (no root,
nothing is installed).

The vectors lie in `vectors-<version>.npy` (rows, 256), in the order of the texts' SHA-256, which is a random one. May be
interrupted and run again: blocks that are encoded are kept. On two cores it takes about an hour, with bf16 a third of that.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import logging
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from demo.debian import fetch_packages
from embedding.encoder.config import DEFAULT_CONFIG, embedding_version, load_config
from embedding.encoder.model import PinEncoder
from embedding.index.recall import Floats

log = logging.getLogger("pinlake")

PACKAGES = (
    "bible-kjv-text",
    "debian-handbook",
    "dict-foldoc",
    "dict-gcide",
    "dict-jargon",
    "fortunes",
    "gnu-standards",
    "libreoffice-help-en-us",
    "linux-doc-6.1",
    "manpages-dev",
    "miscfiles",
    "openjdk-17-doc",
    "postgresql-doc-15",
    "r-doc-html",
    "rust-doc",
    "wordnet-base",
)
WANTED = 1_000_000
MIN_WORDS, MAX_WORDS = 3, 14
BLOCK = 20_000

_SKIPPED = re.compile(r"<(script|style)\b.*?</\1>", re.S | re.I)
_BLOCKS = re.compile(r"</?(p|div|li|td|th|tr|h[1-6]|dt|dd|br|pre|title|section|table|ul|ol)\b[^>]*>", re.I)
_TAGS = re.compile(r"<[^>]{0,2000}>")
_SENTENCES = re.compile(r"(?<=[.!?;:|])\s+|\n\s*\n")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]*")
_TEXT_SUFFIXES = {".txt", ".html", ".xhtml", ".htm", ".rst", ".dz", ".noun", ".verb", ".adj", ".adv", ""}


def read_texts(root: Path) -> Iterator[str]:
    """The texts of a folder of unpacked packages, in no order, with repetitions."""
    for file in sorted(root.rglob("*")):
        name = file.name.removesuffix(".gz")
        if (
            not file.is_file()
            or file.is_symlink()
            or Path(name).suffix.lower() not in _TEXT_SUFFIXES | {".1", ".2", ".3", ".7"}
        ):
            continue
        if "debian-handbook" in str(file) and "/en-US/" not in str(file):
            continue
        data = file.read_bytes()
        if file.suffix in {".gz", ".dz"}:
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error):
                continue
        text = data.decode("utf-8", "replace")
        if "<html" in text[:2000].lower() or name.endswith("html"):
            text = html.unescape(_TAGS.sub(" ", _BLOCKS.sub("\n\n", _SKIPPED.sub(" ", text))))
        yield from _short_ones(text)


def _short_ones(text: str) -> Iterator[str]:
    for piece in _SENTENCES.split(text):
        sentence = " ".join(piece.split())
        words = _WORDS.findall(sentence)
        # Words make up most of a text; program listings and tables do not get through.
        if MIN_WORDS <= len(words) <= MAX_WORDS and sum(map(len, words)) + len(words) > 0.85 * len(sentence):
            yield sentence


def unique_texts(root: Path, count: int) -> list[str]:
    """The first `count` different texts in the order of their SHA-256."""
    by_hash = {hashlib.sha256(text.lower().encode()).digest(): text for text in read_texts(root)}
    return [by_hash[key] for key in sorted(by_hash)[:count]]


def text_vectors(cache: Path, count: int = WANTED) -> Floats:
    """The vectors (count, 256) of a cache, memory-mapped; fetched and encoded where they are missing.

    Raises PackagesUnavailableError, or ValueError where the packages hold fewer texts.
    """
    config = replace(load_config(DEFAULT_CONFIG), precision="bf16")
    version = str(embedding_version(config))
    whole = cache / f"vectors-{version}.npy"
    if not whole.is_file() or len(np.load(whole, mmap_mode="r")) < count:
        _encode(cache, count, PinEncoder.load(config), whole)
    vectors: Floats = np.load(whole, mmap_mode="r")[:count]
    return vectors


def read_texts_file(cache: Path) -> list[str]:
    """The texts of a cache, in the order of the vectors; `text_vectors` has put them there."""
    texts: list[str] = json.loads((cache / "texts.json").read_text(encoding="utf-8"))
    return texts


def _encode(cache: Path, count: int, encoder: PinEncoder, whole: Path) -> None:
    texts_file = cache / "texts.json"
    if not texts_file.is_file():
        texts = unique_texts(fetch_packages(PACKAGES, cache), WANTED)
        texts_file.write_text(json.dumps(texts), encoding="utf-8")
    texts = read_texts_file(cache)[:count]
    if len(texts) < count:
        raise ValueError(f"the packages hold {len(texts)} texts; {count} are wanted")
    blocks = cache / whole.stem
    blocks.mkdir(exist_ok=True)
    for start in range(0, count, BLOCK):
        file = blocks / f"{start:08d}.npy"
        if not file.is_file():
            unfinished = file.with_suffix(".part")
            with unfinished.open("wb") as stream:
                np.save(stream, encoder.encode_texts(texts[start : start + BLOCK]))
            unfinished.replace(file)
            log.info("%d of %d texts encoded", min(start + BLOCK, count), count)
    parts = [np.load(file, mmap_mode="r") for file in sorted(blocks.glob("*.npy"))]
    unfinished = whole.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.save(stream, np.concatenate(parts)[:count])
    unfinished.replace(whole)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/texts"))
    parser.add_argument("--count", type=int, default=WANTED)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(text_vectors(args.cache, args.count).shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
