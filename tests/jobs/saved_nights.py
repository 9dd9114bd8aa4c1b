"""A lake of saves without a picture: tables as nights leave them, and its edges by the tables' definition, without Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.contracts import BOARDS, NIGHTS, PINS, SAVES, TableContract
from embedding.tables.lake import Lake, partition_version, replace_partition
from embedding.tables.rows import write_row
from embedding.tables.scan import read_rows
from embedding.tables.staging import Stager
from embedding.taste.graph import Graph

VERSION = "pinclip-base-0123456789ab"
Rows = Sequence[Mapping[str, Any]]


def pin(pin_id: int, deleted: bool = False) -> dict[str, Any]:
    return {"pin_id": pin_id, "deleted": deleted}


def board(board_id: int, deleted: bool = False) -> dict[str, Any]:
    return {"board_id": board_id, "deleted": deleted}


def save(user: int, pin_id: int, board_id: int, minute: int | None, deleted: bool = False) -> dict[str, Any]:
    at = None if minute is None else datetime.fromtimestamp(60 * minute, UTC)
    return {"user_id": user, "pin_id": pin_id, "board_id": board_id, "saved_at": at, "deleted": deleted}


def land(lake: Lake, ds: str, pins: Rows, boards: Rows, saves: Rows) -> None:
    """Replaces a day of the three tables, in a commit each, as a night does. Several files of `saves`, if there are rows."""
    lake.create_all()
    for contract, rows in ((PINS, pins), (BOARDS, boards), (SAVES, saves)):
        seen = partition_version(lake.open(contract), {"ds": ds})
        with Stager(lake.table_uri(contract), contract, {"ds": ds}, max_rows=max(1, len(rows) // 2)) as staged:
            for row in rows:
                staged.add(pa.Table.from_pylist([_filled(contract, row)], contract.schema))
            staged.flush()
        replace_partition(lake, contract, {"ds": ds}, staged.files, expected_version=seen, run_id="night")


def judge(lake: Lake, ds: str, *, passed: bool = True) -> None:
    """The row of `nights` that says whether a day counts."""
    told = {"run_id": f"night-{ds}", "ds": ds, "embedding_version": VERSION, "status": "passed" if passed else "failed"}
    write_row(lake, NIGHTS, _filled(NIGHTS, told | {"checked_at": datetime.now(UTC)}))


def _filled(contract: TableContract, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with something in the columns that no graph reads."""
    empty = {pa.string(): "x", pa.int64(): 0, pa.bool_(): False}
    return {
        field.name: row.get(field.name, None if field.nullable else empty.get(field.type, "x")) for field in contract.schema
    }


def edges_of_tables(lake: Lake, days: Sequence[str]) -> dict[tuple[int, int], int]:
    """(pin, board) and its minute, of the days that count."""

    def latest(contract: TableContract, *key: str) -> dict[tuple[int, ...], dict[str, Any]]:
        rows = sorted(read_rows(lake.open(contract)).to_pylist(), key=lambda row: row["ds"])
        return {tuple(row[name] for name in key): row for row in rows if row["ds"] in days}

    pins = {key[0] for key, row in latest(PINS, "pin_id").items() if not row["deleted"]}
    boards = {key[0] for key, row in latest(BOARDS, "board_id").items() if not row["deleted"]}
    found: dict[tuple[int, int], int] = {}
    for row in latest(SAVES, "user_id", "pin_id", "board_id").values():
        edge = (row["pin_id"], row["board_id"])
        if not row["deleted"] and edge[0] in pins and edge[1] in boards:
            at = row["saved_at"] or datetime.fromisoformat(row["ds"]).replace(tzinfo=UTC)
            found[edge] = max(found.get(edge, 0), int(at.timestamp()) // 60)
    return found


def graph_of_tables(lake: Lake, days: Sequence[str], max_degree: int) -> Graph:
    edges = edges_of_tables(lake, days)
    pairs = np.array(sorted(edges), np.int64)
    return Graph.of_edges(pairs[:, 0], pairs[:, 1], np.array([edges[p, b] for p, b in pairs.tolist()]), max_degree)
