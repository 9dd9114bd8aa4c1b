"""From an endless iterator of pins to an iterator of vectors, in the same order.

Fetching, decoding and resizing run in threads while the encoder works on the batch before. Plain Python: Spark, a service
and a test call it alike. It decides nothing about which pins need a vector, writes nothing, and keeps at most a few
batches in memory, however long the input. A picture that cannot be used is a result with a reason; only faults of the
machine (and of the caller) are raised.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embedding.contracts import Reason, content_sha256
from embedding.encoder.fetch import fetch_image
from embedding.encoder.images import decode_image
from embedding.encoder.limits import ImageLimits, ImageRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from torch import Tensor

BATCHES_AHEAD = 2
"""How many batches of pins are read and prepared ahead of the one that is being encoded."""

UNIT_TOLERANCE = 1e-3

Item = TypeVar("Item")
Result = TypeVar("Result")


class Encoder(Protocol):
    """What `encode_stream` needs of an encoder; `PinEncoder` is the one in production."""

    def transform(self, image: Image.Image) -> Tensor: ...

    def encode_pins(self, pixels: Sequence[Tensor | None], texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class EncodeItem:
    """A pin to encode: `key` comes back with the result; `text` is `pin_text`'s, "" for none.

    expected_sha256: the content hash on whose account the pin is encoded; None where the caller has none.
    """

    key: int
    image_uri: str | None
    text: str
    expected_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class EncodeResult:
    """What became of an item: a vector (float32 [D], unit length), or else a reason and a detail.

    content_sha256 is of the bytes that were encoded; None where they could not be read. image_sha256 (hex) is of the image
    file alone, None where there is none or it could not be read.
    """

    key: int
    vector: npt.NDArray[np.float32] | None
    content_sha256: str | None
    image_sha256: str | None
    reason: Reason | None = None
    detail: str | None = None


@dataclass(frozen=True)
class HashResult:
    """An item's content hash, or the reason why its image could not be read."""

    key: int
    content_sha256: str | None
    reason: Reason | None = None
    detail: str | None = None


@dataclass(frozen=True, eq=False)
class _Prepared:
    """An item with its hashes and either its pixels or a refusal; no longer with its bytes."""

    item: EncodeItem
    content_sha256: str | None = None
    image_sha256: str | None = None
    pixels: Tensor | None = None
    refusal: ImageRejected | None = None


def encode_stream(
    encoder: Encoder,
    items: Iterable[EncodeItem],
    *,
    batch_size: int = 32,
    decode_threads: int = 2,
    limits: ImageLimits | None = None,
) -> Iterator[EncodeResult]:
    """Encodes `items` in batches of `batch_size`: one result an item, in their order, as they are asked for.

    `items` is read at most BATCHES_AHEAD batches ahead. Memory: that many prepared pictures, the batch, and for each of the
    `decode_threads` one file (up to limits.max_bytes) and its pixels (up to 4 bytes for each of limits.max_pixels, a few
    times over). `limits` are the environment's where None. Reasons are those of `fetch_image` and `decode_image`, and
    EMPTY_PIN, FETCH_FAILED (changed while reading) and INVALID_VECTOR.
    """
    if batch_size < 1 or decode_threads < 1:
        raise ValueError(f"batch_size and decode_threads must be at least 1, not {batch_size} and {decode_threads}")
    limits = ImageLimits.from_environment() if limits is None else limits

    def prepare(item: EncodeItem) -> _Prepared:
        return _prepare(encoder, item, limits)

    with closing(_map_ahead(prepare, items, decode_threads, BATCHES_AHEAD * batch_size)) as prepared:
        while batch := list(islice(prepared, batch_size)):
            yield from _encode(encoder, batch)


def hash_stream(items: Iterable[EncodeItem], *, threads: int = 8, limits: ImageLimits | None = None) -> Iterator[HashResult]:
    """The content hash of each item, in order: fetches and hashes, decodes nothing.

    For finding what is encoded already. Memory: one file a thread.
    """
    limits = ImageLimits.from_environment() if limits is None else limits

    def hash_one(item: EncodeItem) -> HashResult:
        try:
            _, _, content = _read(item, limits)
        except ImageRejected as refusal:
            return HashResult(item.key, None, refusal.reason, refusal.detail)
        return HashResult(item.key, content)

    with closing(_map_ahead(hash_one, items, threads, 8 * threads)) as hashes:
        yield from hashes


def _map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`map` in threads, in order, with at most `ahead` items taken from `items` and not yet given out."""
    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pinlake-images")
    try:
        pending: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(source, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(item: EncodeItem, limits: ImageLimits) -> tuple[bytes | None, str | None, str]:
    """The image's bytes, their SHA-256 (both None for a pin without one) and the content hash."""
    if item.image_uri is None:
        return None, None, content_sha256(None, item.text)
    data = fetch_image(item.image_uri, limits)
    digest = hashlib.sha256(data)
    return data, digest.hexdigest(), content_sha256(digest.digest(), item.text)


def _prepare(encoder: Encoder, item: EncodeItem, limits: ImageLimits) -> _Prepared:
    content = image_sha256 = pixels = None
    try:
        if item.image_uri is None and not item.text:
            raise ImageRejected(Reason.EMPTY_PIN, "neither picture nor text")
        data, image_sha256, content = _read(item, limits)
        if item.expected_sha256 not in (None, content):
            raise ImageRejected(Reason.FETCH_FAILED, f"changed while reading: {item.image_uri}")
        if data is not None:
            pixels = _transform(encoder, decode_image(data, limits.max_pixels))
    except ImageRejected as refusal:
        return _Prepared(item, content, image_sha256, refusal=refusal)
    return _Prepared(item, content, image_sha256, pixels)


def _transform(encoder: Encoder, image: Image.Image) -> Tensor:
    try:
        return encoder.transform(image)
    except (ValueError, MemoryError) as error:  # a line of pixels that shrinks to a height of 0
        raise ImageRejected(
            Reason.DECODE_FAILED, f"{image.width} x {image.height} pixels cannot be resized: {error}"
        ) from error


def _encode(encoder: Encoder, batch: list[_Prepared]) -> Iterator[EncodeResult]:
    usable = [one for one in batch if one.refusal is None]
    if usable:
        vectors_ND = encoder.encode_pins([one.pixels for one in usable], [one.item.text for one in usable])
        if len(vectors_ND) != len(usable):
            raise ValueError(f"the encoder gave {len(vectors_ND)} vectors for {len(usable)} pins")
        vectors = iter(vectors_ND)
    for one in batch:
        yield _refused(one, one.refusal) if one.refusal else _checked(one, next(vectors))


def _refused(one: _Prepared, refusal: ImageRejected) -> EncodeResult:
    return EncodeResult(one.item.key, None, one.content_sha256, one.image_sha256, refusal.reason, refusal.detail)


def _checked(one: _Prepared, vector: npt.NDArray[np.float32]) -> EncodeResult:
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1.0) <= UNIT_TOLERANCE:  # false for NaN and infinity too
        return _refused(one, ImageRejected(Reason.INVALID_VECTOR, f"the vector's length is {norm}, not 1"))
    return EncodeResult(one.item.key, vector, one.content_sha256, one.image_sha256)
