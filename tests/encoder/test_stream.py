"""The stream: order, bounded reading, refusals as rows. A small encoder stands in, except where vectors are compared."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image

from embedding.contracts import Reason, content_sha256
from embedding.encoder.batches import OUTCOMES_A_BATCH, encode_batches
from embedding.encoder.images import decode_image
from embedding.encoder.limits import ImageLimits
from embedding.encoder.model import PinEncoder
from embedding.encoder.stream import BATCHES_AHEAD, Cores, EncodeItem, EncodeResult, encode_stream, hash_stream

LIMITS = ImageLimits()


class MeanColour:
    """An encoder whose vectors can be told in advance. `spoil` replaces the vectors of texts named so."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def transform(self, image: Image.Image) -> torch.Tensor:
        if image.height > 1000 * image.width:
            raise ValueError("height and width must be > 0")
        return torch.from_numpy(np.asarray(image).mean(axis=(0, 1)) + 1)

    def decode(self, data: bytes, max_pixels: int) -> Image.Image:
        return decode_image(data, max_pixels)

    def collate(
        self, pixels: Sequence[torch.Tensor | None], texts: Sequence[str]
    ) -> tuple[Sequence[torch.Tensor | None], Sequence[str]]:
        return pixels, texts

    def encode_batch(self, batch: tuple[Sequence[torch.Tensor | None], Sequence[str]]) -> npt.NDArray[np.float32]:
        pixels, texts = batch
        self.batches.append(len(texts))
        rows = [np.ones(3) if pixel is None else pixel.numpy() for pixel in pixels]
        vectors = np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)
        for row, text in enumerate(texts):
            vectors[row] *= {"spoil nan": np.nan, "spoil zero": 0.0, "spoil long": 1.01}.get(text, 1.0)
        return vectors


