"""Turns the bytes of an untrusted picture into RGB pixels.

One file format list, one pixel limit, one way from every colour mode to RGB. Nothing is resized or normalised here (the
encoder's transform does that), but that a JPEG may be decoded at a half, a quarter or an eighth of its size; no colour profile
is applied, and no file is read. Safe to call from many threads: it changes no setting of Pillow.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import numpy as np

# Importing the plugins registers them, so that Pillow never loads the rest (EPS and friends) on a thread's first image.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from embedding.contracts import Reason
from embedding.encoder.limits import ImageRejected

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
_TRUNCATION_WORDS = ("truncat", "not enough", "end of file", "unexpected end")
# Both are checked before decoding anyway; the filter spares the log a line an image. Made once, not a thread at a time.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


LeastScale = Callable[[int, int], float]
"""By a picture's width and height: the factor by which its sides may shrink at most; 1 or more for not at all."""


def decode_image(data: bytes, max_pixels: int, least_scale: LeastScale | None = None) -> Image.Image:
    """The picture as a person would see it: upright, mode RGB, transparency on white, the first frame of an animation.

    16-bit samples keep their upper 8 bits. `max_pixels` bounds width times height, and is checked on the header before any
    pixel is decoded. One below 178,956,970 (Pillow's own limit) is expected.

    With `least_scale` a JPEG comes out at the smallest of 1/8, 1/4, 1/2 or 1 of its size that is no less than that: libjpeg
    then computes fewer coefficients, and what follows has fewer pixels to read. It is a box filter where a resize from the
    full size is finer; how much that moves vectors is measured by benchmarks/shortcuts.py.

    Raises ImageRejected with NOT_AN_IMAGE, TRUNCATED_IMAGE, TOO_MANY_PIXELS or DECODE_FAILED, whatever is in `data`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, max_pixels)
            if least_scale is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
                scale = min(1.0, least_scale(*image.size))
                image.draft(image.mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            # Again: a few formats learn their size only while decoding.
            _check_pixels(image.size, max_pixels)
            return _to_rgb(_upright(image))
    except ImageRejected:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(Reason.TOO_MANY_PIXELS, str(error)) from error
    except UnidentifiedImageError as error:
        # Not Pillow's own text, which names the address of a buffer; and none of the bytes: an address may name any file.
        raise ImageRejected(_reason_of(error, data), "no picture in a known format") from error
    except Exception as error:  # whatever a hostile file makes Pillow raise: SyntaxError, struct.error, MemoryError...
        raise ImageRejected(_reason_of(error, data), f"{type(error).__name__}: {error}") from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageRejected(Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels, over {max_pixels} in all")
    if width * height == 0:
        raise ImageRejected(Reason.DECODE_FAILED, f"{width} x {height} pixels")


def _reason_of(error: Exception, data: bytes) -> Reason:
    text = str(error).lower()
    if isinstance(error, EOFError) or any(word in text for word in _TRUNCATION_WORDS) or _is_cut_webp(data):
        return Reason.TRUNCATED_IMAGE
    if isinstance(error, UnidentifiedImageError) and not data.startswith(_MAGIC) and not _is_webp(data):
        return Reason.NOT_AN_IMAGE
    return Reason.DECODE_FAILED


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _is_cut_webp(data: bytes) -> bool:
    # libwebp says only that it failed; the RIFF header says how long the file should be.
    return _is_webp(data) and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _upright(image: Image.Image) -> Image.Image:
    """Turns the picture as its EXIF block asks. TIFF pictures were turned by Pillow, which also removed the tag."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001 - a broken EXIF block spoils no picture
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F", "LAB"):
        raise ImageRejected(Reason.DECODE_FAILED, f"colour mode {image.mode} does not say what black and white are")
    if image.mode.startswith("I;16"):
        image = _halve_depth(image)
    if image.has_transparency_data:
        if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
            image = _with_8_bit_key(image)
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        white.alpha_composite(opaque)
        image = white
    return image.convert("RGB")


def _halve_depth(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit grey. Pillow's own conversion clips: everything above 255 would turn white."""
    transparent = image.info.get("transparency")
    values = np.asarray(image).astype(np.uint16)
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, np.uint8(0), np.uint8(255))
        return Image.merge("LA", (Image.fromarray((values >> 8).astype(np.uint8)), Image.fromarray(alpha)))
    return Image.fromarray((values >> 8).astype(np.uint8))


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """A 16-bit PNG's transparent colour comes in 16 bits beside pixels of 8: reduces it as the pixels were."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and any(value > 255 for value in key):
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image
