"""Users as one vector on the demo's lake: trained once, read night after night, and forgotten."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from demo.days import DEMO_DAYS
from embedding.contracts import PIN_EMBEDDINGS, SAVES, USER_EMBEDDINGS
from embedding.index.release import ReleaseError
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from embedding.taste.sequence import History
from embedding.taste.user_models import live_user_model, looked_at, open_user_model, read_user_manifest
from tests.jobs.test_interests import saved_pins


def train(lake: Lake, *args: str) -> None:
    from jobs import train_users

    train_users.main(["--home", lake.home, "--run-id", "train", "--rounds", "2", *args])


def embed(lake: Lake, run_id: str, *args: str) -> None:
    from jobs import embed_users

    embed_users.main(["--home", lake.home, "--run-id", run_id, *args])


def version_of(lake: Lake) -> str:
    (version,) = {row["embedding_version"] for row in read_rows(lake.open(PIN_EMBEDDINGS), ["embedding_version"]).to_pylist()}
    return str(version)


def live(lake: Lake) -> str:
    return str(live_user_model(lake, version_of(lake)))


def current(lake: Lake) -> dict[int, dict[str, Any]]:
    """By user the row of the latest day."""
    rows = sorted(read_rows(lake.open(USER_EMBEDDINGS)).to_pylist(), key=lambda row: row["ds"])
    return {row["user_id"]: row for row in rows}


@pytest.fixture(scope="module")
def lake(lake_of_three_nights: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy of the lake of three nights, a model of the second day, and the users of the second day and of the third."""
    lake = Lake(str(tmp_path_factory.mktemp("users") / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    with pytest.raises(ReleaseError, match="train_users"):
        embed(lake, "too soon")
    train(lake, "--ds", DEMO_DAYS[1])
    embed(lake, "second", "--ds", DEMO_DAYS[1])
    embed(lake, "third")
    return lake


def histories(lake: Lake) -> dict[int, History]:
    """By user the saves of living pins, by the tables' definition, newest first."""
    vectors = {
        row["pin_id"]: row["embedding"]
        for row in sorted(read_rows(lake.open(PIN_EMBEDDINGS)).to_pylist(), key=lambda row: row["ds"])
    }
    saved: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in sorted(read_rows(lake.open(SAVES)).to_pylist(), key=lambda row: row["ds"]):
        saved[row["user_id"], row["pin_id"], row["board_id"]] = row
    times: dict[int, dict[int, int]] = defaultdict(dict)
    current_saves = saved_pins(lake)
    for (user, pin, _), row in saved.items():
        if not row["deleted"] and pin in current_saves[user]:
            minute = int(row["saved_at"].timestamp()) // 60
            times[user][pin] = max(minute, times[user].get(pin, 0))
    found = {}
    for user, of_pin in times.items():
        pins = sorted(of_pin, key=lambda pin: (of_pin[pin], pin), reverse=True)[:128]
        vectors_ND = np.array([vectors[pin] for pin in pins], np.float32)
        minutes = np.array([of_pin[pin] for pin in pins])
        found[user] = History(user, np.array(pins), minutes, vectors_ND, vectors_ND, np.zeros(len(pins), np.float32))
    return found


def test_a_model_is_trained_once_a_week(lake: Lake) -> None:
    version, name = version_of(lake), live(lake)
    manifest = read_user_manifest(lake, version, name)
    assert (manifest.ds, manifest.embedding_version) == (DEMO_DAYS[1], version)
    assert manifest.users and manifest.judged
    assert max(manifest.learned, manifest.start) >= manifest.mean or manifest.round == 0
    assert not list(Path(lake.home, "user_models", version).glob(".staged-*"))
    train(lake)  # a day later
    assert (live(lake), looked_at(lake, version)) == (name, DEMO_DAYS[1])


def test_every_user_is_what_the_model_reads_in_their_saves(lake: Lake) -> None:
    rows, expected = current(lake), histories(lake)
    assert {user for user, row in rows.items() if row["size"]} == set(expected)
    users = sorted(expected)
    vectors_BD = open_user_model(lake, version_of(lake), live(lake)).encode(
        [expected[user] for user in users], version_of(lake)
    )
    assert np.allclose([rows[user]["embedding"] for user in users], vectors_BD, atol=1e-5)
    assert np.allclose(np.linalg.norm(vectors_BD, axis=1), 1, atol=1e-5)
    assert all(rows[user]["size"] == len(expected[user]) for user in users)


def test_a_night_reads_only_those_whose_history_changed(lake: Lake) -> None:
    rows = read_rows(lake.open(USER_EMBEDDINGS)).to_pylist()
    by_day = {ds: {(row["user_id"], row["history_hash"]) for row in rows if row["ds"] == ds} for ds in DEMO_DAYS[1:]}
    assert by_day[DEMO_DAYS[1]] and by_day[DEMO_DAYS[2]] and not by_day[DEMO_DAYS[1]] & by_day[DEMO_DAYS[2]]
    assert len(by_day[DEMO_DAYS[2]]) < len(by_day[DEMO_DAYS[1]])


def told(lake: Lake) -> list[tuple[Any, ...]]:
    names = ("user_id", "ds", "user_model", "history_hash", "size", "embedding")
    rows = read_rows(lake.open(USER_EMBEDDINGS)).to_pylist()
    return sorted((tuple(row[name] for name in names) for row in rows), key=str)


def test_the_same_state_again_gives_the_same_rows(lake: Lake) -> None:
    before = told(lake)
    embed(lake, "again")
    assert told(lake) == before


def test_another_model_reads_everyone_anew_and_who_took_back_every_save_has_no_vector(lake: Lake, tmp_path: Path) -> None:
    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    user = min(user for user, row in current(copy).items() if row["ds"] == DEMO_DAYS[1] and row["size"])
    rows = {
        (row["pin_id"], row["board_id"]): row
        for row in sorted(read_rows(copy.open(SAVES)).to_pylist(), key=lambda row: row["ds"])
        if row["user_id"] == user
    }
    taken = [row | {"deleted": True, "ds": DEMO_DAYS[-1]} for row in rows.values()]
    write_deltalake(
        copy.table_uri(SAVES),
        pa.Table.from_pylist(taken, SAVES.schema),
        mode="overwrite",
        predicate=f"user_id = {user} AND ds = '{DEMO_DAYS[-1]}'",
    )
    train(copy, "--every-days", "0", "--seed", "5")
    assert looked_at(copy, version_of(copy)) == DEMO_DAYS[2]
    embed(copy, "forget")
    now = current(copy)
    assert (now[user]["size"], now[user]["embedding"], now[user]["ds"]) == (0, None, DEMO_DAYS[2])
    assert {row["user_model"] for row in now.values() if row["size"]} == {live(copy)}
    assert set(now) == set(current(lake))
