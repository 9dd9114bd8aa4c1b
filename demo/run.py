"""The demo: three real nights on real pictures through Airflow's own scheduler, Spark, Delta and FAISS.

    make demo        (or: python -m demo.run --home .pinlake --cache .cache/openclipart)

1. Fetch the pictures (Debian's openclipart packages) and write three days of exports from them.
2. Start Airflow. For each day run `nightly_pins`, whose asset starts `index_release`; that of the last day starts
   `taste_profiles` as well, which reads all days that have passed and so needs one run.
3. Print a line a night, a search to try and the report's address; stop what was started.

A second run encodes nothing. The exit status is 0 only if every night, every release and the graph ended well. Why this is
a room of its own: docs/decisions/0001-rooms.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from demo.airflow import LocalAirflow
from demo.airflow_api import AirflowError
from demo.days import DEMO_DAYS, write_days
from demo.openclipart import ClipartUnavailableError, fetch, read_clipart
from embedding.cli import format_table
from embedding.contracts import NIGHTS
from embedding.index.reader import open_live
from embedding.index.release import ReleaseError, read_candidate, read_manifest
from embedding.report.page import write_report
from embedding.report.taste import current_users, users_to_show
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows

NIGHTLY, RELEASE, TASTE = "nightly_pins", "index_release", "taste_profiles"
COLUMNS = ("landed", "new", "changed", "deleted", "encoded", "reused", "quarantined", "images_per_s")


class DemoFailedError(Exception):
    """A night, a release or the graph ended badly; the message holds the end of the task's log."""


class Progress:
    """Tells what is going on: one line a step, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:4.0f} s] {text}", flush=True)

    def tasks(self, name: str) -> _TaskProgress:
        return _TaskProgress(self, name)


class _TaskProgress:
    """Says which tasks of a run have started and ended since it was last called."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name, self._seen = progress, name, dict[str, str]()

    def __call__(self, states: Mapping[str, str]) -> None:
        for task, state in states.items():
            if state != self._seen.get(task) and state in ("running", "success", "failed", "up_for_retry"):
                self._progress.say(f"  {self._name} {task}: {'done' if state == 'success' else state}")
        self._seen = dict(states)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="Three real nights on real pictures.")
    parser.add_argument("--home", type=Path, default=Path(".pinlake"), help="where everything is written")
    parser.add_argument("--cache", type=Path, default=Path(".cache/openclipart"), help="where the pictures are fetched to")
    parser.add_argument("--limit", type=int, help="only so many pictures, for a quick look")
    parser.add_argument("--port", type=int, default=8080, help="of Airflow's web page; another one if it is taken")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace, progress: Progress) -> None:
    """Fetches the pictures and writes the exports; both are kept if they are there."""
    progress.say("fetching the pictures (openclipart, 156 MB, once) and writing three days of exports")
    for day in write_days(read_clipart(fetch(args.cache)), args.home / "exports", args.home / "images", limit=args.limit):
        progress.say(f"  {day.summary()}")


def wait(airflow: LocalAirflow, dag_id: str, run_id: str, ds: str, progress: Progress) -> None:
    """Waits for a run to end; raises DemoFailedError with its log if it fails."""
    state = airflow.api.wait_run(dag_id, run_id, progress.tasks(f"{ds} {dag_id}"), timeout_s=3_600)
    if state != "success":
        raise DemoFailedError(f"{dag_id} of {ds} failed:\n{airflow.api.failure_report(dag_id, run_id)}")


def run_nights(airflow: LocalAirflow, progress: Progress) -> list[tuple[str, str, str]]:
    """Runs the days one after the other, each day's release beside the next night, and the last day's beside the graph.

    Returns (day, night's id, release's id).
    """

    def wait_for(dag_id: str, ds: str, asked_at: datetime) -> str:
        run_id = airflow.api.find_run(dag_id, ds, after=asked_at)
        wait(airflow, dag_id, run_id, ds, progress)
        return run_id

    runs: list[tuple[str, str, Future[str]]] = []
    with ThreadPoolExecutor(max_workers=1) as releases:
        for ds in DEMO_DAYS:
            if ds == DEMO_DAYS[-1]:
                airflow.api.unpause(TASTE)
            asked_at = datetime.now(UTC)
            night = airflow.api.trigger_day(NIGHTLY, ds)
            wait(airflow, NIGHTLY, night, ds, progress)
            runs.append((ds, night, releases.submit(wait_for, RELEASE, ds, asked_at)))
        wait_for(TASTE, ds, asked_at)
    return [(ds, night, release.result()) for ds, night, release in runs]


def night_line(lake: Lake, ds: str, night_id: str, release_id: str) -> list[object]:
    """A night's row of the closing table, read from the tables and the release's manifest."""
    nights = read_rows(lake.open(NIGHTS)).to_pylist()
    night = next(row for row in nights if row["run_id"] == night_id and row["ds"] == ds)
    manifest = read_manifest(lake, read_candidate(lake, release_id))
    return [ds, *(night[name] for name in COLUMNS), manifest.release_id, manifest.recall_at_10]


def close(lake: Lake, lines: list[list[object]], home: Path) -> None:
    """The closing words: the table, a search, the report."""
    print("\n" + format_table(lines, ("night", *COLUMNS, "release", "recall@10")))
    report = home.resolve() / "report.html"
    write_report(lake, report)
    option = "" if home == Path(".pinlake") else f"--home {home} "
    live = open_live(lake)
    pin = live.sample(1)[0]["pin_id"]
    user, *_ = users_to_show(current_users(lake, live.manifest.embedding_version))
    print(f"\nsearch    .venv/bin/pinlake {option}search --text 'red bicycle'      (or --pin {pin}, or --image FILE)")
    print(f"recommend .venv/bin/pinlake {option}recommend --user {user}      (or interests --user, or related --pin)")
    print(f"status    .venv/bin/pinlake {option}status")
    print("assistant make assistant, a conversation over these pins")
    print("airflow   make up, to look at the runs; make down ends it")
    print(f"report    {report.as_uri()}")


def main(argv: Sequence[str] | None = None) -> int:
    args, progress = parse_args(argv), Progress()
    lake = Lake(str(args.home))
    airflow = LocalAirflow(args.home, port=args.port)
    try:
        prepare(args, progress)
        with contextlib.ExitStack() as stack:
            progress.say("starting Airflow (API server, scheduler, DAG processor)")
            stack.enter_context(airflow)
            progress.say(f"  it is up: {airflow.url} (user admin, password in {airflow.password_file})")
            for dag_id in (NIGHTLY, RELEASE):
                airflow.api.unpause(dag_id)
            airflow.api.pause(TASTE)  # an earlier demo has let it run after every night
            runs = run_nights(airflow, progress)
        progress.say("Airflow is stopped; writing the report")
        close(lake, [night_line(lake, *ids) for ids in runs], args.home)
    except (AirflowError, ClipartUnavailableError, DemoFailedError, ReleaseError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
