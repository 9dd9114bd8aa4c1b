"""Changing the live embedding version: forward by a cut-over, back by a rollback. Both are one replacement of `LIVE`.

Who leaves `LIVE` becomes the *previous* version: nights keep embedding each day under it, so that going back never lands on
vectors that are days behind, until jobs/retire_encoders.py deletes it after its retention. Markers are written before the
pointer moves and removed after, so that a crash in between leaves a version kept fresh in vain, never one left behind.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from embedding.encoder.store import Role, is_retired, is_stored, mark_fresh, read_fresh, unmark_fresh
from embedding.index.release import (
    LivePointer,
    ReleaseError,
    checked_release,
    live_version,
    look_at_pointer,
    move_pointer,
    pointer_lock,
    publish,
    read_manifest,
    read_pointer,
)
from embedding.tables import storage
from embedding.tables.lake import Lake


@dataclass(frozen=True)
class Comparison:
    """The verdict on a candidate release beside the live one, and the figures that it rests on."""

    live: str
    candidate: str
    live_version: str
    candidate_version: str
    failures: list[str]
    figures: dict[str, Any]
    compared_at: str


def comparison_uri(lake: Lake, run_id: str) -> str:
    return f"{lake.run_uri('releases', run_id)}/comparison.json"


def write_comparison(lake: Lake, run_id: str, comparison: Comparison) -> None:
    storage.write_atomic(comparison_uri(lake, run_id), json.dumps(asdict(comparison), indent=1).encode())


def read_comparison(lake: Lake, run_id: str) -> Comparison:
    """Raises ReleaseError where the run has compared nothing."""
    uri = comparison_uri(lake, run_id)
    if not storage.exists(uri):
        raise ReleaseError(f"run {run_id} has compared no release: run compare_encoders.py with the same --run-id first")
    return Comparison(**json.loads(storage.read_bytes(uri)))


def cut_over(lake: Lake, release_id: str, run_id: str) -> str:
    """Makes a release of another version live. Returns what happened, for the log. Again, it changes nothing.

    Raises ReleaseError, besides as `publish` does, where the run's comparison failed or was with another live release.
    """
    new = read_manifest(lake, release_id).embedding_version
    pointer = read_pointer(lake)
    if pointer is None:
        raise ReleaseError("no release is live: publish the first one without --cut-over")
    old = live_version(lake)
    if old != new:
        comparison = read_comparison(lake, run_id)
        if comparison.candidate != release_id:
            raise ReleaseError(f"run {run_id} has compared {comparison.candidate}, not {release_id}: compare it first")
        if comparison.failures:
            raise ReleaseError(f"release {release_id} may not follow {comparison.live}: {'; '.join(comparison.failures)}")
        checked_release(lake, release_id)
        mark_fresh(lake, str(old), Role.PREVIOUS, run_id)
        message = publish(lake, release_id, run_id, cut_over=True, expected_live=comparison.live)
    else:
        message = publish(lake, release_id, run_id)
    unmark_fresh(lake, new)
    return f"{message}; {new} vectors serve" + (f" instead of {old}" if old != new else "")


def rollback_target(pointer: LivePointer) -> str:
    """The release that a rollback without a name goes to: the one before the last cut-over, without one the one before."""
    if pointer.rolled_back_at:
        raise ReleaseError(
            f"{pointer.release_id} is what was rolled back to, at {pointer.rolled_back_at}: to move again, name a release "
            "with --to (`pinlake status` lists them)"
        )
    target = pointer.cut_over_release or pointer.previous
    if target is None:
        raise ReleaseError(f"{pointer.release_id} is the first release: there is none to go back to")
    return target


def roll_back(lake: Lake, release_id: str | None, run_id: str) -> str:
    """Makes an earlier checked release live again, of whichever version. Returns what happened, for people.

    The release that is left is withdrawn: no night publishes it again. If the version changes, the one that is left is kept
    fresh as the previous one, so that a later cut-over to it finds it complete.

    Args:
        release_id: Where to; None for `rollback_target`.

    Raises:
        ReleaseError: There is no such release, it is not checked or not whole, or its version is retired.
    """
    before = _pointer(lake)
    target = release_id or rollback_target(before)
    if target == before.release_id:
        return f"{target} is live already"
    manifest, check = checked_release(lake, target)
    new, old = manifest.embedding_version, str(live_version(lake))
    if is_retired(lake, new):
        raise ReleaseError(f"release {target} is of {new}, which is retired: its vectors are deleted")
    if new != old and is_stored(lake, old):
        mark_fresh(lake, old, Role.PREVIOUS, run_id)
    with pointer_lock(lake):
        (live, tag), now = look_at_pointer(lake), datetime.now(UTC).isoformat(timespec="seconds")
        if live is None or live.release_id != before.release_id:
            raise ReleaseError("another release went live meanwhile: nothing was changed. Look at it, and ask again")
        read_manifest(lake, target)  # a retirement may have deleted it since it was checked
        withdrawn = [i for i in (*live.withdrawn, live.release_id) if i != target][-20:]
        pointer = LivePointer(target, check.manifest_sha256, new, live.release_id, run_id, now)
        if new == old:
            pointer = replace(pointer, cut_over_from=live.cut_over_from, cut_over_release=live.cut_over_release)
        pointer = replace(pointer, cut_over_at=live.cut_over_at if new == old else now, rolled_back_at=now, withdrawn=withdrawn)
        try:
            move_pointer(lake, pointer, tag)
        except storage.ChangedMeanwhileError as error:
            raise ReleaseError("another release went live meanwhile: nothing was changed. Look at it, and ask again") from error
    if new != old and read_fresh(lake, new):
        unmark_fresh(lake, new)
    what = f"{target} is live again, instead of {before.release_id}"
    return what + (f"; {new} vectors serve instead of {old}" if new != old else "")


def _pointer(lake: Lake) -> LivePointer:
    pointer = read_pointer(lake)
    if pointer is None:
        raise ReleaseError(f"no release is live under {lake.releases_uri}: there is nothing to roll back")
    return pointer
