"""The shards of the pin-board graph, written by executors: numbers for its nodes, and each direction's adjacency lists."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from embedding.tables import storage
from embedding.taste.graph import (
    BOARDS_SIDE,
    MOST_NODES,
    PINS_SIDE,
    GraphError,
    Ids,
    Increment,
    SideStatistics,
    adjacency,
    degree_pairs,
    degree_statistics,
    file_name,
    summed_degrees,
    write_piece,
)
from jobs.release_files import WRITTEN, collected, uploaded
from jobs.session import ArrowRows, map_arrow, spark_schema

KEYS = {PINS_SIDE: "pin_id", BOARDS_SIDE: "board_id"}
Files = dict[str, dict[str, Any]]
OTHER = {PINS_SIDE: BOARDS_SIDE, BOARDS_SIDE: PINS_SIDE}
_DEALT = pa.schema([*((n, pa.int64()) for n in ("pin_id", "board_id", "saved", "pins", "boards"))])
"""An edge, its time in minutes since 1970, and the shards of its pin and of its board."""
_SIDE = pa.schema([*WRITTEN, ("degrees", pa.list_(pa.int64()))])
"""A file of a shard, and how many of its nodes have each degree."""


@dataclass(frozen=True)
class Made:
    """A graph's files, and what its manifest says of them."""

    starts: dict[str, list[int]]
    sides: dict[str, SideStatistics]
    degrees: dict[str, list[list[int]]]
    files: Files
    increment: Increment | None = None


def bounds_of(edges: DataFrame, key: str, count: int, shards: int) -> Ids:
    """The first id of each shard but the first, so that the `count` edges fall about evenly. The same edges give the same ones.

    From a sample by hash: a thousand edges a shard pass through the driver.
    """
    chosen = F.pmod(F.xxhash64("pin_id", "board_id"), F.lit(max(1, count // (1_000 * shards)))) == 0
    ids = np.sort(np.array([row[0] for row in edges.where(chosen).select(key).collect()], np.int64))
    bounds = np.unique(ids[[len(ids) * number // shards for number in range(1, shards)]])
    found: Ids = bounds[bounds > ids[0]]  # no shard is empty: each begins with a node that there is
    return found


def deal(edges: DataFrame, bounds: dict[str, Ids]) -> DataFrame:
    """The edges with their shards."""

    def run(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            found = [np.searchsorted(bounds[side], batch.column(key).to_numpy(), "right") for side, key in KEYS.items()]
            yield pa.RecordBatch.from_arrays([*batch.columns, *(pa.array(f, pa.int64()) for f in found)], schema=_DEALT)

    return map_arrow(edges.select("pin_id", "board_id", "saved"), run, _DEALT)


def number_nodes(dealt: DataFrame, side: str, root: str) -> list[int]:
    """Writes the ids of each shard's nodes below `root`. Returns how many each has."""

    def write(table: pa.Table) -> pa.Table:
        number, ids = table[side][0].as_py(), np.unique(table[KEYS[side]].to_numpy())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file_name(side, number, "ids")
            np.save(path, ids)
            return pa.Table.from_batches([uploaded(number, len(ids), [path], root)])

    nodes = dealt.select(side, KEYS[side]).distinct().groupBy(side).applyInArrow(write, spark_schema(WRITTEN))
    rows = collected(nodes).rows
    if sum(rows.values()) > MOST_NODES:
        raise GraphError(f"{sum(rows.values())} {side}: nodes are numbered with 32 bits, up to {MOST_NODES}")
    return [rows[number] for number in range(len(rows))]


def _read_ids(root: str, side: str, shard: int) -> Ids:
    ids: Ids = np.load(io.BytesIO(storage.read_bytes(f"{root}/{file_name(side, shard, 'ids')}")), allow_pickle=False)
    return ids


def place(dealt: DataFrame, side: str, starts: Sequence[int], root: str) -> DataFrame:
    """The edges with the numbers of this side's nodes in the place of their ids."""

    def run(table: pa.Table) -> pa.Table:
        shard, column = table[side][0].as_py(), table.column_names.index(KEYS[side])
        numbers = starts[shard] + np.searchsorted(_read_ids(root, side, shard), table[KEYS[side]].to_numpy())
        return table.set_column(column, KEYS[side], pa.array(numbers, pa.int64()))

    return dealt.groupBy(side).applyInArrow(run, spark_schema(_DEALT))


def write_graph(edges: DataFrame, count: int, edges_a_shard: int, root: str, max_degree: int) -> Made:
    """Writes the whole graph of `count` edges (pin_id, board_id, saved) below `root`."""
    shards = -(-count // edges_a_shard)
    dealt = deal(edges, {side: bounds_of(edges, key, count, shards) for side, key in KEYS.items()})
    starts = {side: np.cumsum([0, *number_nodes(dealt, side, root)]).tolist()[:-1] for side in KEYS}
    placed = place(place(dealt, PINS_SIDE, starts[PINS_SIDE], root), BOARDS_SIDE, starts[BOARDS_SIDE], root).persist()
    files: Files = {}
    sides, degrees = {}, {}
    for side in KEYS:
        of_side, of_degree = write_side(placed, side, starts[side], root, max_degree)
        sides[side], degrees[side] = degree_statistics(of_degree, count), degree_pairs(of_degree)
        files |= of_side
    return Made(starts, sides, degrees, dict(sorted(files.items())))


def write_side(placed: DataFrame, side: str, starts: Sequence[int], root: str, max_degree: int) -> tuple[Files, Ids]:
    """Writes the adjacency lists of one side. Returns its files, and how many nodes have 0, 1, 2 ... edges."""

    def write(table: pa.Table) -> pa.Table:
        shard = table[side][0].as_py()
        ids = _read_ids(root, side, shard)
        of, to, saved = (table[name].to_numpy() for name in (KEYS[side], KEYS[OTHER[side]], "saved"))
        rows = adjacency(len(ids), of - starts[shard], to, saved, max_degree)
        with tempfile.TemporaryDirectory() as folder:
            found = uploaded(shard, len(ids), write_piece(Path(folder), side, shard, ids, rows), root).to_pylist()
        degrees = [np.bincount(np.diff(rows.offsets)).tolist(), *([[]] * (len(found) - 1))]
        return pa.Table.from_pylist([file | {"degrees": d} for file, d in zip(found, degrees, strict=True)], schema=_SIDE)

    # A node's newest edges are chosen here, where a sort may spill: no task holds all edges of a pin that everybody has.
    newest = Window.partitionBy(KEYS[side]).orderBy(F.desc("saved"), KEYS[OTHER[side]])
    kept = placed.withColumn("rank", F.row_number().over(newest)).where(F.col("rank") <= max_degree).drop("rank")
    rows = kept.groupBy(side).applyInArrow(write, spark_schema(_SIDE)).collect()
    files = {row.name: {"size_bytes": row.size, "sha256": row.sha} for row in rows}
    return files, summed_degrees([row.degrees for row in rows])
