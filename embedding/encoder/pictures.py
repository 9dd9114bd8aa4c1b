"""The pins' pictures made small, and which of them are near-duplicates of one another.

Two pictures are near-duplicates if both their difference hashes and their thumbnails are close (MAX_... below): the same
drawing at another size, brighter, or saved by another program. Not found are pictures that were cropped, turned or mirrored.
Plain Python over Arrow and NumPy: an engine hands over batches of any size, sorted where that is said, and gets batches.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from embedding.contracts import Reason, content_sha256
from embedding.encoder.fetch import fetch_image
from embedding.encoder.images import decode_image
from embedding.encoder.limits import ImageLimits, ImageRejected
from embedding.encoder.stream import EncodeItem, hash_stream
from embedding.encoder.training_set import THUMBNAIL_BYTES, THUMBNAIL_SIDE, Ints, runs_of

Bytes = npt.NDArray[np.uint8]

HASHED_PICTURES = pa.schema([("image_uri", pa.string()), ("content", pa.string()), ("reason", pa.string())])
"""An address with the hash of its bytes, or the reason why there is none."""

PICTURES = pa.schema(
    [
        ("content", pa.string()),
        ("reason", pa.string()),
        ("picture", pa.binary()),
        ("gradient", pa.binary()),
        ("thumbnail", pa.binary()),
    ]
)
"""A content decoded: `gradient` is the difference hash (32 bytes), `thumbnail` 192 bytes; all null but `reason` if refused."""

_READ_THREADS = 4
_PICTURES_A_BATCH = 64


def hash_pictures(batches: Iterable[pa.RecordBatch], limits: ImageLimits) -> Iterator[pa.RecordBatch]:
    """From `image_uri` to HASHED_PICTURES: fetches and hashes, decodes nothing (docs/decisions/0004-hash-before-decode.md)."""
    for batch in batches:
        uris = batch.column("image_uri").to_pylist()
        items = (EncodeItem(number, uri, "") for number, uri in enumerate(uris))
        hashed = list(hash_stream(items, threads=_READ_THREADS, limits=limits))
        columns = [uris, [one.content_sha256 for one in hashed], [one.reason for one in hashed]]
        yield pa.RecordBatch.from_arrays([pa.array(c, pa.string()) for c in columns], schema=HASHED_PICTURES)


def read_pictures(batches: Iterable[pa.RecordBatch], side: int, limits: ImageLimits) -> Iterator[pa.RecordBatch]:
    """From distinct contents (`content`, `image_uri`) to PICTURES. Memory: a few files and _PICTURES_A_BATCH small pictures."""
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="pinlake-pictures") as pool:
        for batch in batches:
            for start in range(0, batch.num_rows, _PICTURES_A_BATCH):
                rows = batch.slice(start, _PICTURES_A_BATCH).to_pylist()
                yield pa.RecordBatch.from_pylist(list(pool.map(partial(_read_picture, side, limits), rows)), schema=PICTURES)


def _read_picture(side: int, limits: ImageLimits, row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        data = fetch_image(row["image_uri"], limits)
        if content_sha256(hashlib.sha256(data).digest(), "") != row["content"]:
            raise ImageRejected(Reason.FETCH_FAILED, f"changed while reading: {row['image_uri']}")
        picture = small_picture(decode_image(data, limits.max_pixels), side)
    except ImageRejected as refusal:
        return {"content": row["content"], "reason": refusal.reason}
    gradient, thumbnail = signature(picture)
    png = io.BytesIO()
    picture.save(png, "PNG")
    return {"content": row["content"], "picture": png.getvalue(), "gradient": gradient, "thumbnail": thumbnail}


def small_picture(image: Image.Image, side: int) -> Image.Image:
    """The picture in its own proportions with its long side at most `side` pixels; never enlarged."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def signature(image: Image.Image) -> tuple[bytes, bytes]:
    """A picture's difference hash (256 bits: is the right one of two neighbours brighter, 16 rows of 17 grey values) and
    its 8 x 8 RGB thumbnail (192 bytes). The hash tells shapes apart, the thumbnail what the hash finds flat: flags, say.

    Bilinear, as sharper filters overshoot beside an edge, and do not on white; and a step, since noise makes flat ground
    uneven. Of 400 clip arts 98.8% are near-duplicates of themselves saved as JPEG of quality 50, 99.8% of themselves at 60%
    of the size, and all at 97% of the brightness; with Lanczos and no step it was 89%, 97% and 59%.
    """
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BILINEAR), np.int16)
    gradient = np.packbits(grey[:, 1:] - grey[:, :-1] > GRADIENT_STEP)
    thumbnail = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return gradient.tobytes(), thumbnail.tobytes()


GRADIENT_STEP = 2
"""Of 255: how much brighter a neighbour must be to set a bit."""
MAX_GRADIENT_BITS, MAX_GRADIENT_SHARE = 10, 0.25
"""How many bits of the hashes may differ, and what share of the bits that are set in them: two drawings of a thin line on
white have few bits, all of them different. Without the share 129 of 4,103 clip arts were one group, with it at most 21."""
MAX_THUMBNAIL_SUM = int(0.04 * 255 * THUMBNAIL_BYTES)
"""How much the thumbnails may differ, summed over their bytes: 4% of the range on average."""

BUCKETED = pa.schema([("bucket", pa.int64()), ("content", pa.string()), ("gradient", pa.binary()), ("thumbnail", pa.binary())])
LINKS = pa.schema([("content", pa.string()), ("other", pa.string()), ("uncompared", pa.int64())])
"""Two near-duplicates; or, with null contents, how many pictures a bucket had over what is compared all with all."""

