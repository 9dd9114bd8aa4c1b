"""What a program does to a lake while it runs: the tables that its driver opens, and what it changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import deltalake
import pytest

from embedding.contracts import TABLES, TableContract
from embedding.tables.lake import Lake

FOLDERS = ("releases/pins", "releases/pins/LIVE", "graphs", "graphs/LIVE", "user_models")
"""Of the lake, beside its tables. What a folder within it has a name of its own for is not the outer one's."""


@dataclass(frozen=True)
class Seen:
    """A run of `program` (a file's name): names of tables, and of FOLDERS."""

    program: str
    opened: list[str]
    changed: list[str]


@contextmanager
def watched(program: ModuleType, lake: Lake, into: Path) -> Iterator[None]:
    """Adds a line about what is done in the block to the file `into`. `lake` is a folder."""
    lake.create_all()  # with their constraints, each of which would be a change
    opened: set[str] = set()

    def remembering(how: Callable[..., deltalake.DeltaTable]) -> Callable[..., deltalake.DeltaTable]:
        def open_table(self: Lake, contract: TableContract, version: int | None = None) -> deltalake.DeltaTable:
            opened.add(contract.name)
            return how(self, contract, version)

        return open_table

    before = _state(lake)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "snapshot"):
            patch.setattr(Lake, name, remembering(getattr(Lake, name)))
        patch.setattr(Lake, "create_all", lambda _: None)  # it has been done, and would open all of them
        yield
    after = _state(lake)
    changed = sorted(name for name in after if after[name] != before[name])
    with into.open("a") as file:
        file_name = f"{program.__name__.rpartition('.')[2]}.py"
        file.write(json.dumps({"program": file_name, "opened": sorted(opened), "changed": changed}) + "\n")


def read_seen(file: Path) -> list[Seen]:
    """What `watched` has written."""
    return [Seen(**json.loads(line)) for line in file.read_text().splitlines()]


def _state(lake: Lake) -> dict[str, object]:
    files = {path for path in Path(lake.home).rglob("*") if path.is_file()}
    state: dict[str, object] = {}
    for name in sorted(FOLDERS, key=len, reverse=True):  # the inner ones first
        own = {path for path in files if f"{path}/".startswith(f"{lake.home}/{name}/")}
        files -= own
        state[name] = {(path, path.stat().st_mtime_ns) for path in own}
    return state | {name: lake.snapshot(contract).version() for name, contract in TABLES.items()}
