"""Do new saves change a user's interests within a minute, each once, whatever dies meanwhile?

    python -m benchmarks.within_the_day            # a million pins, 50,000 users: about 10 minutes, 2 GB of disk
    python -m benchmarks.within_the_day --quick    # 50,000 pins, 2,000 users: 2 minutes

**The claim.** From the moment that a file of events appears to the moment that a reader of `user_interests` has them: less
than a minute, always; and a follower that is killed and started again adds what it missed, nothing twice and nothing less.

**The test.** A lake of a night with clustered vectors and fifty saves a user, of five kinds of pins, whose interests
jobs/build_interests.py has found. jobs/follow_saves.py follows, on two cores, as spark-submit starts it. Then file after file
appears, each with a hundred saves of a hundred users; the clock runs from its rename until `read_interests`, which is what
recommendations read, has the save of the file's last user. Halfway the follower is killed (SIGKILL, with all that it
started) 1.5 seconds after a file has appeared, and another one is started: that file's time has the start in it. In the end
every save must be in its user's current rows once, and no user may have two rows of one interest and revision.

Beside it, for scale: the night's own program over the same lake, for everybody, and after a night without any change.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.index_lake import DS, RUN, write_lake, write_night
from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from benchmarks.spark import program_environment, submission, submit
from embedding.cli import format_table
from embedding.contracts import EMBEDDING_DIM, SAVES, USER_INTERESTS
from embedding.index.recall import Floats, Ids
from embedding.tables.lake import Lake, partition_version, replace_partition
from embedding.tables.scan import read_rows
from embedding.tables.staging import Stager
from embedding.taste.recommend import read_interests

KINDS, KINDS_A_USER, PINS_A_KIND = 2_000, 5, 10
"""Kinds of pins; of each user so many, with so many saves each."""
QUIET_DAY, TODAY = "2026-01-02", "2026-01-03"
SAVES_A_FILE, FILES, QUICK_FILES = 100, 20, 6
GOAL_S, GIVE_UP_S = 60.0, 300.0
KILLED_AFTER_S = 1.5
PACKAGES = ("pyspark", "deltalake", "pyarrow", "scipy", "numpy")


def pins_of_kind(kinds: Ids, pins: int, rng: np.random.Generator) -> Ids:
    """A random pin of each kind: ids begin at 1, and kinds take turns."""
    found: Ids = rng.integers(0, pins // KINDS, kinds.shape) * KINDS + kinds + 1
    return found


def make_lake(folder: Path, pins: int, users: int) -> tuple[Lake, str, Ids]:
    """The lake, its encoder's version, and the kinds of each user (users, KINDS_A_USER)."""
    rng = np.random.default_rng(1)
    centres_KD: Floats = rng.standard_normal((KINDS, EMBEDDING_DIM), dtype=np.float32)
    centres_KD /= np.linalg.norm(centres_KD, axis=1, keepdims=True)
    lake, version = write_lake(folder, centres_KD, [f"kind {number}" for number in range(KINDS)], pins)
    kinds_UK = rng.integers(0, KINDS, (users, KINDS_A_USER))
    partition: dict[str, str | None] = {"ds": DS}
    with Stager(lake.table_uri(SAVES), SAVES, partition) as staged:
        for first in range(0, users, 5_000):
            kinds = np.repeat(kinds_UK[first : first + 5_000], PINS_A_KIND, axis=1)
            chosen = pins_of_kind(kinds, pins, rng)
            count = chosen.size
            minutes = rng.integers(0, 365 * 1_440, count)
            columns = {
                "user_id": np.repeat(np.arange(first, first + len(kinds)) + 1, kinds.shape[1]),
                "pin_id": chosen.ravel(),
                "board_id": np.ones(count, np.int64),
                "saved_at": (np.datetime64(f"{DS}T00:00", "us") - minutes.astype("timedelta64[m]")),
                "deleted": np.zeros(count, np.bool_),
                "export_sha256": pa.repeat(DS, count),
                "run_id": pa.repeat(RUN, count),
            }
            staged.add(pa.table(columns))
        staged.flush()
        seen = partition_version(lake.open(SAVES), partition)
        replace_partition(lake, SAVES, partition, staged.files, expected_version=seen, run_id=RUN)
    return lake, version, kinds_UK


class Follower:
    """The program, in a process group of its own."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        self._folder, self.events = folder, folder / "events"
        self.events.mkdir(exist_ok=True)
        places = ["--events", str(self.events), "--checkpoint", str(folder / "checkpoint"), "--every-s", "1"]
        command = submission("jobs/follow_saves.py", "--home", lake.home, "--run-id", "follower", *places)
        with (folder / "follower.log").open("a") as said:
            environment = program_environment()
            self._process = subprocess.Popen(
                command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )

    def check(self) -> None:
        """Raises RuntimeError where it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the follower ended:\n{(self._folder / 'follower.log').read_text()[-4000:]}")

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def put(follower: Follower, number: int, saves: Sequence[tuple[int, int]]) -> None:
    """A file of events that appears at once."""
    events = [
        {"user_id": user, "pin_id": pin, "board_id": 1, "saved_at": f"{TODAY}T08:{number:02d}:00Z"} for user, pin in saves
    ]
    unfinished = follower.events.parent / "unfinished"
    unfinished.write_text("\n".join(json.dumps(event) for event in events))
    unfinished.rename(follower.events / f"{number:04d}.jsonl")


