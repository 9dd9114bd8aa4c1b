"""Looking rows up by a column's values, in files that are written as nights write them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding.contracts import PIN_EMBEDDINGS
from embedding.tables.lake import Lake, data_files, replace_partition
from embedding.tables.scan import Wanted, column_keys, projected_schema, scan_file
from embedding.tables.staging import Stager

PARTITION = {"embedding_version": "tiny-0123456789ab", "ds": "2026-11-18"}
ROWS = 50_000
"""Three row groups."""


def sha256(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def write_lake(folder: Path) -> Lake:
    """Pin i shows content i // 2."""
    lake = Lake(str(folder))
    contents = pa.array([sha256(number // 2) for number in range(ROWS)])
    vectors = pa.ListArray.from_arrays(np.arange(0, 2 * ROWS + 1, 2, dtype=np.int32), np.arange(2 * ROWS, dtype=np.float32))
    yes, night = pa.repeat(True, ROWS), pa.repeat("night", ROWS)
    columns = [np.arange(ROWS), contents, contents, vectors, yes, yes, night, night]
    with Stager(lake.table_uri(PIN_EMBEDDINGS), PIN_EMBEDDINGS, PARTITION) as stager:
        stager.add(pa.table(columns, names=PIN_EMBEDDINGS.file_schema.names))
        stager.flush()
    replace_partition(lake, PIN_EMBEDDINGS, PARTITION, stager.files, expected_version=0, run_id="night")
    return lake


def look_up(lake: Lake, wanted: Wanted) -> pa.Table:
    table = lake.open(PIN_EMBEDDINGS)
    schema = projected_schema(table, ["ds", "pin_id", "content_sha256", "embedding"])
    found = [batch.cast(schema) for file in data_files(table) for batch in scan_file(file, schema, wanted)]
    return pa.Table.from_batches(found, schema)


def test_a_look_up_finds_the_rows_that_a_whole_read_would(tmp_path: Path) -> None:
    lake = write_lake(tmp_path)
    chosen = [3, 4, 9_999, 24_999, 70_000]  # the last one is of no pin
    keys = np.unique(column_keys(pa.array([sha256(number) for number in chosen])))
    found = look_up(lake, Wanted("content_sha256", keys))
    assert found["pin_id"].to_pylist() == [6, 7, 8, 9, 19_998, 19_999, 49_998, 49_999]
    assert found["content_sha256"].to_pylist() == [sha256(pin // 2) for pin in found["pin_id"].to_pylist()]
    assert found["embedding"].to_pylist() == [[2 * pin, 2 * pin + 1] for pin in found["pin_id"].to_pylist()]
    assert set(found["ds"].to_pylist()) == {PARTITION["ds"]}
    assert look_up(lake, Wanted("content_sha256", keys, once=True))["pin_id"].to_pylist() == [6, 8, 19_998, 49_998]
    assert look_up(lake, Wanted("content_sha256", keys[:0])).num_rows == 0


def test_ids_are_looked_up_by_themselves(tmp_path: Path) -> None:
    ids = pa.array([-5, 0, 40_001, 2**62], pa.int64())
    found = look_up(write_lake(tmp_path), Wanted("pin_id", np.unique(column_keys(ids))))
    assert found["pin_id"].to_pylist() == [0, 40_001]


def test_keys_of_a_slice_are_those_of_its_rows() -> None:
    hashes = pa.array([sha256(number) for number in range(10)])
    assert column_keys(hashes.slice(3, 4)).tolist() == [int(sha256(number)[:16], 16) for number in range(3, 7)]
    assert column_keys(hashes.slice(3, 0)).tolist() == []
