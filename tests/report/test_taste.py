"""The report's part about taste: what is current, what the map shows, and what is said where something is missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedding.contracts import USER_INTERESTS
from embedding.report.interest_map import group, place, telling_tags
from embedding.report.taste import current_users, sample_interests, users_to_show
from embedding.tables.lake import Lake
from embedding.taste.checks import TasteCheck, last_checks, write_check
from embedding.taste.graph import Increment
from embedding.taste.interests import Floats, Ids
from embedding.taste.store import graph_uri, read_manifest, write_manifest
from tests.report.conftest import DAYS, GRAPH, HOSTILE, VERSION, append, interest, taste_check
from tests.report.test_page import report

INTERESTS = 1 + 2 + 3 + 4 + 5 + 6
"""Current ones of the fixture: user n has n."""


def test_says_what_the_graph_and_the_gate_say(taste_lake: Lake, tmp_path: Path) -> None:
    _, page = report(taste_lake, tmp_path)
    assert "The night of 18 November 2026 was good" in page.text
    assert f"live {GRAPH} , of 2 days" in page.text
    assert f"passed the last check, of 18 November 2026, {GRAPH}" in page.text
    for fact in ("Edges 1,234 1,000 500 to 1,500", "Interests a user 3.50 3.00 1.50 to 4.50", "their history 6 – 6"):
        assert fact in page.text
    for chart in ("Edges of the graph", "Interests a user", "Rows that a day wrote"):
        assert chart in page.text
    assert f"{DAYS[2]}: 1,234, passed; let through were 500 to 1,500" in page.text


def test_says_what_a_graph_was_made_from(taste_lake: Lake, tmp_path: Path) -> None:
    manifest = read_manifest(taste_lake, GRAPH)
    write_manifest(taste_lake, replace(manifest, why_whole="no graph of the night before is there"))
    assert "Built whole: no graph of the night before is there." in report(taste_lake, tmp_path)[1].text
    sides = {"pins": 0, "boards": 0}
    made = Increment("2026-11-17-0123456789ab", 1_200, 34, sides, sides, sides, sides)
    write_manifest(taste_lake, replace(manifest, increment=made))
    assert "Made from 2026-11-17-0123456789ab: 1,200 edges added, 34 removed." in report(taste_lake, tmp_path)[1].text


def test_every_current_interest_is_a_dot_and_nothing_hostile_becomes_markup(taste_lake: Lake, tmp_path: Path) -> None:
    source, page = report(taste_lake, tmp_path)
    drawing = source[source.index('<div class="map">') :]
    assert drawing[: drawing.index("</svg>")].count("<circle") == INTERESTS
    assert f"{INTERESTS} interests of everybody" in page.text
    assert f"{HOSTILE}: user 6, 2 pins" in page.text, "the label is to be seen, as text"
    assert "<script" not in source and "of old" not in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_profiles_have_pictures_and_reasons(taste_lake: Lake, tmp_path: Path) -> None:
    source, page = report(taste_lake, tmp_path)
    for said in ("User 6 6 interests in 12 pins", "User 3 3 interests in 6 pins", "User 1 1 interest in 2 pins"):
        assert said in page.text
    assert page.text.count("What we would show diversity") == 3
    assert "from your boards: tag 0, of everything" in page.text
    profiles = source[source.index('<div class="profile card">') :]
    assert profiles.count('src="data:image/webp;base64,') > 20
    assert "what walks from it pass most often" in page.text


def test_what_is_current_is_told_from_the_newest_days_alone(taste_lake: Lake) -> None:
    users = current_users(taste_lake, VERSION)
    assert dict(zip(users.user_ids.tolist(), users.interests.tolist(), strict=True)) == {n: n for n in range(1, 7)}
    assert users.pins.tolist() == (2 * users.interests).tolist() and users.whole
    newest = current_users(taste_lake, VERSION, most_rows=1)
    assert set(newest.user_ids.tolist()) == {1, 2, 4, 5, 6} and not newest.whole
    assert not len(current_users(taste_lake, "pinclip-other-0123456789ab").user_ids)


def test_of_a_day_the_rows_of_the_last_revision_are_current(taste_lake: Lake) -> None:
    within_the_day = [interest(6, cluster, DAYS[2], revision=7, label="just now") for cluster in range(2)]
    append(taste_lake, USER_INTERESTS, within_the_day)
    users = current_users(taste_lake, VERSION)
    sample = sample_interests(taste_lake, users)
    assert users.interests[users.user_ids == 6].tolist() == [2] and sample is not None
    assert {sample.labels[i] for i in np.flatnonzero(sample.user_ids == 6)} == {"just now"}


def test_a_sample_has_whole_users_the_same_ones_every_day(taste_lake: Lake) -> None:
    users = current_users(taste_lake, VERSION)
    every, some = sample_interests(taste_lake, users), sample_interests(taste_lake, users, most=12)
    assert every is not None and some is not None and len(every) == INTERESTS > len(some) > 0
    assert all(count == user for user, count in Counter(some.user_ids.tolist()).items())
    of_3 = every.importances[every.user_ids == 3]
    assert of_3 == pytest.approx(np.array([2.0, 1.9, 1.8]) * np.exp(-0.01 * 2)), "importance of two days before, as of today"
    append(taste_lake, USER_INTERESTS, [interest(8, 0, DAYS[2])])
    again = sample_interests(taste_lake, current_users(taste_lake, VERSION), most=12)
    assert again is not None and len({*some.user_ids.tolist()} - {*again.user_ids.tolist()}) <= 1


def test_users_of_different_numbers_of_interests_are_shown(taste_lake: Lake) -> None:
    users = current_users(taste_lake, VERSION)
    assert users_to_show(users) == [6, 3, 1]
    assert users_to_show(users, (500, 6, 6, 6)) == [6, 5, 4, 3]
    assert users_to_show(current_users(taste_lake, "pinclip-other-0123456789ab")) == []


def test_a_graph_that_failed_its_check_is_said_first(taste_lake: Lake, tmp_path: Path) -> None:
    write_check(taste_lake, taste_check("2026-11-19", "bad", ["12 pins of the graph have no row of related pins"], no_row=12))
    _, page = report(taste_lake, tmp_path)
    assert "passed, but 1 thing needs a look" in page.text
    assert "the taste graph of 19 November 2026 failed its check (12 pins of the graph have no row" in page.text
    assert f"{GRAPH} is still read" in page.text


def test_without_a_graph_or_interests_there_is_a_sentence(lake: Lake, empty_lake: Lake, tmp_path: Path) -> None:
    assert "There is no graph and nobody's interests are known yet" in report(lake, tmp_path)[1].text
    append(lake, USER_INTERESTS, [interest(1, 0, DAYS[2])])
    _, page = report(lake, tmp_path)
    assert "No graph is live." in page.text and "No check of a graph is noted." in page.text
    assert "1 interest of everybody" in page.text and "What we would show" in page.text


def test_what_is_damaged_is_said_and_the_rest_shows(taste_lake: Lake, tmp_path: Path) -> None:
    path = next(Path(graph_uri(taste_lake, GRAPH)).glob("*/pins-00000-neighbours.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (Path(taste_lake.run_uri(DAYS[2], "half")) / "taste.json").parent.mkdir(parents=True)
    (Path(taste_lake.run_uri(DAYS[2], "half")) / "taste.json").write_text('{"ds": "2026-11-18"}')
    _, page = report(taste_lake, tmp_path)
    assert "The live graph cannot be opened: pins-00000-neighbours.npy" in page.text
    assert "the taste graph's check of run half cannot be read" in page.text
    assert "User 6 6 interests in 12 pins" in page.text and "What we would show" not in page.text
    (Path(taste_lake.home) / "graphs" / "LIVE").write_text("not json")
    assert "the live graph cannot be read" in report(taste_lake, tmp_path)[1].text


def test_checks_come_in_the_order_of_their_making_and_the_newest_days_alone(empty_lake: Lake) -> None:
    faults: list[str] = []
    assert last_checks(empty_lake, faults) == []
    checks = [taste_check(f"2026-11-{day:02d}", f"run/{day}") for day in (3, 1, 2)]
    for check in checks:
        write_check(empty_lake, check)
    assert [check.ds[-2:] for check in last_checks(empty_lake, faults)] == ["01", "02", "03"]
    assert [check.ds[-2:] for check in last_checks(empty_lake, faults, days=1)] == ["03"]
    assert last_checks(empty_lake, faults)[-1] == checks[0] and faults == []
    assert checks[0].bounds(3.0) == (1.5, 4.5) and checks[0].bounds(None) is None
    with pytest.raises(ValueError, match="no check of a taste graph"):
        TasteCheck.from_json(b"[]")


# -- the map ---------------------------------------------------------------------------------------------------------------


def planted(groups: int, each: int, spread: float, dim: int = 32) -> tuple[Floats, Ids]:
    """Vectors around some directions, and which of these each is around."""
    rng = np.random.default_rng(3)
    of = np.repeat(np.arange(groups), each)
    vectors = rng.normal(size=(groups, dim))[of] + spread * rng.normal(size=(groups * each, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), of


def test_neighbours_on_the_map_are_of_one_kind() -> None:
    vectors, of = planted(12, 25, spread=0.6)
    at = place(vectors)
    assert at.shape == (300, 2) and at.min() >= 0 and at.max() <= 1
    distances = np.linalg.norm(at[:, None] - at[None, :], axis=2) + 9 * np.eye(300)
    assert (of[distances.argmin(axis=1)] == of).mean() > 0.95
    centred = vectors - vectors.mean(axis=0)
    components = (centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)[:, None]
    distances = np.linalg.norm(components - components.swapaxes(0, 1), axis=2) + 9 * np.eye(300)
    assert (of[distances.argmin(axis=1)] == of).mean() < 0.8, "two components alone mix them"
    assert np.array_equal(at, place(vectors)), "the same interests, the same map"


@pytest.mark.parametrize("count", [1, 2, 3, 25, 60])
def test_few_interests_and_equal_ones_have_places_too(count: int) -> None:
    vectors, _ = planted(1, count, spread=0.4)
    for every in (vectors, np.repeat(vectors[:1], count, axis=0)):
        at = place(every)
        assert at.shape == (count, 2) and np.isfinite(at).all()
        assert group(every).max() < max(1, count // 3)


def test_groups_are_those_that_were_planted_the_largest_first() -> None:
    vectors, of = planted(8, 30, spread=0.15)
    vectors, of = vectors[10:], of[10:]  # the first is the smallest
    found = group(vectors)
    assert len({*zip(of.tolist(), found.tolist(), strict=True)}) == 8
    assert {*found[of == 0].tolist()} == {7}


def test_a_group_is_named_by_what_tells_it_from_the_others() -> None:
    labels = ["ship, sea", "ship, sea", "cat, sea", "cat, pet", None, None]
    assert telling_tags(labels, np.array([0, 0, 1, 1, 2, 2])) == ["ship, sea", "cat, pet", "without tags"]
