"""From an endless iterator of pins to an iterator of vectors, in the same order.

Four steps run side by side, each on its own batch: reading and decoding (in threads, a picture each), putting a batch together
and moving it to the device, the forward pass, and the caller's own work with the results. Plain Python: Spark, a service and a
test call it alike. It decides nothing about which pins need a vector, writes nothing, and keeps at most a few batches in
memory, however long the input. A picture that cannot be used is a result with a reason; only faults of the machine (and of
the caller) are raised. (docs/decisions/0009-encoding-at-the-speed-of-the-hardware.md)
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embedding.contracts import Reason, content_sha256
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits, ImageRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from torch import Tensor

_DECODED_AHEAD, _COLLATED_AHEAD, _ENCODED_AHEAD = 2, 1, 2
BATCHES_AHEAD = _DECODED_AHEAD + _COLLATED_AHEAD + _ENCODED_AHEAD
"""How many batches of pins are taken from the input and not yet given out, at most; and the one that is being put together."""

UNIT_TOLERANCE = 1e-3

Item = TypeVar("Item")
Result = TypeVar("Result")


class Encoder(Protocol):
    """What `encode_stream` needs of an encoder; `PinEncoder` is the one in production."""

    def decode(self, data: bytes, max_pixels: int) -> Image.Image: ...

    def transform(self, image: Image.Image) -> Tensor: ...

    def collate(self, pixels: Sequence[Tensor | None], texts: Sequence[str]) -> Any: ...

    def encode_batch(self, batch: Any) -> npt.NDArray[np.float32]: ...


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


@dataclass(frozen=True, eq=False)
class _Batch:
    """Items in order, without their pixels, and those that are not refused as the encoder's batch; None where all are."""

    items: list[_Prepared]
    usable: Any


class Cores:
    """A task's share of the processor: so many threads may compute at once, however many wait for disks and networks.

    What is given out never exceeds it: with a forward pass on the processor that takes all of it, decoding waits, and the
    other way round. Neither would be quicker for running in halves of the same cores.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.Semaphore(count)
        self._whole = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Holds one core for a block."""
        with self._free:
            yield

    @contextmanager
    def all(self) -> Iterator[None]:
        """Holds all cores for a block."""
        with self._whole, ExitStack() as held:  # the lock: of two that collect cores, each could end with half of them
            for _ in range(self._count):
                held.enter_context(self._free)
            yield


def encode_stream(
    encoder: Encoder,
    items: Iterable[EncodeItem],
    *,
    batch_size: int = 32,
    threads: int = 4,
    cores: int = 1,
    forward_on_cores: bool = True,
    limits: ImageLimits | None = None,
) -> Iterator[EncodeResult]:
    """Encodes `items` in batches of `batch_size`: one result an item, in their order, as they are asked for.

    Args:
        threads: How many pictures are fetched at once.
        cores: How many of these threads may decode at once; what else they do is waiting.
        forward_on_cores: The forward pass takes these same cores, so that decoding waits for it; False for one on a GPU.
        limits: The environment's where None.

    `items` is read at most BATCHES_AHEAD batches ahead, and one more. Memory: that many batches of decoded and resized
    pictures, and for
    each of the `threads` one file (up to limits.max_bytes) and its pixels (up to 4 bytes for each of limits.max_pixels, a few
    times over). Reasons are those of `fetch_image` and `decode_image`, and EMPTY_PIN, FETCH_FAILED (changed while reading)
    and INVALID_VECTOR.
    """
    if min(batch_size, threads, cores) < 1:
        raise ValueError(f"batch_size, threads and cores must be at least 1, not {batch_size}, {threads} and {cores}")
    limits = ImageLimits.from_environment() if limits is None else limits
    share = Cores(cores)

    def prepare(item: EncodeItem) -> _Prepared:
        return _prepare(encoder, item, limits, share)

    def collate(batch: list[_Prepared]) -> _Batch:
        usable = [one for one in batch if one.refusal is None]
        pixels, texts = [one.pixels for one in usable], [one.item.text for one in usable]
        with share.one():
            collated = encoder.collate(pixels, texts) if usable else None
        return _Batch([replace(one, pixels=None) for one in batch], collated)

    def encode(batch: _Batch) -> list[EncodeResult]:
        with share.all() if forward_on_cores else nullcontext():
            return list(_encode(encoder, batch))

    with ExitStack() as stages:
        prepared = stages.enter_context(closing(_map_ahead(prepare, items, threads, _DECODED_AHEAD * batch_size)))
        batches = iter(lambda: list(islice(prepared, batch_size)), [])
        collated = stages.enter_context(closing(_map_ahead(collate, batches, 1, _COLLATED_AHEAD)))
        encoded = stages.enter_context(closing(_map_ahead(encode, collated, 1, _ENCODED_AHEAD)))
        for results in encoded:
            yield from results


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


def _prepare(encoder: Encoder, item: EncodeItem, limits: ImageLimits, share: Cores) -> _Prepared:
    content = image_sha256 = pixels = None
    try:
        if item.image_uri is None and not item.text:
            raise ImageRejected(Reason.EMPTY_PIN, "neither picture nor text")
        data, image_sha256, content = _read(item, limits)
        if item.expected_sha256 not in (None, content):
            raise ImageRejected(Reason.FETCH_FAILED, f"changed while reading: {item.image_uri}")
        if data is not None:
            with share.one():
                pixels = _transform(encoder, encoder.decode(data, limits.max_pixels))
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


def _encode(encoder: Encoder, batch: _Batch) -> Iterator[EncodeResult]:
    vectors_ND = np.empty((0, 0), np.float32) if batch.usable is None else encoder.encode_batch(batch.usable)
    usable = sum(one.refusal is None for one in batch.items)
    if len(vectors_ND) != usable:
        raise ValueError(f"the encoder gave {len(vectors_ND)} vectors for {usable} pins")
    vectors = iter(vectors_ND)
    for one in batch.items:
        yield _refused(one, one.refusal) if one.refusal else _checked(one, next(vectors))


def _refused(one: _Prepared, refusal: ImageRejected) -> EncodeResult:
    return EncodeResult(one.item.key, None, one.content_sha256, one.image_sha256, refusal.reason, refusal.detail)


def _checked(one: _Prepared, vector: npt.NDArray[np.float32]) -> EncodeResult:
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1.0) <= UNIT_TOLERANCE:  # false for NaN and infinity too
        return _refused(one, ImageRejected(Reason.INVALID_VECTOR, f"the vector's length is {norm}, not 1"))
    return EncodeResult(one.item.key, vector, one.content_sha256, one.image_sha256)
