"""Saves as they happen: what the stream makes of them is what the night makes of them."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.days import DEMO_DAYS
from embedding.contracts import EXPORT_SCHEMAS, SAVES, SUCCESS_MARKER, USER_INTERESTS, export_day_folder
from embedding.tables.lake import Lake, partition_is
from embedding.tables.scan import read_rows
from embedding.taste.recommend import read_interests
from tests.conftest import RunNight

DAY_4 = (date.fromisoformat(DEMO_DAYS[-1]) + timedelta(days=1)).isoformat()
NEW_USER, UNKNOWN_PIN = 77, 10**15
Save = dict[str, Any]


def interests(lake: Lake, run_id: str, *args: str) -> None:
    from jobs import build_interests

    build_interests.main(["--home", lake.home, "--run-id", run_id, *args])


class Stream:
    """A folder of events, and the program that follows it."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        self.lake, self.events, self.checkpoint, self.files = lake, folder / "events", folder / "checkpoint", 0
        self.events.mkdir(parents=True)

    def put(self, lines: Iterable[Save | str]) -> None:
        self.files += 1
        unfinished = self.events.parent / "unfinished"
        said = [line if isinstance(line, str) else json.dumps(line, default=lambda time: time.isoformat()) for line in lines]
        unfinished.write_text("\n".join(said))
        unfinished.rename(self.events / f"{self.files:03d}.jsonl")

    def follow(self) -> None:
        from jobs import follow_saves

        places = ["--events", str(self.events), "--checkpoint", str(self.checkpoint)]
        follow_saves.main(["--home", self.lake.home, "--run-id", "follower", *places, "--once"])


@pytest.fixture(scope="module")
def lake(lake_of_three_nights: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy of the lake of three nights, with the interests of the last."""
    lake = Lake(str(tmp_path_factory.mktemp("stream") / "lake"))
    shutil.copytree(lake_of_three_nights.home, lake.home)
    interests(lake, "third")
    return lake


@pytest.fixture
def stream(lake: Lake, tmp_path: Path) -> Stream:
    copy = Lake(str(tmp_path / "lake"))
    shutil.copytree(lake.home, copy.home)
    return Stream(copy, tmp_path / "stream")


def at(minute: int, seconds: int = 0) -> datetime:
    return datetime.fromisoformat(DAY_4).replace(tzinfo=UTC) + timedelta(hours=9, minutes=minute, seconds=seconds)


def save(user: int, pin: int, when: datetime, board: int = 1, deleted: bool = False) -> Save:
    return {"user_id": user, "pin_id": pin, "board_id": board, "saved_at": when, "deleted": deleted}


def profiles(lake: Lake) -> dict[int, list[dict[str, Any]]]:
    """By user the current rows of `user_interests`."""
    rows = read_rows(lake.open(USER_INTERESTS)).to_pylist()
    last: dict[int, tuple[str, int]] = {}
    for row in rows:
        last[row["user_id"]] = max(last.get(row["user_id"], ("", 0)), (row["ds"], row["revision"]))
    found = defaultdict(list)
    for row in rows:
        if (row["ds"], row["revision"]) == last[row["user_id"]]:
            found[row["user_id"]].append({name: row[name] for name in row if name not in ("revision", "run_id")})
    return {user: sorted(rows, key=lambda row: row["cluster"]) for user, rows in found.items()}


def saves_of(lake: Lake) -> dict[int, dict[int, set[int]]]:
    """By user and pin the boards that it is on."""
    latest = {
        (row["user_id"], row["pin_id"], row["board_id"]): row["deleted"]
        for row in sorted(read_rows(lake.open(SAVES)).to_pylist(), key=lambda row: row["ds"])
    }
    found: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for (user, pin, board), deleted in latest.items():
        if not deleted:
            found[user][pin].add(board)
    return found


def a_day(lake: Lake) -> list[list[Save]]:
    """Two batches of a day: new saves, saves taken back, one both; a user who comes, one who goes, a pin that nobody knows."""
    users = {user: rows for user, rows in sorted(profiles(lake).items()) if rows[0]["size"]}
    pins = {user: [pin for row in rows for pin in row["pins"]] for user, rows in users.items()}
    boards = saves_of(lake)
    by_size = sorted(pins, key=lambda user: len(pins[user]))
    one, other, third = by_size[-3:]
    leaver = next(user for user in by_size if all(len(boards[user][pin]) == 1 for pin in pins[user]))
    back = next(pin for pin in pins[other] if len(boards[other][pin]) == 1)
    taken = [save(leaver, pin, at(2), min(boards[leaver][pin]), deleted=True) for pin in pins[leaver]]
    new = [pin for pin in pins[third] if pin not in pins[one]]
    first = [save(one, pin, at(minute)) for minute, pin in enumerate(new[:4])]
    first += [save(other, back, at(1), min(boards[other][back]), deleted=True), save(other, UNKNOWN_PIN, at(3))]
    second = [save(one, new[0], at(20, 40), deleted=True), save(one, new[4], at(21))]
    second += [save(one, new[1], at(25, 10), deleted=True), save(one, new[1], at(25, 50))]  # and saved again
    second += [*taken, *(save(NEW_USER, pin, at(30)) for pin in pins[one][:3])]
    return [first, second]


def export(folder: Path, saves: list[Save]) -> None:
    """A day's export of nothing but saves: of each its last state."""
    day = Path(export_day_folder(str(folder), DAY_4))
    last = {(row["user_id"], row["pin_id"], row["board_id"]): row for row in sorted(saves, key=lambda row: row["saved_at"])}
    for name, rows in (("pins", []), ("boards", []), ("saves", list(last.values()))):
        (day / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, EXPORT_SCHEMAS[name]), day / name / "part-0.parquet")
    (day / SUCCESS_MARKER).touch()


