"""Which releases go: all but the last few of a version, and what killed builds left behind. An index a night fills any store.

The pointer's own (the live release, the one before it, the one before the last cut-over) never go, nor what was built after the
live one, which may be about to be published.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

from embedding.index.release import MANIFEST, Manifest, list_releases, read_pointer, release_uri
from embedding.tables import storage
from embedding.tables.lake import Lake

RELEASES_KEPT = 7
"""Of each embedding version, besides those that the pointer names: a week of nights."""
ABANDONED_AFTER = timedelta(days=2)
"""A build writes something more often than that."""


def superseded_releases(lake: Lake, keep: int = RELEASES_KEPT) -> list[Manifest]:
    """The releases that are not kept, oldest first; none while nothing is live. One that cannot be read is left alone."""
    pointer = read_pointer(lake)
    if pointer is None:
        return []
    named = {pointer.release_id, pointer.previous, pointer.cut_over_release}
    by_version: defaultdict[str, list[Manifest]] = defaultdict(list)
    releases = list_releases(lake, [])
    live_since = next((manifest.built_at for manifest in releases if manifest.release_id == pointer.release_id), "")
    for manifest in releases:
        if manifest.built_at <= live_since:
            by_version[manifest.embedding_version].append(manifest)
    older = [manifest for some in by_version.values() for manifest in some[: max(0, len(some) - keep)]]
    return [manifest for manifest in older if manifest.release_id not in named]


def delete_release(lake: Lake, release_id: str) -> None:
    """The manifest goes first: a half-deleted folder is no release. Who has it open goes on reading its mapped files."""
    root = release_uri(lake, release_id)
    storage.delete_quietly(f"{root}/{MANIFEST}")
    storage.delete_folder(root)


def abandoned_folders(lake: Lake, now: datetime | None = None) -> list[str]:
    """Folders of builds and checks that were killed: without a manifest, and with no file younger than ABANDONED_AFTER."""
    return storage.unfinished_folders(lake.releases_uri, MANIFEST, (now or datetime.now(UTC)) - ABANDONED_AFTER)