def seconds_until(lake: Lake, version: str, user: int, pin: int, follower: Follower) -> float:
    """Until the user's current interests have the pin. Raises RuntimeError where they never do."""
    started = time.monotonic()
    while time.monotonic() - started < GIVE_UP_S:
        if any(pin in interest.pins for interest in read_interests(lake, version, user)):
            return time.monotonic() - started
        follower.check()
        time.sleep(0.2)
    raise RuntimeError(f"user {user} has no pin {pin} after {GIVE_UP_S:g} s")


def follow(lake: Lake, version: str, kinds_UK: Ids, pins: int, folder: Path, files: int) -> dict[str, Any]:
    """Seconds of each file; and what the table says in the end."""
    rng = np.random.default_rng(2)
    saved: list[tuple[int, int]] = []
    follower, seconds, after_kill = Follower(lake, folder), [], 0.0
    try:
        for number in range(files + 1):
            users = rng.choice(len(kinds_UK), SAVES_A_FILE, replace=False)
            chosen = pins_of_kind(rng.integers(0, KINDS, SAVES_A_FILE), pins, rng)
            rows = list(zip((users + 1).tolist(), chosen.tolist(), strict=True))
            saved += rows
            put(follower, number, rows)
            if number == files // 2:
                time.sleep(KILLED_AFTER_S)
                follower.kill()
                follower = Follower(lake, folder)
                after_kill = KILLED_AFTER_S + seconds_until(lake, version, *rows[-1], follower)
            else:
                seconds.append(seconds_until(lake, version, *rows[-1], follower))
    finally:
        follower.kill()
    return {"first_s": seconds[0], "files_s": seconds[1:], "after_kill_s": after_kill} | count(lake, saved)


def count(lake: Lake, saved: Sequence[tuple[int, int]]) -> dict[str, int]:
    """How many saves are missing in their users' rows or there twice, and how many users have two sets of one revision."""
    rows = read_rows(lake.open(USER_INTERESTS), ["user_id", "cluster", "ds", "revision", "pins"]).to_pylist()
    last: dict[int, tuple[str, int]] = {}
    for row in rows:
        last[row["user_id"]] = max(last.get(row["user_id"], ("", 0)), (row["ds"], row["revision"]))
    current = [row for row in rows if (row["ds"], row["revision"]) == last[row["user_id"]]]
    times = Counter((row["user_id"], pin) for row in current for pin in row["pins"] or ())
    keys = Counter((row["user_id"], row["cluster"]) for row in current)
    return {
        "saves": len(set(saved)),
        "missing": sum(times[save] == 0 for save in set(saved)),
        "twice": sum(times[save] > 1 for save in set(saved)),
        "double_rows": sum(times > 1 for times in keys.values()),
    }


def judge(found: dict[str, Any]) -> list[Verdict]:
    files = found["files_s"]
    spread = f"median {statistics.median(files):.1f} s, {min(files):.1f} to {max(files):.1f} s"
    wrong = found["missing"] + found["twice"] + found["double_rows"]
    return [
        Verdict(f"{len(files)} files are in their users' interests within {GOAL_S:g} s: {spread}", max(files) < GOAL_S),
        Verdict(f"so is the first after a start: {found['first_s']:.1f} s with it", found["first_s"] < GOAL_S),
        Verdict(f"and the one whose follower was killed: {found['after_kill_s']:.1f} s", found["after_kill_s"] < GOAL_S),
        Verdict(f"of {found['saves']:,} saves {found['missing']} are missing, {found['twice']} there twice", wrong == 0),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 pins, 2,000 users")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    pins, users = (50_000, 2_000) if args.quick else (1_000_000, 50_000)
    with tempfile.TemporaryDirectory() as name:
        lake, version, kinds_UK = make_lake(Path(name), pins, users)
        program = ["jobs/build_interests.py", "--home", lake.home, "--run-id"]
        night = submit(*program, "night").seconds
        write_night(lake, version, QUIET_DAY, (), ())
        quiet = submit(*program, "quiet").seconds
        found = follow(lake, version, kinds_UK, pins, Path(name), QUICK_FILES if args.quick else FILES)
    verdicts = judge(found)
    files = found["files_s"]
    lines = [
        ("a file of 100 saves, until they are read", f"{statistics.median(files):.1f}", f"{min(files):.1f}-{max(files):.1f}"),
        ("the first, with the follower's start", f"{found['first_s']:.1f}", ""),
        ("killed and started again", f"{found['after_kill_s']:.1f}", ""),
        ("the night's program, everybody new", f"{night:.1f}", ""),
        ("the night's program, nothing changed", f"{quiet:.1f}", ""),
    ]
    figures: dict[str, Any] = {"machine": describe_machine(PACKAGES), "pins": pins, "users": users} | found
    figures |= {"night_s": night, "quiet_night_s": quiet, "verdicts": [asdict(verdict) for verdict in verdicts]}
    about = f"{pins:,} pins, {users:,} users, {users * KINDS_A_USER * PINS_A_KIND:,} saves"
    said = [f"{'HOLDS' if verdict.holds else 'MISSED'}  {verdict.sentence}" for verdict in verdicts]
    table = format_table(lines, ("what", "seconds", "from to"))
    text = "\n".join([machine_line(figures["machine"]), about, "", table, "", *said, ""])
    print(text)
    keep(figures, text, args.json, None if args.quick else "within_the_day")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
