"""How much does the assistant's service bear, and does anybody notice when another release takes over?

    python -m benchmarks.assistant_load            # on the demo's store: 5 minutes
    python -m benchmarks.assistant_load --quick    # 1 minute

**The claim.** Under as many clients as keep its cores busy, the service answers every request, right and in full, also while
another release goes live in the middle and the one before comes back; half of the searches by words within 100 ms, and 99 of
100 requests of each kind for pins within a second.

**The test.** The real service (`python -m assistant`) in a process of its own over a copy of the demo's store, with the brain
that `--brain` names; and locust in another, whose clients (benchmarks/assistant_users.py) look into every answer. At first they
look for pins and at pictures, each with at most 0.1 s between two requests; then some of them converse. In the middle of either
part the pointer `LIVE` is moved to another release of the store, and back. The clients run on the same cores as the service:
figures are of both together.

Exits with 0 where the claim holds, 1 where it does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, machine_line
from benchmarks.results_of import Verdict, keep
from embedding.cli import format_table
from embedding.contracts import USER_INTERESTS
from embedding.index.release import list_releases, look_at_pointer, move_pointer, pointer_lock
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("fastapi", "uvicorn", "torch", "faiss-cpu", "locust")
READY_S, STOP_S, SWAP_S = 180.0, 30.0, 15.0
SEARCH_P50_MS, PINS_P99_MS = 100.0, 1_000.0
PINS = ("/search", "/pins/ID/related", "/recommendations")
CLIENTS, TALKERS = 8, 3
"""At once: of the first part those that look for pins; of the second one besides, half as many, those that converse."""
SECONDS, QUICK_SECONDS = 120, 20
"""Of either part."""


@contextmanager
def service(home: Path, brain: str, log: Path) -> Iterator[str]:
    """The service's address, once it is ready; it is told to end afterwards, and has to end well."""
    rates = ["--requests", "100000", "--chats", "100000"]  # one client asks for all of them
    command = [sys.executable, "-m", "assistant", "--home", str(home), "--port", "0", "--brain", brain, *rates]
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            deadline = time.monotonic() + READY_S
            while not address or not _health(address).get("ready"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the service did not become ready:\n{log.read_text()[-4000:]}")
                time.sleep(0.5)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(STOP_S) not in (0, -signal.SIGTERM):  # uvicorn ends by the signal, once it has ended well
                raise RuntimeError(f"the service ended with {process.returncode}:\n{log.read_text()[-4000:]}")


def _health(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/health", timeout=10) as response:  # noqa: S310 - our own address
        said: dict[str, Any] = json.load(response)
    return said


def swap(lake: Lake, release_id: str, address: str) -> float:
    """Makes a release live; seconds until the service answers from it."""
    begun = time.monotonic()
    with pointer_lock(lake):
        pointer, tag = look_at_pointer(lake)
        assert pointer is not None
        move_pointer(lake, replace(pointer, release_id=release_id, previous=pointer.release_id), tag)
    while _health(address)["release_id"] != release_id:
        time.sleep(0.1)
    return time.monotonic() - begun


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: how many, how many failed, how many a second, and their latencies' percentiles."""

    requests: int
    failures: int
    a_second: float
    p50_ms: float
    p99_ms: float
    most_ms: float


@dataclass(frozen=True)
class Part:
    """What one part of the load gave. swaps_s: how long the service took to answer from another release, each time."""

    clients: int
    talkers: int
    seconds: int
    kinds: dict[str, Kind]
    swaps_s: list[float]
    faults: dict[str, int]


def run_part(lake: Lake, address: str, talkers: int, seconds: int, users: Sequence[str], folder: Path) -> Part:
    """A load, with another release taking over after a third of the time, and the one before after two."""
    clients = CLIENTS if not talkers else CLIENTS // 2 + talkers
    live = str(_health(address)["release_id"])
    other = next(manifest.release_id for manifest in list_releases(lake) if manifest.release_id != live)
    process, out = start_clients(address, clients, talkers, seconds, users, folder)
    swaps = []
    for release_id in (other, live):
        time.sleep(seconds / 3)
        swaps.append(round(swap(lake, release_id, address), 2))
    if process.wait(seconds + 120) not in (0, 1):
        raise RuntimeError(f"locust ended with {process.returncode}")
    kinds = {entry["name"]: kind_of(entry) for entry in json.loads(out.read_text())}
    return Part(clients, talkers, seconds, kinds, swaps, faults_of(folder))


def start_clients(
    address: str, clients: int, talkers: int, seconds: int, users: Sequence[str], folder: Path
) -> tuple[subprocess.Popen[bytes], Path]:
    """Locust's process, and where its figures will be."""
    out = folder / "clients.json"
    for file in folder.glob("clients*"):
        file.unlink()
    environment = os.environ | {"PINLAKE_LOAD_TALKERS": str(talkers), "PINLAKE_LOAD_USERS": " ".join(users)}
    command = [sys.executable, "-m", "locust", "-f", str(REPO / "benchmarks" / "assistant_users.py"), "--headless"]
    command += ["--host", address, "-u", str(clients), "-r", str(clients), "-t", f"{seconds}s", "--stop-timeout", "60"]
    command += [
        "--json-file",
        str(out.with_suffix("")),
        "--csv",
        str(folder / "clients"),
        "--only-summary",
        "--loglevel",
        "ERROR",
    ]
    return subprocess.Popen(command, env=environment, cwd=REPO, stdout=subprocess.DEVNULL), out


def kind_of(entry: Mapping[str, Any]) -> Kind:
    """Locust keeps latencies from 100 ms on to two places."""
    times = sorted((float(ms), count) for ms, count in entry["response_times"].items())
    values, counts = zip(*times, strict=True) if times else ((0.0,), (1,))
    p50, p99 = (float(np.repeat(values, counts)[int(share * (sum(counts) - 1))]) for share in (0.5, 0.99))
    seconds = max(entry["last_request_timestamp"] - entry["start_time"], 1e-9)
    requests = entry["num_requests"]
    return Kind(requests, entry["num_failures"], round(requests / seconds, 1), p50, p99, round(entry["max_response_time"], 1))


def faults_of(folder: Path) -> dict[str, int]:
    """What was wrong, and how often."""
    file = folder / "clients_failures.csv"
    rows = list(csv.DictReader(file.open())) if file.is_file() else []
    return {f"{row['Name']}: {row['Error']}": int(row["Occurrences"]) for row in rows}


def verdicts(parts: Mapping[str, Part]) -> list[Verdict]:
    every = [kind for part in parts.values() for kind in part.kinds.values()]
    failures, requests = sum(kind.failures for kind in every), sum(kind.requests for kind in every)
    swaps = [second for part in parts.values() for second in part.swaps_s]
    pins = parts["pins"].kinds
    slowest = max(pins[name].p99_ms for name in PINS)
    return [
        Verdict(f"of {requests:,} requests {failures} failed", failures == 0 and requests > 0),
        Verdict(f"{len(swaps)} times another release took over meanwhile, within {max(swaps):.1f} s", max(swaps) < SWAP_S),
        Verdict(
            f"half of the searches within {pins['/search'].p50_ms:.0f} ms (goal {SEARCH_P50_MS:.0f})",
            pins["/search"].p50_ms <= SEARCH_P50_MS,
        ),
        Verdict(f"99 of 100 of each kind for pins within {slowest:.0f} ms (goal {PINS_P99_MS:.0f})", slowest <= PINS_P99_MS),
    ]


def told(parts: Mapping[str, Part], found: Sequence[Verdict], machine: Mapping[str, Any], brain: str) -> str:
    rows = [
        (
            name,
            f"{part.clients} ({part.talkers} converse)",
            kind,
            k.requests,
            k.failures,
            k.a_second,
            k.p50_ms,
            k.p99_ms,
            k.most_ms,
        )
        for name, part in parts.items()
        for kind, k in sorted(part.kinds.items())
    ]
    head = ("part", "clients", "requests for", "count", "failed", "a second", "p50, ms", "p99, ms", "most, ms")
    faults = [f"{count} times {fault}" for part in parts.values() for fault, count in part.faults.items()]
    lines = [f"{'HOLDS' if verdict.holds else 'FAILS'}  {verdict.sentence}" for verdict in found]
    return "\n".join([machine_line(dict(machine)), f"brain {brain}", "", format_table(rows, head), "", *faults, *lines, ""])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How much the assistant's service bears.")
    parser.add_argument(
        "--home", type=Path, default=Path(os.environ.get("PINLAKE_HOME", ".pinlake")), help="a store of `make demo`"
    )
    parser.add_argument("--brain", default="core", help="what answers turns (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS} s a part, and nothing is kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if len(list_releases(Lake(str(args.home)))) < 2:
        sys.stderr.write(f"{args.home} has no two releases: run `make demo` first, or give --home\n")
        return 2
    machine = describe_machine(PACKAGES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lake = Lake(str(shutil.copytree(args.home, folder / "store", ignore=shutil.ignore_patterns("airflow", "exports"))))
        users = people(lake)
        seconds = QUICK_SECONDS if args.quick else SECONDS
        with service(folder / "store", args.brain, folder / "service.log") as address:
            name = str(_health(address)["brain"])
            parts = {
                what: run_part(lake, address, talkers, seconds, users, folder)
                for what, talkers in (("pins", 0), ("pins and turns", TALKERS))
            }
    found = verdicts(parts)
    text = told(parts, found, machine, name)
    sys.stdout.write(text)
    figures = {
        "machine": machine,
        "brain": name,
        "parts": {what: asdict(part) for what, part in parts.items()},
        "verdicts": [asdict(verdict) for verdict in found],
    }
    keep(figures, text, args.json, None if args.quick else "assistant_load")
    return 0 if all(verdict.holds for verdict in found) else 1


def people(lake: Lake) -> list[str]:
    """Some users with interests."""
    rows = read_rows(lake.snapshot(USER_INTERESTS), ["user_id", "size"]).to_pylist()
    return sorted({str(row["user_id"]) for row in rows if row["size"]})[:50]


if __name__ == "__main__":
    sys.exit(main())