def picture(path: Path, colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (20, 10)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def run(items: Sequence[EncodeItem], **options: Any) -> list[EncodeResult]:
    return list(encode_stream(MeanColour(), items, limits=LIMITS, **options))


def test_results_come_in_order_with_hashes_of_what_was_encoded(tmp_path: Path) -> None:
    uris = [picture(tmp_path / f"{i}.png", (i, 0, 0), (1 + 400 * (i % 3), 300)) for i in range(23)]
    items = [EncodeItem(i, uri, f"text {i}") for i, uri in enumerate(uris)] + [EncodeItem(99, None, "text alone")]
    results = run(items, batch_size=4, threads=3)
    assert [result.key for result in results] == [*range(23), 99]
    for result, uri in zip(results, uris, strict=False):
        assert result.vector is not None
        red = (result.key + 1.0) / np.linalg.norm([result.key + 1.0, 1, 1])
        assert result.vector[0] == pytest.approx(red, abs=1e-6)
        digest = hashlib.sha256(Path(uri).read_bytes())
        assert result.image_sha256 == digest.hexdigest()
        assert result.content_sha256 == content_sha256(digest.digest(), f"text {result.key}")
    assert (results[-1].image_sha256, results[-1].content_sha256) == (None, content_sha256(None, "text alone"))
    hashes = list(hash_stream(items, threads=3, limits=LIMITS))
    assert [(h.key, h.content_sha256) for h in hashes] == [(r.key, r.content_sha256) for r in results]


def test_refusals_are_rows_and_cost_their_neighbours_nothing(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(Path(good).read_bytes()[:-30])
    right = content_sha256(hashlib.sha256(Path(good).read_bytes()).digest(), "t")
    cases: list[tuple[EncodeItem, Reason | None]] = [
        (EncodeItem(0, good, "t", expected_sha256=right), None),
        (EncodeItem(1, good, "t", expected_sha256="0" * 64), Reason.FETCH_FAILED),
        (EncodeItem(2, str(tmp_path / "none.png"), "t"), Reason.MISSING_IMAGE),
        (EncodeItem(3, str(tmp_path / "page.png"), ""), Reason.NOT_AN_IMAGE),
        (EncodeItem(4, str(tmp_path / "empty.png"), ""), Reason.EMPTY_IMAGE),
        (EncodeItem(5, str(tmp_path / "cut.png"), ""), Reason.TRUNCATED_IMAGE),
        (EncodeItem(6, "http://10.0.0.1/a.png", ""), Reason.UNSUPPORTED_SCHEME),
        (EncodeItem(7, None, ""), Reason.EMPTY_PIN),
        (EncodeItem(8, good, "spoil nan"), Reason.INVALID_VECTOR),
        (EncodeItem(9, good, "spoil zero"), Reason.INVALID_VECTOR),
        (EncodeItem(10, good, "spoil long"), Reason.INVALID_VECTOR),
        (EncodeItem(11, picture(tmp_path / "line.png", size=(1, 2000)), ""), Reason.DECODE_FAILED),
        (EncodeItem(12, good, ""), None),
    ]
    results = run([item for item, _ in cases], batch_size=3)
    assert [(result.key, result.reason) for result in results] == [(item.key, reason) for item, reason in cases]
    assert all((result.vector is None) == bool(result.reason) == bool(result.detail) for result in results)
    assert "changed while reading" in str(results[1].detail)
    assert results[5].content_sha256 is not None  # readable, though not decodable: quarantine can name the content
    assert [h.reason for h in hash_stream([cases[2][0], cases[5][0]], limits=LIMITS)] == [Reason.MISSING_IMAGE, None]


def test_an_endless_input_is_read_a_few_batches_ahead(tmp_path: Path) -> None:
    uri = picture(tmp_path / "a.png")
    taken = 0

    def endless() -> Iterator[EncodeItem]:
        nonlocal taken
        for taken in itertools.count(1):
            yield EncodeItem(taken, uri, "")

    threads = threading.active_count()
    encoder = MeanColour()
    stream = encode_stream(encoder, endless(), batch_size=5, limits=LIMITS)
    assert taken == 0
    for seen, _ in enumerate(itertools.islice(stream, 101), start=1):
        assert taken - seen < 5 * (BATCHES_AHEAD + 1)
    assert set(encoder.batches) == {5}
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    assert run([]) == []
    assert list(hash_stream([])) == []


def test_faults_of_the_caller_and_of_the_machine_are_raised(tmp_path: Path) -> None:
    class Broken(MeanColour):
        def encode_batch(self, batch: object) -> npt.NDArray[np.float32]:
            raise RuntimeError("CUDA error: out of memory")

    def failing() -> Iterator[EncodeItem]:
        yield EncodeItem(1, None, "text")
        raise OSError("the input broke off")

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="CUDA"):
        list(encode_stream(Broken(), [EncodeItem(1, picture(tmp_path / "a.png"), "")], limits=LIMITS))
    with pytest.raises(OSError, match="the input broke off"):
        list(encode_stream(MeanColour(), failing(), limits=LIMITS))
    with pytest.raises(ValueError, match="batch_size"):
        run([], batch_size=0)
    assert threading.active_count() == threads


def test_the_real_encoder_gives_one_vector_whatever_the_batch(tmp_path: Path, encoder: PinEncoder) -> None:
    uris = [picture(tmp_path / f"{i}.png", (40 * i, 90, 255 - 40 * i), (100 + 40 * i, 120)) for i in range(5)]
    items = [EncodeItem(i, None if i == 3 else uri, "" if i == 1 else f"picture {i} " * (i + 1)) for i, uri in enumerate(uris)]
    by_size = [list(encode_stream(encoder, items, batch_size=size, limits=LIMITS)) for size in (1, 5)]
    for one, many in zip(*by_size, strict=True):
        assert one.vector is not None
        assert many.vector is not None
        np.testing.assert_allclose(one.vector, many.vector, atol=1e-5)


def test_a_content_that_thousands_of_pins_show_comes_out_in_batches(encoder: PinEncoder) -> None:
    pins = [{"pin_id": number, "source_sha256": "s", "image_uri": None} for number in range(3 * OUTCOMES_A_BATCH + 1)]
    content = {"content_sha256": content_sha256(None, "a hat"), "image_uri": None, "text": "a hat", "pins": pins}
    batches = list(
        encode_batches(
            [pa.RecordBatch.from_pylist([content])], encoder.config, "run", batch_size=2, device="cpu", cores=1, limits=LIMITS
        )
    )
    assert [batch.num_rows for batch in batches] == [*[OUTCOMES_A_BATCH] * 3, 1]
    assert [pin for batch in batches for pin in batch.column("pin_id").to_pylist()] == list(range(len(pins)))


def test_a_forward_pass_on_the_cores_and_decoding_never_take_more_than_there_are(tmp_path: Path) -> None:
    """And no two that want all of them wait for each other for ever."""
    cores, busy, most, lock = Cores(3), 0, 0, threading.Lock()

    def hold(count: int) -> None:
        nonlocal busy, most
        for _ in range(200):
            with cores.all() if count == 3 else cores.one():
                with lock:
                    busy += count
                    most = max(most, busy)
                with lock:
                    busy -= count

    workers = [threading.Thread(target=hold, args=(count,)) for count in (1, 1, 1, 1, 3, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert most == 3


def test_a_scaled_jpeg_is_as_near_as_its_margin_and_a_broken_one_has_its_reason(tmp_path: Path, encoder: PinEncoder) -> None:
    dice = np.random.default_rng(0)
    big = Image.fromarray(dice.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((3200, 2400), Image.Resampling.BICUBIC)
    for name in ("a.jpg", "b.png"):
        big.save(tmp_path / name)
    assert encoder.decode((tmp_path / "a.jpg").read_bytes(), LIMITS.max_pixels).size == (800, 600)  # twice 224, no less
    assert encoder.decode((tmp_path / "b.png").read_bytes(), LIMITS.max_pixels).size == (3200, 2400)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:60_000])
    items = [EncodeItem(i, str(tmp_path / name), "") for i, name in enumerate(("a.jpg", "b.png", "cut.jpg"))]
    scaled, whole, cut = encode_stream(encoder, items, limits=LIMITS)
    assert scaled.vector is not None
    assert whole.vector is not None
    assert scaled.vector @ whole.vector > 0.99
    assert (cut.vector, cut.reason) == (None, Reason.TRUNCATED_IMAGE)
