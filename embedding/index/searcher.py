"""Search of the live release by a vector, a pin, words or a picture, among all pins or some.

Words and pictures are encoded by the encoder that made the release's vectors, wherever a cut-over has moved it: it is taken
from the lake's store with the release, so no query is ever compared with another encoder's vectors. A vector or a pin needs no
encoder; who asks by these alone never loads one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from embedding.encoder.limits import ImageLimits
from embedding.index.live import Serving
from embedding.index.part import Criteria
from embedding.index.reader import Neighbour, Release
from embedding.index.recall import Floats
from embedding.tables.lake import Lake

if TYPE_CHECKING:
    from embedding.encoder.model import PinEncoder

_encoding = threading.Lock()
"""Of the process's one encoder: its tokenizer and its forward pass are for one query at a time."""
_opening = threading.Lock()
_opened: dict[tuple[str, str], PinEncoder] = {}
"""By lake and embedding version: what has been opened and verified."""


class Searcher:
    """Asks the live release. Thread-safe; each call asks one release alone, also while another takes its place.

        with LiveRelease(lake) as live:
            found = Searcher(lake, live).by_text("red bicycle", among=Criteria(tag="bike"))

    Every method returns the k nearest, nearest first, of the pins that `among` names; fewer where there are fewer.
    """

    def __init__(self, lake: Lake, live: Serving):
        self._lake, self._live = lake, live

    def by_vector(
        self, vector_D: Floats, embedding_version: str, k: int = 10, among: Criteria | None = None
    ) -> list[Neighbour]:
        """Of an L2-normalised vector (D,) of the encoder `embedding_version`.

        Raises ReleaseError where the live release is of another encoder, ValueError for another shape.
        """
        release = self._live.release
        release.require_version(embedding_version)
        return _nearest(release, vector_D, k, among)

    def by_pin(self, pin_id: int, k: int = 10, among: Criteria | None = None) -> list[Neighbour]:
        """Of a pin, which is left out itself. Raises KeyError for one that the release does not hold."""
        release = self._live.release
        return _nearest(release, release.vector_of(pin_id), k, among, without=pin_id)

    def by_text(self, text: str, k: int = 10, among: Criteria | None = None) -> list[Neighbour]:
        """Of words. Raises ValueError for none, EncoderStoreError where the release's encoder cannot be loaded."""
        release = self._live.release
        return _nearest(release, self.text_vector(release, text), k, among)

    def by_image(
        self, data: bytes, k: int = 10, among: Criteria | None = None, limits: ImageLimits | None = None
    ) -> list[Neighbour]:
        """Of a picture file's bytes, within the limits (of the environment, where none are given).

        Raises ImageRejected for a picture that a night would put into quarantine, EncoderStoreError as `by_text`.
        """
        release = self._live.release
        return _nearest(release, self.image_vector(release, data, limits), k, among)

    def text_vector(self, release: Release, text: str) -> Floats:
        """Words as the release's encoder sees them, (D,), L2-normalised. Raises as `by_text`."""
        if not text.strip():
            raise ValueError("the text is empty")
        encoder = self._encoder(release)
        with _encoding:
            vector: Floats = encoder.encode_texts([text])[0]
        return vector

    def image_vector(self, release: Release, data: bytes, limits: ImageLimits | None = None) -> Floats:
        """A picture as the release's encoder sees it, (D,), L2-normalised. Raises as `by_image`."""
        encoder = self._encoder(release)
        picture = encoder.decode(data, (limits or ImageLimits.from_environment()).max_pixels)
        pixels_3HW = encoder.transform(picture)
        with _encoding:
            vector: Floats = encoder.encode_images(pixels_3HW[None])[0]
        return vector

    def _encoder(self, release: Release) -> PinEncoder:
        """The release's encoder. Opened and verified by its fingerprint once a process: that reads all its weights."""
        key = (self._lake.home, release.manifest.embedding_version)
        with _opening:
            if key not in _opened:
                # Here, since torch takes seconds to import and who asks by vectors or pins has no use for it.
                from embedding.encoder.cache import shared_encoder
                from embedding.encoder.store import encoder_of_release

                opened = encoder_of_release(self._lake, release.manifest)
                release.require_version(opened.version)
                _opened[key] = shared_encoder(opened.config)
            return _opened[key]


def _nearest(release: Release, vector_D: Floats, k: int, among: Criteria | None, without: int | None = None) -> list[Neighbour]:
    selection = None if among is None else release.select(board=among.board, tag=among.tag, pin_ids=among.pin_ids)
    return release.neighbours(vector_D, k, without, selection)
