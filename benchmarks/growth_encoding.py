"""Real pictures through the shipped encoder on one, two and four workers: what many take more than few."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from benchmarks.encode_programs import DS, embedded_rows, write_day
from benchmarks.growth_cluster import StandaloneCluster
from benchmarks.growth_jobs import RUN, run_program
from benchmarks.spark import ProgramFailedError, submit
from demo.openclipart import clipart_root
from embedding.encoder.config import DEFAULT_CONFIG

FEW, MANY = 64, 1_600
EVERY, MOST_PIXELS = 3, 2_000_000
"""Every third picture, so that they are of all folders; the few huge ones are not."""
CACHE = Path(os.environ.get("PINLAKE_DEMO_CACHE", ".cache/openclipart"))


class NoPicturesError(Exception):
    """The demo's clip art is not there."""


@dataclass(frozen=True)
class Encoded:
    """So many pictures embedded by so many workers: seconds from spark-submit to its end, CPU seconds of the workers."""

    pictures: int
    workers: int
    seconds: float
    worker_cpu_s: float


def landed_days(folder: Path) -> dict[int, Path]:
    """By number of pictures: a lake in which a day of them has landed, no picture of one day in the other."""
    root = clipart_root(CACHE)
    pictures = list(islice(filter(_is_ordinary, sorted(root.rglob("*.png"))[::EVERY]), FEW + MANY))
    if len(pictures) < FEW + MANY:
        raise NoPicturesError(f"no clip art in {CACHE}: python -m demo.openclipart --cache {CACHE}, or set PINLAKE_DEMO_CACHE")
    lakes = {}
    for count, some in ((FEW, pictures[:FEW]), (MANY, pictures[FEW : FEW + MANY])):
        links, home = folder / f"pictures-{count}", folder / f"lake-{count}"
        links.mkdir(parents=True)
        for number, picture in enumerate(some):
            (links / f"{number:05d}.png").symlink_to(picture.absolute())
        write_day(home / "exports", links)
        submit("jobs/land_exports.py", "--home", str(home), "--ds", DS, "--run-id", RUN, master="local[1]")
        lakes[count] = home
    return lakes


def _is_ordinary(path: Path) -> bool:
    if path.is_symlink():
        return False
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height <= MOST_PIXELS
    except Image.DecompressionBombError:
        return False


def encode_pictures(spark: StandaloneCluster, lakes: dict[int, Path], logs: Path) -> list[Encoded]:
    """Embeds copies of the days, few pictures and many. Raises ProgramFailedError where a picture has no vector."""
    found = []
    for count, lake in lakes.items():
        home = Path(tempfile.mkdtemp(dir=lake.parent)) / "lake"
        shutil.copytree(lake, home)
        args = ["--home", str(home), "--ds", DS, "--run-id", RUN, "--encoder", DEFAULT_CONFIG]
        one = run_program(spark, "encode", "jobs/embed_pins.py", args, count, logs)
        if (rows := embedded_rows(home)) != count:
            raise ProgramFailedError(f"{rows} vectors of {count} pictures")
        found.append(Encoded(count, len(spark), one.seconds, one.worker_cpu_s))
        shutil.rmtree(home.parent)
    return found


def pictures_cost(encoded: Sequence[Encoded]) -> dict[int, tuple[float, float]]:
    """By number of workers, beyond what few pictures take: CPU milliseconds a picture, and pictures a second by the clock.

    Start-ups differ by some seconds from run to run, of the minute that one worker takes; CPU time hardly does.
    """
    costs = {}
    for workers in sorted({one.workers for one in encoded}):
        by_count = {one.pictures: one for one in encoded if one.workers == workers}
        few, many = by_count[min(by_count)], by_count[max(by_count)]
        more = many.pictures - few.pictures
        costs[workers] = 1_000 * (many.worker_cpu_s - few.worker_cpu_s) / more, more / (many.seconds - few.seconds)
    return costs
