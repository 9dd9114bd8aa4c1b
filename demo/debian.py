"""Fetches Debian packages with the system's own apt-get and unpacks them into a folder. Needs no root, installs nothing.

Knows nothing of what is in a package: demo/openclipart.py, demo/debian_programs.py and benchmarks/photographs.py do.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


class PackagesUnavailableError(RuntimeError):
    """The packages could not be fetched or found; the message says what to do."""


def unpacked(cache_dir: Path) -> Path:
    """The folder of a cache that `fetch_packages` has filled; it exists only when all its packages are complete."""
    return cache_dir / "unpacked"


def fetch_packages(packages: Sequence[str], cache_dir: Path, *, lists_dir: Path | None = None) -> Path:
    """Downloads and unpacks the packages below `cache_dir`, unless they are there, and returns `unpacked(cache_dir)`.

    Needs apt-get and dpkg-deb, the network, and no root. May be interrupted and run again, also side by side: packages
    that are already downloaded stay, and the unpacked folder appears in one rename. `lists_dir` is where package lists of
    our own go, if the system's do not serve: one for several calls spares them the second update. By default they are removed.

    Raises PackagesUnavailableError.
    """
    root = unpacked(cache_dir)
    if root.is_dir():
        return root
    _require_tools()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / "fetch.lock"):
        if not root.is_dir():
            _unpack(_download(packages, cache_dir, lists_dir or cache_dir / "apt"), cache_dir)
            shutil.rmtree(cache_dir / "debs")
            shutil.rmtree(cache_dir / "apt", ignore_errors=True)
    return root


def with_what_they_need(packages: Sequence[str], lists_dir: Path) -> list[str]:
    """The packages, and those of their dependencies that this machine has not installed.

    Needs no root: apt-get only works out what it would install. `lists_dir` as in `fetch_packages`; give both the same.

    Raises PackagesUnavailableError.
    """
    _require_tools()
    lists_dir.mkdir(parents=True, exist_ok=True)
    command = ["--simulate", "--no-install-recommends", "install", *packages]
    simulated = _apt_get(command, lists_dir)
    if simulated.returncode:
        options = _private_apt_options(lists_dir)
        updated = _apt_get([*options, "update"], lists_dir)
        simulated = _apt_get([*options, *command], lists_dir)
        if simulated.returncode:
            raise PackagesUnavailableError(_why_no_download(packages, updated.stderr + simulated.stderr))
        (lists_dir / "updated").touch()
    return [line.split()[1] for line in simulated.stdout.splitlines() if line.startswith("Inst ")]


def _require_tools() -> None:
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise PackagesUnavailableError(
            f"{' and '.join(missing)} not found: this is fetched as Debian packages. Run it on Debian or Ubuntu, "
            "or in a container of one, with the same --cache folder mounted; afterwards the cache can be used anywhere."
        )


@contextmanager
def _locked(lock_path: Path) -> Iterator[None]:
    with lock_path.open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield


def _download(packages: Sequence[str], cache_dir: Path, lists_dir: Path) -> list[Path]:
    """Downloads with the system's package lists and, where these are absent or stale, with lists of our own."""
    debs_dir = cache_dir / "debs"
    debs_dir.mkdir(exist_ok=True)
    log.info("downloading %s", " and ".join(packages))
    first_try = _apt_get(["download", *packages], debs_dir)
    if first_try.returncode:
        log.info("the system's package lists do not serve; fetching a private copy of them")
        options = _private_apt_options(lists_dir)
        said = ""
        if not (lists_dir / "updated").exists():
            # An update may report a failing hook or source of no concern to us: the download is what counts.
            update = _apt_get([*options, "update"], debs_dir)
            said = update.stderr
            if not update.returncode:
                (lists_dir / "updated").touch()
        second_try = _apt_get([*options, "download", *packages], debs_dir)
        if second_try.returncode:
            raise PackagesUnavailableError(_why_no_download(packages, said + second_try.stderr))
    return [_only_deb(debs_dir, package) for package in packages]


def _apt_get(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    # Unless told so, root's apt-get hands the download to a user who may not write into our folder.
    options = ["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30"]
    return subprocess.run(
        ["apt-get", *options, *arguments],
        cwd=cwd,
        env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _private_apt_options(apt_dir: Path) -> list[str]:
    """Options that keep apt's lists and caches in `apt_dir`; sources and trusted keys stay the system's."""
    lists_dir, caches_dir = (apt_dir / "lists").absolute(), (apt_dir / "cache").absolute()
    for folder in (lists_dir, caches_dir / "archives"):
        (folder / "partial").mkdir(parents=True, exist_ok=True)
    settings = (f"Dir::State::Lists={lists_dir}", f"Dir::Cache={caches_dir}", "Debug::NoLocking=1")
    return [part for setting in settings for part in ("-o", setting)]


def _why_no_download(packages: Sequence[str], stderr: str) -> str:
    last_lines = "\n".join(line for line in stderr.splitlines()[-12:] if line.strip())
    if "Unable to locate package" in stderr and "Failed to fetch" not in stderr:
        advice = (
            "The configured apt sources have no such package. On Ubuntu it is in the `universe` component "
            "(add-apt-repository universe); on Debian in `main`."
        )
    else:
        advice = "Check the network and the configured apt sources, then run the same command again: it resumes."
    return f"could not download {' and '.join(packages)}. {advice} apt-get said:\n{last_lines}"


def _only_deb(debs_dir: Path, package: str) -> Path:
    found = sorted(debs_dir.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PackagesUnavailableError(f"apt-get left no {package}_*.deb in {debs_dir}: remove that folder and run again")
    return found[-1]


def _unpack(debs: Sequence[Path], cache_dir: Path) -> None:
    """Unpacks into a folder beside the final one, then renames: a reader sees all pictures or none."""
    unfinished = cache_dir / "unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    for deb in debs:
        log.info("unpacking %s", deb.name)
        run = subprocess.run(["dpkg-deb", "-x", deb, unfinished], capture_output=True, text=True, errors="replace", check=False)
        if run.returncode:
            # A damaged package would fail the same way for ever, were it kept.
            deb.unlink(missing_ok=True)
            raise PackagesUnavailableError(f"could not unpack {deb.name} (removed; run again): {run.stderr.strip()}")
    shutil.rmtree(cache_dir / "unpacked", ignore_errors=True)
    unfinished.rename(cache_dir / "unpacked")
