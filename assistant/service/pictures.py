"""Thumbnails of pins' own pictures, small enough for a grid, kept in memory for a while.

Only a picture that a pin of the live release names is ever read, within the limits that a night reads it in, and what is sent
was decoded and encoded anew here: never a file's own bytes.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image, ImageChops

from assistant.service.errors import Refused
from embedding.encoder.fetch import fetch_image
from embedding.encoder.images import decode_image
from embedding.encoder.limits import WEB_SCHEMES, ImageLimits, ImageRejected
from embedding.index.reader import Release

TYPE = "image/webp"
QUALITY = 82
FAINT = 8
"""How far from white a pixel of 255 may be and count as white."""


@dataclass(frozen=True)
class Thumbnail:
    """A WebP file's bytes, and a tag that changes with them."""

    data: bytes
    tag: str


class Thumbnails:
    """Makes and keeps them, the least recently asked for given up first. Thread-safe; blocks."""

    def __init__(self, limits: ImageLimits, side: int, cache_bytes: int):
        self._limits, self._side, self._most = limits, side, cache_bytes
        self._kept: OrderedDict[tuple[str, str], Thumbnail] = OrderedDict()
        self._size, self._lock = 0, threading.Lock()

    def address(self, release: Release, pin_id: int) -> str:
        """Where a pin's picture is. Raises Refused (404) for a pin that the release does not hold, or that has none."""
        row = release.describe([pin_id]).get(pin_id)
        if row is None:
            raise Refused(404, f"pin {pin_id} is not in the live release", "it may have been deleted: search again")
        if not row["image_uri"]:
            raise Refused(404, f"pin {pin_id} names no picture", "nothing can be done")
        return str(row["image_uri"])

    def of(self, release: Release, uri: str) -> Thumbnail:
        """Raises Refused (404) where it cannot be read or decoded; the reason is of no use to who asks, and may hold a path."""
        key = (release.manifest.release_id, uri)  # a file may change under its name from night to night
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        try:
            made = self._make(fetch_image(uri, self._limits))
        except ImageRejected as error:
            raise Refused(404, f"the picture cannot be shown: {error.reason}", "its pin can still be searched from") from None
        self._keep(key, made)
        return made

    def _make(self, data: bytes) -> Thumbnail:
        side = self._side
        image = decode_image(data, self._limits.max_pixels, lambda width, height: 2 * side / max(width, height, 1))
        image.thumbnail((2 * side, 2 * side))
        image = _without_margins(image)
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=QUALITY)
        made = file.getvalue()
        return Thumbnail(made, f'"{hashlib.sha256(made).hexdigest()[:24]}"')

    def _keep(self, key: tuple[str, str], made: Thumbnail) -> None:
        with self._lock:
            before = self._kept.pop(key, None)
            self._kept[key] = made
            self._size += len(made.data) - (len(before.data) if before else 0)
            while self._size > self._most:
                _, old = self._kept.popitem(last=False)
                self._size -= len(old.data)


def _without_margins(image: Image.Image) -> Image.Image:
    """Without the white around it: drawings often lie on a page that is far larger. A picture that is all white stays."""
    bounds = (
        ImageChops.difference(image, Image.new("RGB", image.size, "white")).point(lambda value: 255 * (value > FAINT)).getbbox()
    )
    return image.crop(bounds) if bounds else image


def is_on_the_web(uri: str) -> bool:
    """Whether a browser can fetch it itself."""
    return uri.partition(":")[0].lower() in WEB_SCHEMES
