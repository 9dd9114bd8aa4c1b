"""What several rooms' tests share: real pictures, Spark in this process, and a lake after three nights."""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from demo.airflow import LAPTOP_SPARK_CONF
from demo.another_encoder import another_encoder
from demo.days import DEMO_DAYS, Day, write_days
from demo.openclipart import clipart_root, read_clipart
from embedding.tables.lake import Lake
from tests.watched import watched

REPO = Path(__file__).resolve().parents[1]
PICTURES = 60


T = TypeVar("T")

_LAKE = re.compile(r"\b(lake_of_three_nights|released_lake|lake_with_interests)\b")


@cache
def reads_the_lake(file: str) -> bool:
    """Whether a file's tests read the lake of three nights."""
    return bool(_LAKE.search((REPO / file).read_text()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Airflow's nights take longest, so they start first; the other process meanwhile begins with the lake's files.

    A file's tests run in one process (`--dist loadfile`); what several files read is `made_once`.
    """
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is None, not reads_the_lake(item.nodeid.split("::")[0])))


def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run have."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make` returns of a folder that it fills; made by the first of the test processes that asks, read by the others."""
    root = shared_root(tmp_path_factory)
    folder, done = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            done.write_bytes(pickle.dumps(make(folder)))
    made: T = pickle.loads(done.read_bytes())
    return made


@pytest.fixture(scope="session", autouse=True)
def short_looks() -> Iterator[None]:
    """Sweeps of an index look at each setting once: tests assert recalls and orders, not seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding.index.tuning._MEASURE_S", 0.0)
        yield


@pytest.fixture(scope="session")
def clipart_cache() -> Path:
    """The folder that `make test` fetches the demo's pictures to."""
    cache = Path(os.environ.get("PINLAKE_DEMO_CACHE", REPO / ".cache" / "openclipart"))
    if not clipart_root(cache).is_dir():
        pytest.skip(f"the demo's pictures are not in {cache}: run `make test`, or python -m demo.openclipart --cache {cache}")
    return cache


@pytest.fixture(autouse=True)
def pictures_as_they_are(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the shared pictures while one in another process, marked `changes_pictures`, has changed one of them."""
    if "exports" not in request.fixturenames:
        yield
        return
    changes = request.node.get_closest_marker("changes_pictures")
    with (shared_root(tmp_path_factory) / "pictures.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if changes else fcntl.LOCK_SH)
        yield


@dataclass(frozen=True)
class Exports:
    """Three days of a small platform on disk, and what is in them."""

    folder: Path
    days: list[Day]


@pytest.fixture(scope="session")
def exports(clipart_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:

    def make(folder: Path) -> Exports:
        clipart = read_clipart(clipart_root(clipart_cache))
        return Exports(folder / "exports", write_days(clipart, folder / "exports", folder / "images", limit=PICTURES))

    return made_once(tmp_path_factory, "platform", make)


@pytest.fixture(scope="session")
def spark_environment() -> None:
    """Spark for tests: this Python, this machine alone, no web page. For jobs that run within the test's process."""
    submit = " ".join(f"--conf '{name}={value}'" for name, value in LAPTOP_SPARK_CONF.items())
    os.environ |= {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_SUBMIT_ARGS": f"{submit} pyspark-shell",
    }
    logging.getLogger("py4j").setLevel(logging.WARNING)  # as programs do: it says goodbye when pytest has closed the streams


RunNight = Callable[..., int]


@pytest.fixture(scope="session")
def seen_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the programs did that made the lakes below (tests/watched.py), and those of other tests' nights."""
    return shared_root(tmp_path_factory) / "programs.jsonl"


@pytest.fixture(scope="session")
def run_night(exports: Exports, spark_environment: None, seen_programs: Path) -> RunNight:
    """Runs land, embed and check of a day in this process; returns the check's exit status."""
    from jobs import check_night, embed_pins, land_exports

    def run(lake: Lake, ds: str, run_id: str, *, folder: Path | None = None, min_coverage: float = 0.1) -> int:
        common = ["--home", lake.home, "--ds", ds, "--run-id", run_id]
        with watched(land_exports, lake, seen_programs):
            land_exports.main([*common, "--exports", str(folder or exports.folder)])
        with watched(embed_pins, lake, seen_programs):
            embed_pins.main(common)
        with watched(check_night, lake, seen_programs):
            return check_night.main([*common, "--min-coverage", str(min_coverage)])

    return run


@pytest.fixture(scope="session")
def lake_of_three_nights(run_night: RunNight, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake after the three days, in order. For tests that only read."""

    def make(folder: Path) -> Lake:
        lake = Lake(str(folder))
        for ds in DEMO_DAYS:
            assert run_night(lake, ds, f"night-{ds}") == 0
        return lake

    return made_once(tmp_path_factory, "lake", make)


@pytest.fixture(scope="session")
def released_lake(lake_of_three_nights: Lake, seen_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """That lake with a live release, of the run `first`. For tests that only read, or copy it."""
    from jobs import build_index, check_index, publish_index

    def make(folder: Path) -> Lake:
        lake = Lake(str(folder))
        shutil.copytree(lake_of_three_nights.home, lake.home)
        common = ["--home", lake.home, "--run-id", "first"]
        for program, args in ((build_index, ["--ds", DEMO_DAYS[-1]]), (check_index, []), (publish_index, [])):
            with watched(program, lake, seen_programs):
                assert not program.main([*common, *args])
        return lake

    return made_once(tmp_path_factory, "released", make)


@pytest.fixture(scope="session")
def lake_with_interests(released_lake: Lake, seen_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """That lake with a live graph and everybody's interests besides. For tests that only read, or copy it."""
    from jobs import build_graph, build_interests, check_taste, relate_pins

    def make(folder: Path) -> Lake:
        lake = Lake(str(folder))
        shutil.copytree(released_lake.home, lake.home)
        for program in (build_graph, relate_pins, build_interests, check_taste):
            with watched(program, lake, seen_programs):
                program.main(["--home", lake.home, "--run-id", "taste"])
        return lake

    return made_once(tmp_path_factory, "interests", make)


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of an encoder that reads fewer words than the live one, in a folder of its own."""
    return another_encoder(tmp_path_factory.mktemp("trained"))
