"""Postgres and Redis for a machine without containers: those that are installed, else Debian's own, unpacked into a cache.

    python -m demo.debian_programs --cache .cache/programs      # fetches them where they are missing, and says where they are

Installs nothing and needs no root. Postgres refuses to run as root: who starts it sees to that (demo/services.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.debian import PackagesUnavailableError, fetch_packages, unpacked, with_what_they_need

PACKAGES = {
    "postgresql": ("postgres", "initdb", "psql", "pg_isready"),
    "redis-server": ("redis-server", "redis-cli"),
}
"""What is used of each package. An earlier Postgres than 15 cannot read tools/images/databases.sql."""
LEAST_POSTGRES = 15
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "programs"


@dataclass(frozen=True)
class Programs:
    """Where the programs are, and where the libraries are that this machine lacks."""

    folders: tuple[Path, ...]
    libraries: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """PATH, the programs first, and LD_LIBRARY_PATH where they need it."""
        libraries = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, self.libraries))} if self.libraries else {}
        return {"PATH": os.pathsep.join([*map(str, self.folders), os.defpath]), **libraries}


def find_programs(cache_dir: Path = CACHE) -> Programs:
    """The installed programs, or those of the cache, which is filled where it is empty. Raises PackagesUnavailableError."""
    folders: list[Path] = []
    libraries: list[Path] = []
    for package, names in PACKAGES.items():
        found = _folders(Path("/"), names)
        if not found:
            root = _fetched(package, cache_dir / package)
            found = _folders(root, names)
            libraries += _library_folders(root)
        if not found:
            raise PackagesUnavailableError(
                f"no {' or '.join(names)} in {cache_dir / package}: remove that folder and run again"
            )
        folders += found
    return Programs(tuple(dict.fromkeys(folders)), tuple(libraries))


def for_everybody(programs: Programs, scratch: Path, cache_dir: Path = CACHE) -> Programs:
    """The programs where another user may run them: below `scratch` those of a cache that lies in a folder of root's alone."""
    folders = [folder for folder in programs.folders if folder.is_relative_to(cache_dir)]
    if not folders or all(map(_is_open, folders)):
        return programs
    copy = scratch / "programs"
    shutil.copytree(cache_dir, copy, symlinks=True, ignore=shutil.ignore_patterns("*.deb", "apt"))

    def moved(paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(copy / path.relative_to(cache_dir) if path.is_relative_to(cache_dir) else path for path in paths)

    return Programs(moved(programs.folders), moved(programs.libraries))


def _is_open(folder: Path) -> bool:
    """Whether anybody may pass through all folders on the way."""
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))


def _folders(root: Path, names: Sequence[str]) -> list[Path]:
    """The folders below a root that have all the programs together; none where one is missing."""
    versions = {int(folder.parent.name): folder for folder in (root / "usr/lib/postgresql").glob("*/bin")}
    newest = [versions[number] for number in sorted(versions) if number >= LEAST_POSTGRES][-1:]
    folders = [*newest, root / "usr/bin", *([root / "usr/local/bin"] if root == Path("/") else [])]
    path = os.pathsep.join(map(str, folders))
    return folders if all(shutil.which(name, path=path) for name in names) else []


def _fetched(package: str, cache_dir: Path) -> Path:
    if not unpacked(cache_dir).is_dir():
        lists = cache_dir / "apt"
        fetch_packages(with_what_they_need([package], lists), cache_dir, lists_dir=lists)
    return unpacked(cache_dir)


def _library_folders(root: Path) -> list[Path]:
    return sorted({library.parent for top in ("lib", "usr/lib") for library in root.glob(f"{top}/*-linux-*/*.so*")})


def main(argv: list[str] | None = None) -> int:
    """Prints the folders; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.debian_programs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    try:
        programs = find_programs(parser.parse_args(argv).cache)
    except PackagesUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in programs.environment().items():
        print(f"{name}={value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
