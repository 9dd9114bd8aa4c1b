"""What must be true of a lake in an object store after a night, whatever was killed meanwhile: each check is a sentence.

The measure of a disturbed night is the same night undisturbed: the same programs on the same export, one after the other in
one process, in another home.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from deltalake.exceptions import TableNotFoundError

from demo.secrets_in import find_secrets
from embedding.contracts import BOARDS, LIVE_POINTER, NIGHTS, PIN_EMBEDDINGS, PINS, QUARANTINE, SAVES, USERS, TableContract
from embedding.index.reader import open_live
from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows

OF_A_RUN = frozenset({"run_id", "encoded_by", "embedding", "quarantined_at", "landed_at"})
"""Columns that tell which run made a row, and vectors, which are compared by their cosine."""


@dataclass(frozen=True)
class Finding:
    """A claim, whether it held, and what was seen."""

    claim: str
    held: bool
    seen: str


def rows(lake: Lake, contract: TableContract, **wanted: str) -> list[dict[str, Any]]:
    """A table's rows with these values; none where there is no table."""
    try:
        found = read_rows(lake.snapshot(contract)).to_pylist()
    except TableNotFoundError:
        return []
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


def check_day(lake: Lake, undisturbed: Lake, ds: str, version: str) -> Iterator[Finding]:
    """A day's rows against those of an undisturbed night, its gate's verdict, and how often it was committed."""
    day: dict[str, str] = {"ds": ds}
    under = {"ds": ds, "embedding_version": version}
    for contract, where in ((PINS, day), (BOARDS, day), (SAVES, day), (USERS, day), (PIN_EMBEDDINGS, under), (QUARANTINE, day)):
        # What a migration's candidate has on that day beside the live encoder is another matter.
        found = ([row for row in rows(each, contract, **where) if _of(row, version)] for each in (lake, undisturbed))
        ours, theirs = map(_comparable, found)
        seen = f"{len(ours)} rows" if ours == theirs else f"{len(ours)} rows, undisturbed {len(theirs)}"
        yield Finding(f"{contract.name} of {ds} has the rows of an undisturbed night", ours == theirs, seen)
    ours_ND, theirs_ND = (_vectors(each, **under) for each in (lake, undisturbed))
    least = float((ours_ND * theirs_ND).sum(axis=1).min()) if ours_ND.shape == theirs_ND.shape and len(ours_ND) else 0.0
    yield Finding(f"the vectors of {ds} are those of an undisturbed night", least > 0.9999, f"least cosine {least:.6f}")
    nights = [night for night in rows(lake, NIGHTS, **under) if night["status"] == "passed"]
    sums = [(night["landed"], night["embedded"], night["quarantined"]) for night in nights]
    yield Finding(
        f"the night of {ds} passed, and landed = embedded + quarantined",
        bool(sums) and all(landed == embedded + quarantined for landed, embedded, quarantined in sums),
        str(sums),
    )
    for contract, partition in ((PINS, f"ds={ds}"), (PIN_EMBEDDINGS, f"embedding_version={version}/ds={ds}")):
        commits = _commits(lake, contract, partition)
        yield Finding(f"{contract.name} of {ds} became visible in one commit", len(commits) == 1, f"versions {commits}")


def _of(row: Mapping[str, Any], version: str) -> bool:
    return row.get("embedding_version") in (None, version)


def _comparable(found: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted(repr(sorted((k, v) for k, v in row.items() if k not in OF_A_RUN)) for row in found)


def _vectors(lake: Lake, **under: str) -> npt.NDArray[np.float32]:
    """Vectors in the order of their pins, (N, D)."""
    found = sorted((row["pin_id"], row["embedding"]) for row in rows(lake, PIN_EMBEDDINGS, **under))
    return np.array([vector for _, vector in found], np.float32)


def _commits(lake: Lake, contract: TableContract, partition: str) -> list[int]:
    """The versions of a table whose commits added rows to a partition."""
    found = []
    for version in range(lake.snapshot(contract).version() + 1):
        lines = storage.read_bytes(f"{lake.table_uri(contract)}/_delta_log/{version:020d}.json").splitlines()
        if any(entry["add"]["path"].startswith(f"{partition}/") for entry in map(json.loads, lines) if "add" in entry):
            found.append(version)
    return found


def check_release(lake: Lake, version: str, days: list[str]) -> Iterator[Finding]:
    """The live release is of a version and of the days that have passed, and finds a pin by its own vector."""
    live = open_live(lake)
    manifest = live.manifest
    yield Finding(
        f"the live release is {version}'s, of {', '.join(days)}",
        (manifest.embedding_version, manifest.days) == (version, days),
        f"{manifest.release_id}: {manifest.embedding_version}, {manifest.rows} pins of {', '.join(manifest.days)}",
    )


def check_requests(log: Path) -> Iterator[Finding]:
    """Of the store's own record: each commit of a table and each change of the pointer was a conditional put."""
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    puts = [request for request in requests if request["method"] == "PUT" and request["status"] == 200]
    commits = [put for put in puts if "/_delta_log/0" in put["path"] and put["path"].endswith(".json")]
    bare = [put["path"] for put in commits if put.get("if-none-match") != "*"]
    yield Finding(
        "each commit of a table was a conditional put", bool(commits) and not bare, f"{len(commits)} commits, {len(bare)} bare"
    )
    pointer = [put for put in puts if put["path"].endswith(LIVE_POINTER)]
    bare = [put["path"] for put in pointer if not (put.get("if-none-match") or put.get("if-match"))]
    yield Finding(
        "each change of LIVE was a conditional put", bool(pointer) and not bare, f"{len(pointer)} changes, {len(bare)} bare"
    )


def check_secrets(folders: Sequence[Path], secrets: Mapping[str, str]) -> Iterator[Finding]:
    """No file below the folders holds one of the secrets."""
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    leaks = [f"{name} in {path}, line {line}" for path, line, name in find_secrets(folders, secrets)]
    seen = "; ".join(leaks[:5]) or f"{len(secrets)} secrets, {size >> 10} KiB of logs"
    yield Finding("no secret is in a log", size > 0 and not leaks, seen)
