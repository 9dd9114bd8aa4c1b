"""What the live release finds, with pictures: some pins' neighbours, and the results of some words.

All queries of the page are one search and one look-up of titles. Pictures come from where the pins say they are, under the
same limits as the encoder's; one that cannot be had becomes a sentence. Thumbnails are WebP as data: URIs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from embedding.encoder.fetch import fetch_image
from embedding.encoder.images import decode_image
from embedding.encoder.limits import ImageLimits, ImageRejected
from embedding.index.reader import Release
from embedding.index.recall import Floats
from embedding.index.release import Manifest
from embedding.tables.lake import Lake

PIN_QUERIES = 10
RESULTS = 8
WORDS = ("red bicycle", "cat", "birthday cake", "mountain at night", "musical instrument")

THUMBNAIL_PX = 160
"""Shown at 112 CSS pixels or less: sharp on a phone's dense screen, and about 4 kB."""

_POOL = 64
_WEBP_QUALITY = 72
_THREADS = 2
"""A picture may decode to 160 MB: two at a time bound the memory."""

EncodeTexts = Callable[[Sequence[str]], Floats]
LoadTextEncoder = Callable[[Lake, Manifest], EncodeTexts]


class EncoderUnavailableError(Exception):
    """The release's encoder cannot be had here; the message says why."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data: URI, or the words that stand in for it."""

    data_uri: str | None
    missing: str = ""


@dataclass(frozen=True)
class Tile:
    """One pin as the page shows it; `score` is its cosine with the query, None for the query itself; `said` words below it."""

    pin_id: int
    title: str | None
    picture: Picture
    score: float | None = None
    said: str | None = None


@dataclass(frozen=True)
class Row:
    """A query and what it found, nearest first. The query is a pin or words."""

    query: Tile | str
    results: list[Tile]


@dataclass(frozen=True)
class Galleries:
    """The rows, and a sentence for each part that could not be made."""

    pins: list[Row] = field(default_factory=list)
    words: list[Row] = field(default_factory=list)
    release_fault: str | None = None
    words_fault: str | None = None


def load_text_encoder(lake: Lake, manifest: Manifest) -> EncodeTexts:
    """The text tower of the release's own encoder. Raises EncoderUnavailableError where there is none, or another one."""
    from embedding.encoder.config import ConfigError
    from embedding.encoder.store import encoder_of_release

    try:
        config = encoder_of_release(lake, manifest).config
        from embedding.encoder.cache import shared_encoder

        encode_texts: EncodeTexts = shared_encoder(config).encode_texts
        return encode_texts
    except (ConfigError, ImportError, OSError) as error:
        raise EncoderUnavailableError(str(error)) from error


def make_galleries(lake: Lake, release: Release, load_encoder: LoadTextEncoder = load_text_encoder) -> Galleries:
    """The page's galleries of a release. What cannot be made is said in the result, never raised."""
    words_fault: str | None = None
    words_WD: Sequence[Floats] = ()
    try:
        words_WD = [*load_encoder(lake, release.manifest)(WORDS)]
    except EncoderUnavailableError as error:
        words_fault = str(error)
    asking = _query_pins(release)
    rows = _search(release, [*asking.values(), *words_WD], [*asking, *[None] * len(words_WD)])
    show = tiles_of(release, {pin for row in rows for pin, _ in row}.union(asking))
    results = [[show(pin, score) for pin, score in row] for row in rows]
    pin_rows = [Row(show(pin, None), found) for pin, found in zip(asking, results, strict=False)]
    word_rows = [Row(words, found) for words, found in zip(WORDS, results[len(asking) :], strict=False)]
    return Galleries(pin_rows, word_rows, None, words_fault)


def _query_pins(release: Release) -> dict[int, Floats]:
    """Some pins and their vectors, the same ones for the same release; those with a picture first."""
    sample = sorted(release.sample(_POOL), key=lambda row: row["image_uri"] is None)
    chosen: dict[int, Floats] = {}
    for row in sample[:PIN_QUERIES]:
        # A release that describes a pin which its index lacks is unsound, but no reason to have no report.
        with suppress(KeyError):
            chosen[int(row["pin_id"])] = release.vector_of(row["pin_id"])
    return chosen


def _search(release: Release, queries: Sequence[Floats], without: Sequence[int | None]) -> list[list[tuple[int, float]]]:
    """For each query its nearest (pin, cosine), without the pin that asked."""
    if not queries:
        return []
    scores, ids = release.search(np.stack(queries), RESULTS + 1)
    return [
        [(int(pin), float(score)) for pin, score in zip(ids[q], scores[q], strict=True) if pin >= 0 and pin != own][:RESULTS]
        for q, own in enumerate(without)
    ]


class ShowPin(Protocol):
    """Makes a tile of a pin."""

    def __call__(self, pin: int, score: float | None = None, said: str | None = None) -> Tile: ...


def tiles_of(release: Release, pins: Iterable[int], side_px: int = THUMBNAIL_PX) -> ShowPin:
    """A function from one of the pins to its tile, their titles and pictures fetched at once."""
    described = release.describe(sorted(pins))
    pictures = make_pictures((row["image_uri"] for row in described.values()), side_px)

    def show(pin: int, score: float | None = None, said: str | None = None) -> Tile:
        row: dict[str, Any] = described.get(pin, {})
        uri = row.get("image_uri")
        return Tile(pin, row.get("title"), pictures[uri] if uri else Picture(None, "no picture"), score, said)

    return show


def make_pictures(uris: Iterable[str | None], side_px: int) -> dict[str, Picture]:
    """A thumbnail for each distinct address, in parallel."""
    distinct = sorted({uri for uri in uris if uri})
    limits = ImageLimits.from_environment()
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(distinct, pool.map(lambda uri: make_picture(uri, limits, side_px), distinct), strict=True))


def make_picture(uri: str, limits: ImageLimits, side_px: int) -> Picture:
    """The thumbnail of the picture at `uri`, or the reason why there is none."""
    try:
        image = decode_image(fetch_image(uri, limits), limits.max_pixels)
    except ImageRejected as error:
        return Picture(None, str(error.reason).replace("_", " "))
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=4)
    return Picture("data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