def test_the_stream_and_the_night_make_the_same_interests(stream: Stream, run_night: RunNight, tmp_path: Path) -> None:
    lake, before, batches = stream.lake, profiles(stream.lake), a_day(stream.lake)
    for batch in batches:
        stream.put(batch)
        stream.follow()
    streamed = profiles(lake)
    changed = {user for user in streamed if streamed[user] != before.get(user)}
    assert changed == {row["user_id"] for batch in batches for row in batch}
    assert len({rows[0]["size"] == 0 for user, rows in streamed.items() if user in changed}) == 2, "one has nothing left"
    version = streamed[NEW_USER][0]["embedding_version"]
    assert sum(interest.size for interest in read_interests(lake, version, NEW_USER)) == 3

    export(tmp_path / "exports", [row for batch in batches for row in batch])
    assert run_night(lake, DAY_4, "night-4", folder=tmp_path / "exports") == 0
    interests(lake, "fourth")
    assert profiles(lake) == streamed
    rows = read_rows(lake.open(USER_INTERESTS), ["revision", "run_id"], partition_is(ds=DAY_4, embedding_version=version))
    assert set(zip(*rows.to_pydict().values(), strict=True)) == {(0, "fourth")}, "the night has replaced what was streamed"


def test_a_batch_is_added_once_however_often_the_program_dies(stream: Stream) -> None:
    first, second = a_day(stream.lake)
    stream.put(first)
    stream.follow()
    stream.put(second)
    stream.follow()
    count, found = len(read_rows(stream.lake.open(USER_INTERESTS))), profiles(stream.lake)
    # Killed after the commit, before Spark had noted it: it handles the batch again.
    for name in ("1", ".1.crc"):
        (stream.checkpoint / "commits" / name).unlink()
    stream.follow()
    assert len(read_rows(stream.lake.open(USER_INTERESTS))) == count
    # Its notes lost: everything again, as a stream of its own. Nothing changes, for nothing is new.
    shutil.rmtree(stream.checkpoint)
    stream.follow()
    assert profiles(stream.lake) == found


def test_what_is_no_event_is_kept_with_the_reason_and_the_rest_goes_on(stream: Stream) -> None:
    before = profiles(stream.lake)
    user = next(user for user, rows in before.items() if rows[0]["size"])
    pins = [pin for other, rows in before.items() if other != user for row in rows for pin in row["pins"] or ()]
    pin = next(pin for pin in pins if pin not in {pin for row in before[user] for pin in row["pins"]})
    lines = {
        '{"user_id": 1, "pin_id": "': "not an event",
        '{"user_id": "me", "pin_id": 2, "saved_at": "2026-11-18T00:00:00Z"}': "not an event",
        '{"user_id": 99999999999999999999, "pin_id": 2, "saved_at": "2026-11-18T00:00:00Z"}': "not an event",
        "[1, 2]": "not an event",
        '{"user_id": 1, "saved_at": "2026-11-18T00:00:00Z"}': "no pin_id",
        '{"user_id": 1, "pin_id": 2}': "no saved_at",
        '{"user_id": 1, "pin_id": 2, "saved_at": "2199-01-01T00:00:00Z"}': "in the future",
        "\x00\x01 binary": "not an event",
    }
    stream.put([*lines, save(user, pin, at(0))])
    stream.put([])
    stream.follow()
    refused = [
        json.loads(line) for path in stream.checkpoint.glob("refused/*/*.json") for line in path.read_text().splitlines()
    ]
    assert {row["line"]: row["reason"] for row in refused} == lines
    now = profiles(stream.lake)
    assert {user for user in now if now[user] != before.get(user)} == {user}
    assert pin in {pin for row in now[user] for pin in row["pins"]}
