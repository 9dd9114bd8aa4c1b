"""Tables of a row a run or a release: one row is written, or replaced by its key, in one commit. Small by nature."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake
from deltalake.exceptions import CommitFailedError

from embedding.contracts import TableContract
from embedding.tables.lake import Lake

_MAX_WRITE_ATTEMPTS = 30


def write_row(lake: Lake, contract: TableContract, row: Mapping[str, Any], sleep: Callable[[float], None] = time.sleep) -> None:
    """Makes `row` the only one of its key. Rows of other keys that are written side by side all arrive.

    Raises CommitFailedError where others were faster again and again.
    """
    quoted = {name: str(row[name]).replace("'", "''") for name in contract.key}
    own = " AND ".join(f"{name} = '{value}'" for name, value in quoted.items())
    lake.open(contract)
    rows = pa.Table.from_pylist([dict(row)], schema=contract.schema)
    for attempt in range(_MAX_WRITE_ATTEMPTS):
        try:
            write_deltalake(lake.table_uri(contract), rows, mode="overwrite", predicate=own)
            return
        except CommitFailedError:
            sleep(random.uniform(0.05, 0.2) * min(attempt + 1, 10))  # noqa: S311 - jitter, no secret
    raise CommitFailedError(f"{contract.name}: no commit in {_MAX_WRITE_ATTEMPTS} attempts, others were always faster")