MAX_BUCKET = 4_096
_PAIRS_AT_ONCE = 1 << 18
_BANDS = 11
_CELL = MAX_THUMBNAIL_SUM + 1


def bucket_keys(gradients_N32: Bytes, thumbnails_NT: Bytes) -> Ints:
    """Keys [N, 44] such that any two near-duplicates have one in common.

    Bands: of 11 pieces of the hash, ten differing bits leave one untouched. Cells: the thumbnail's brightness, and its
    upper half's less its lower half's, change by no more than the sum of differences does, so that with cells that wide
    near-duplicates lie in the same cell or in neighbouring ones; each picture is put into its own and into the next.
    """
    bits = np.unpackbits(gradients_N32, axis=1).astype(np.int64)
    bands = [band @ (1 << np.arange(band.shape[1])) for band in np.array_split(bits, _BANDS, axis=1)]
    halves = thumbnails_NT.astype(np.int64).reshape(len(thumbnails_NT), 2, -1).sum(axis=2)
    light, tilt = halves.sum(axis=1) // _CELL, (halves[:, 0] - halves[:, 1]) // _CELL + 16
    keys = [
        ((number << 24 | band) << 10) | ((light + right) << 5) | (tilt + down)
        for number, band in enumerate(bands)
        for right in (0, 1)
        for down in (0, 1)
    ]
    return np.stack(keys, axis=1)


def spread_over_buckets(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """From pictures (`content`, `gradient`, `thumbnail`) to BUCKETED: each once for each of its keys."""
    for batch in batches:
        keys = bucket_keys(_bytes_of(batch.column("gradient"), 32), _bytes_of(batch.column("thumbnail"), THUMBNAIL_BYTES))
        picture = np.repeat(np.arange(batch.num_rows), keys.shape[1])
        columns = [batch.column(name).take(pa.array(picture)) for name in BUCKETED.names[1:]]
        yield pa.RecordBatch.from_arrays([pa.array(keys.ravel()), *columns], schema=BUCKETED)


def _bytes_of(column: pa.Array, width: int) -> Bytes:
    """A column of binaries of one width as a matrix [N, width]."""
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, width)


def link_near_duplicates(batches: Iterable[pa.RecordBatch], max_bucket: int = MAX_BUCKET) -> Iterator[pa.RecordBatch]:
    """From BUCKETED, sorted by bucket, to LINKS: in each bucket every near-duplicate is linked to one of its cluster.

    A bucket gives fewer links than it has pictures, whatever the number of pairs. One of more than `max_bucket` pictures is
    compared in pieces of that many, in the order that it comes in: memory and time stay bounded, and what comes after
    the first piece is counted as `uncompared`.
    """
    for rows, part in runs_of(batches, ["bucket"], max_bucket):
        if rows.num_rows > 1:
            contents = np.array(rows["content"].to_pylist())
            labels = _cluster(_bytes_of(rows["gradient"], 32), _bytes_of(rows["thumbnail"], THUMBNAIL_BYTES))
            linked = np.flatnonzero(labels != np.arange(len(labels)))
            links = [contents[linked], contents[labels[linked]], np.full(len(linked), None)]
            yield pa.RecordBatch.from_arrays([pa.array(c, t) for c, t in zip(links, LINKS.types, strict=True)], schema=LINKS)
        if part:
            yield pa.RecordBatch.from_pylist([{"uncompared": rows.num_rows}], schema=LINKS)


def _cluster(gradients_N32: Bytes, thumbnails_NT: Bytes) -> Ints:
    """For each picture the first one that it is a near-duplicate of, directly or through others: [N]."""
    left, right = near_duplicate_pairs(gradients_N32, thumbnails_NT)
    labels = np.arange(len(gradients_N32))
    while True:
        before = labels.copy()
        least = np.minimum(labels[left], labels[right])
        np.minimum.at(labels, left, least)
        np.minimum.at(labels, right, least)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def near_duplicate_pairs(gradients_N32: Bytes, thumbnails_NT: Bytes) -> tuple[Ints, Ints]:
    """The pairs (left, right), left < right, that are near-duplicates, by comparing all with all."""
    words_N4 = np.ascontiguousarray(gradients_N32).view(np.uint64)
    set_N = np.bitwise_count(words_N4).sum(axis=1, dtype=np.int64)
    colours_NT = thumbnails_NT.astype(np.int16)
    count, pairs = len(words_N4), []
    step = max(1, _PAIRS_AT_ONCE // max(count, 1))
    for start in range(0, count, step):
        bits = np.bitwise_count(words_N4[start : start + step, None] ^ words_N4[None, start:]).sum(axis=2)
        bound = MAX_GRADIENT_SHARE * (set_N[start : start + step, None] + set_N[None, start:])
        left, right = np.nonzero(bits <= np.minimum(bound, MAX_GRADIENT_BITS))
        later = right > left
        left, right = left[later] + start, right[later] + start
        for piece in range(0, len(left), _PAIRS_AT_ONCE // 8):
            a, b = (side[piece : piece + _PAIRS_AT_ONCE // 8] for side in (left, right))
            close = np.abs(colours_NT[a] - colours_NT[b]).sum(axis=1, dtype=np.int64) <= MAX_THUMBNAIL_SUM
            pairs.append((a[close], b[close]))
    empty = np.zeros(0, np.int64)
    return tuple(np.concatenate([empty, *side]) for side in zip(*pairs, strict=True)) if pairs else (empty, empty)  # type: ignore[return-value]
