"""Search of the live release by a vector, a pin, words or a picture, among all pins or some.

Words and pictures are encoded by the encoder that made the release's vectors, wherever a cut-over has moved it: it is taken
from the lake's store with the release, so no query is ever compared with another encoder's vectors. A vector or a pin needs no
encoder; who asks by these alone never loads one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding.encoder.limits import ImageLimits
from embedding.index.live import LiveRelease
from embedding.index.part import Criteria
from embedding.index.reader import Neighbour, Release
from embedding.index.recall import Floats
from embedding.tables.lake import Lake

if TYPE_CHECKING:
    from embedding.encoder.model import PinEncoder


class Searcher:
    """Asks the live release. Thread-safe; each call asks one release alone, also while another takes its place.

        with LiveRelease(lake) as live:
            found = Searcher(lake, live).by_text("red bicycle", among=Criteria(tag="bike"))

    Every method returns the k nearest, nearest first, of the pins that `among` names; fewer where there are fewer.
    """

    def __init__(self, lake: Lake, live: LiveRelease):
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
        if not text.strip():
            raise ValueError("the text is empty")
        release = self._live.release
        return _nearest(release, self._encoder(release).encode_texts([text])[0], k, among)

    def by_image(
        self, data: bytes, k: int = 10, among: Criteria | None = None, limits: ImageLimits | None = None
    ) -> list[Neighbour]:
        """Of a picture file's bytes, within the limits (of the environment, where none are given).

        Raises ImageRejected for a picture that a night would put into quarantine, EncoderStoreError as `by_text`.
        """
        release = self._live.release
        encoder = self._encoder(release)
        picture = encoder.decode(data, (limits or ImageLimits.from_environment()).max_pixels)
        return _nearest(release, encoder.encode_images(encoder.transform(picture)[None])[0], k, among)

    def _encoder(self, release: Release) -> PinEncoder:
        # Here, since torch takes seconds to import and who asks by vectors or pins has no use for it.
        from embedding.encoder.cache import shared_encoder
        from embedding.encoder.store import encoder_of_release

        opened = encoder_of_release(self._lake, release.manifest)
        release.require_version(opened.version)
        return shared_encoder(opened.config)


def _nearest(release: Release, vector_D: Floats, k: int, among: Criteria | None, without: int | None = None) -> list[Neighbour]:
    selection = None if among is None else release.select(board=among.board, tag=among.tag, pin_ids=among.pin_ids)
    return release.neighbours(vector_D, k, without, selection)
