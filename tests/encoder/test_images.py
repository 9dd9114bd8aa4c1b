"""Every odd or hostile picture that a feed of pins brings, made in memory, judged by its pixels."""

from __future__ import annotations

import io
import random
import resource
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from embedding.contracts import Reason
from embedding.encoder.images import FORMATS, decode_image
from embedding.encoder.limits import ImageRejected

# Pillow warns of what it then raises.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in ("UserWarning", "PIL.Image.DecompressionBombWarning")]

MAX_PIXELS = 40_000_000
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode_image(data, MAX_PIXELS)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return tuple(int(part) for part in value)


def rejection(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decode_image(data, max_pixels)
    assert caught.value.detail
    return caught.value


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(png_chunk(*chunk) for chunk in chunks) + png_chunk(b"IEND", b"")


def photo(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("file_format", FORMATS)
def test_each_format_decodes_and_a_cut_one_is_named_truncated(file_format: str) -> None:
    data = encoded(photo(), file_format)
    assert decode_image(data, MAX_PIXELS).size == (96, 64)
    assert rejection(data[: len(data) // 2]).reason == Reason.TRUNCATED_IMAGE


def test_what_is_no_picture_is_not_tried() -> None:
    assert rejection(b"<!doctype html><html><body>404</body></html>").reason == Reason.NOT_AN_IMAGE
    assert rejection(b"").reason == Reason.NOT_AN_IMAGE
    assert rejection(encoded(photo(), "EPS")).reason == Reason.NOT_AN_IMAGE  # Pillow would start Ghostscript for it
    assert rejection(encoded(photo(), "PPM")).reason == Reason.NOT_AN_IMAGE


def test_size_is_refused_from_the_header_before_any_memory_is_taken() -> None:
    bomb = png(24_960, 24_960, 8, 2, (b"IDAT", zlib.compress(b"\x00" * 1000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal = rejection(bomb)
    assert (refusal.reason, "24960 x 24960" in refusal.detail or "pixels" in refusal.detail) == (Reason.TOO_MANY_PIXELS, True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    # Between Pillow's warning and its error, where only our own limit stands.
    assert rejection(png(10_000, 10_000, 8, 0, (b"IDAT", b""))).reason == Reason.TOO_MANY_PIXELS
    assert rejection(encoded(photo(), "PNG"), max_pixels=96 * 64 - 1).reason == Reason.TOO_MANY_PIXELS
    assert decode_image(encoded(photo(), "PNG"), max_pixels=96 * 64).size == (96, 64)


def test_a_webp_canvas_of_268_megapixels_costs_no_memory() -> None:
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x00" * 4 + (16_382).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + encoded(Image.new("RGB", (2, 2)), "WEBP", lossless=True)[12:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rejection(b"RIFF" + struct.pack("<I", len(body)) + body).reason in (Reason.TOO_MANY_PIXELS, Reason.DECODE_FAILED)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_text_chunk_that_unpacks_to_gigabytes_is_refused() -> None:
    text = b"k\x00\x00" + zlib.compress(b"\x00" * 30_000_000)
    data = png(1, 1, 8, 2, (b"zTXt", text), (b"IDAT", zlib.compress(b"\x00\x01\x02\x03")))
    with_limit = None
    try:
        with_limit = decode_image(data, MAX_PIXELS)  # skipped by newer Pillows
    except ImageRejected as refusal:
        assert refusal.reason == Reason.DECODE_FAILED
    assert with_limit is None or with_limit.size == (1, 1)


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        assert pixel(encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)) == RED


def test_cmyk_of_print_shops() -> None:
    # Pillow writes, as Adobe's programs do, inverted values with an Adobe marker: no ink anywhere must come back white.
    paper = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in paper
    assert pixel(paper) == WHITE
    cyan = pixel(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert cyan[0] < 5
    assert min(cyan[1:]) > 250


def test_16_bit_pictures_are_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 300, 0x8000, 0xFFFF]], dtype=np.uint16))
    for file_format in ("PNG", "TIFF"):
        data = encoded(grey, file_format)
        assert [pixel(data, (x, 0))[0] for x in range(4)] == [0, 1, 0x80, 0xFF]
    rows = b"\x00" + struct.pack(">6H", 0x8000, 0x4000, 0x2000, 0xFFFF, 0, 0)
    coloured = png(2, 1, 16, 2, (b"IDAT", zlib.compress(rows)))
    assert [pixel(coloured, (x, 0)) for x in range(2)] == [(0x80, 0x40, 0x20), RED]


def test_transparency_lies_on_white() -> None:
    assert pixel(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")) == WHITE
    half = pixel(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert half[0] == 255
    assert abs(half[1] - 127) <= 1
    assert pixel(encoded(Image.new("LA", (2, 2), (0, 0)), "PNG")) == WHITE
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putdata([0, 1])
    for file_format in ("PNG", "GIF"):
        data = encoded(palette, file_format, transparency=0)
        assert [pixel(data, (x, 0)) for x in range(2)] == [WHITE, RED]
    key_16 = (b"tRNS", struct.pack(">3H", 0xFFFF, 0, 0))
    rows = zlib.compress(b"\x00" + struct.pack(">3H", 0xFFFF, 0, 0))
    assert pixel(png(1, 1, 16, 2, key_16, (b"IDAT", rows))) == WHITE
    grey_key = (b"tRNS", struct.pack(">H", 300))
    grey_rows = zlib.compress(b"\x00" + struct.pack(">2H", 300, 301))
    keyed = png(2, 1, 16, 0, grey_key, (b"IDAT", grey_rows))
    assert [pixel(keyed, (x, 0)) for x in range(2)] == [WHITE, (1, 1, 1)]


def test_grey_and_1_bit() -> None:
    assert pixel(encoded(Image.new("L", (2, 2), 77), "PNG")) == (77, 77, 77)
    for file_format in ("PNG", "BMP", "TIFF"):
        assert pixel(encoded(Image.new("1", (2, 2), 1), file_format)) == WHITE
    assert "colour mode F" in rejection(encoded(Image.new("F", (2, 2), 0.5), "TIFF")).detail


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, "top left"), (3, "bottom right"), (6, "top right"), (8, "bottom left")]
)
def test_exif_turns_the_picture_once(file_format: str, orientation: int, corner: str) -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode_image(encoded(image, file_format, exif=exif), MAX_PIXELS)
    assert turned.size == ((32, 64) if orientation in (6, 8) else (64, 32))
    at = (turned.width - 8 if "right" in corner else 8, turned.height - 8 if "bottom" in corner else 8)
    value = turned.getpixel(at)
    assert isinstance(value, tuple)
    assert value[0] > 240
    assert value[1] < 40


def test_a_broken_exif_block_spoils_no_picture() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert decode_image(data, MAX_PIXELS).size == (96, 64)


def test_damaged_bytes_raise_nothing_but_rejections() -> None:
    dice = random.Random(0)
    for file_format in FORMATS:
        data = encoded(photo(24, 16), file_format)
        for _ in range(60):
            damaged = bytearray(data)
            for _ in range(dice.randint(1, 12)):
                damaged[dice.randrange(len(damaged) if dice.random() < 0.5 else min(64, len(damaged)))] = dice.randrange(256)
            try:
                assert decode_image(bytes(damaged), MAX_PIXELS).mode == "RGB"
            except ImageRejected as refusal:
                assert refusal.reason in set(Reason)


def test_pillow_keeps_its_settings_and_torch_stays_out() -> None:
    decode_image(encoded(photo(), "PNG"), MAX_PIXELS)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    program = (
        "import sys, embedding.encoder.fetch, embedding.encoder.images, embedding.encoder.config as c;"
        "c.load_config('pinclip-base');"
        "assert not {'torch', 'open_clip', 'transformers', 'timm', 'pyspark', 'airflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
