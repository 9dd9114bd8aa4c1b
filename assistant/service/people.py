"""Users' interests as the page shows them, and a few users to try."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from assistant.service.errors import Refused
from assistant.service.guard import Keys
from assistant.service.shapes import picture_path
from embedding.contracts import USER_INTERESTS
from embedding.index.live import FEED_ERRORS
from embedding.index.reader import Release
from embedding.tables.lake import Lake, data_files
from embedding.tables.scan import projected_schema, scan_file
from embedding.taste.graph import UnknownUserError
from embedding.taste.recommend import read_interests

SHOWN = 12
ROWS = 50_000
"""Looked at for people to try, however many there are."""


def user_interests(lake: Lake, release: Release, user_id: int, keys: Keys) -> dict[str, Any]:
    """A user's interests, most important first; `share` of all importance. Raises Refused for a user without any."""
    try:
        found = read_interests(lake, release.manifest.embedding_version, user_id)
    except UnknownUserError:
        raise Refused(404, f"nothing is known of user {user_id} yet", "save some pins first, or ask as someone else") from None
    except FEED_ERRORS:
        raise Refused(503, "the interests cannot be read at the moment", "try again", 2) from None
    total = sum(interest.importance for interest in found) or 1.0
    titles = release.describe([interest.medoid_pin for interest in found[:SHOWN]])
    rows = []
    for interest in found[:SHOWN]:
        medoid = titles.get(interest.medoid_pin)
        rows.append(
            {
                "label": interest.label or (medoid or {}).get("title") or "pins that they saved",
                "share": round(interest.importance / total, 4),
                "saves": interest.size,
                "medoid": medoid and _medoid(medoid, keys),
            }
        )
    return {"user_id": user_id, "release_id": release.manifest.release_id, "interests": rows, "more": len(found) - len(rows)}


def _medoid(row: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    picture = picture_path(row["pin_id"], row["image_uri"], keys)
    return {"pin_id": row["pin_id"], "title": row["title"] or "", "tags": row["tags"] or [], "picture": picture}


def sample_people(lake: Lake, embedding_version: str) -> list[dict[str, Any]]:
    """Some users with several interests, those with most first: of the newest day's files, as many rows as are looked at."""
    if not lake.exists(USER_INTERESTS):
        return []
    table = lake.snapshot(USER_INTERESTS)
    files = data_files(table, lambda partition: partition["embedding_version"] == embedding_version)
    schema = projected_schema(table, ["user_id", "size", "importance", "label", "revision"])
    last, of = dict[int, int](), defaultdict[int, list[tuple[float, str]]](list)
    looked = 0
    for file in sorted(files, key=lambda file: str(file.partition["ds"]), reverse=True):
        for batch in scan_file(file, schema):
            looked += batch.num_rows
            for row in batch.to_pylist():
                user = row["user_id"]
                if row["revision"] > last.get(user, row["revision"] - 1):
                    last[user], of[user] = row["revision"], []
                if row["revision"] == last[user] and row["size"]:
                    of[user].append((row["importance"], row["label"] or ""))
        if looked >= ROWS:
            break
    named = {user: _named(interests) for user, interests in of.items()}
    several = sorted((user for user in of if len(named[user]) >= 3), key=lambda user: (-len(of[user]), user))
    return [{"user_id": user, "interests": len(of[user]), "label": " · ".join(named[user][:3])} for user in several[:SHOWN]]


def _named(interests: list[tuple[float, str]]) -> list[str]:
    """The first words of the most important ones' labels, each once."""
    return list(dict.fromkeys(label.split(",")[0] for _, label in sorted(interests, reverse=True)[:6] if label))
