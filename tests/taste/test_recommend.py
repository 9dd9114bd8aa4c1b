"""Recommendations from the demo's lake, after its graph and interests were built."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from embedding.cli import main as pinlake
from embedding.contracts import USER_INTERESTS
from embedding.index.live import LiveRelease
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from embedding.taste.graph import GraphError, UnknownUserError
from embedding.taste.recommend import DUPLICATE, Recommender, diversity, read_interests


@pytest.fixture(scope="module")
def lake(lake_with_interests: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy of the lake with a live graph and everybody's interests, of which a test takes the graph away for a while."""
    lake = Lake(str(tmp_path_factory.mktemp("recommend") / "lake"))
    shutil.copytree(lake_with_interests.home, lake.home)
    return lake


@pytest.fixture(scope="module")
def users(lake: Lake) -> list[int]:
    """Users with several interests, those with most first."""
    rows = read_rows(lake.open(USER_INTERESTS), ["user_id", "size"]).to_pylist()
    found = [row["user_id"] for row in rows if row["size"]]
    return sorted({user for user in found if found.count(user) >= 2}, key=lambda user: (-found.count(user), user))


def test_a_user_gets_new_pins_of_several_interests_each_with_a_reason(lake: Lake, users: list[int]) -> None:
    live = LiveRelease(lake)
    recommender = Recommender(lake, live)
    assert users
    for user in users[:5]:
        interests = read_interests(lake, live.release.manifest.embedding_version, user)
        found = recommender.recommend(user, k=12)
        pins = [r.pin_id for r in found]
        assert len(pins) == len(set(pins)) == 12
        assert not set(pins) & {pin for interest in interests for pin in interest.pins.tolist()}
        assert len({r.cluster for r in found}) >= 2
        named = {interest.cluster: interest.label or "pins that you saved" for interest in interests}
        assert all(r.why.endswith(named[r.cluster]) for r in found)
        vectors = live.release.vectors_of(np.array(pins))
        cosines = vectors @ vectors.T - 2 * np.eye(len(pins))
        assert cosines.max() < DUPLICATE + 1e-3, "no near-duplicates"
        assert 0 < diversity(vectors) < 1.2
        assert found == recommender.recommend(user, k=12)


def test_the_commands_say_what_they_find_and_what_they_cannot(
    lake: Lake, users: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pinlake(["--home", lake.home, "interests", "--user", str(users[0])]) == 0
    assert "importance" in capsys.readouterr().out
    assert pinlake(["--home", lake.home, "recommend", "--user", str(users[0]), "-k", "5"]) == 0
    said = capsys.readouterr().out
    assert "your" in said and "diversity" in said
    pin = read_interests(lake, LiveRelease(lake).release.manifest.embedding_version, users[0])[0].medoid_pin
    assert pinlake(["--home", lake.home, "related", "--pin", str(pin)]) == 0
    assert "visits" in capsys.readouterr().out
    assert pinlake(["--home", lake.home, "recommend", "--user", "-7"]) == 2
    assert "user -7 has no interests" in capsys.readouterr().err
    assert pinlake(["--home", lake.home, "related", "--pin", "-7"]) == 2
    assert "pin -7 is on no board" in capsys.readouterr().err


def test_without_a_graph_there_are_neighbours_and_no_walks(lake: Lake, released_lake: Lake, users: list[int]) -> None:
    from embedding.tables import storage

    live = LiveRelease(lake)
    bare = LiveRelease(released_lake)
    with pytest.raises(GraphError, match="no live graph"):
        Recommender(released_lake, bare).related(1)
    with pytest.raises(UnknownUserError, match="run jobs/build_interests"):
        Recommender(released_lake, bare).recommend(users[0])
    pointer = f"{lake.home}/graphs/LIVE"
    data = storage.read_bytes(pointer)
    storage.delete_quietly(pointer)
    try:
        found = Recommender(lake, live).recommend(users[0], k=5)
        assert found and all(r.why.startswith("from your boards") for r in found)
    finally:
        storage.write_atomic(pointer, data)
