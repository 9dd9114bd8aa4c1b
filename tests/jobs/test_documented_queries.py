"""Each query of docs/tables.md runs as it stands there, on a real lake, and all engines agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from demo.days import DEMO_DAYS
from embedding.contracts import PINS, TABLES
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = dict(re.findall(r"^### (\w+)\n.*?```python\n(.*?)```", (REPO / "docs" / "tables.md").read_text(), re.M | re.S))


def test_the_page_has_an_example_for_each_engine() -> None:
    assert set(EXAMPLES) == {"deltalake", "Polars", "DuckDB", "Spark"}


def scalar(result: Any) -> int:
    """The one number of a result, in whatever an engine calls a table."""
    if hasattr(result, "__arrow_c_stream__"):
        result = [tuple(row.values()) for row in pa.table(result).to_pylist()]
    return int(result[0][0])


@pytest.mark.parametrize("engine", sorted(EXAMPLES))
def test_example(engine: str, lake_of_three_nights: Lake, spark_environment: None) -> None:
    pins = sorted(read_rows(lake_of_three_nights.open(PINS)).to_pylist(), key=lambda row: row["ds"])
    now = {row["pin_id"]: row["deleted"] for row in pins}
    past = {row["pin_id"]: row["deleted"] for row in pins if row["ds"] <= DEMO_DAYS[0]}
    tables = Path(lake_of_three_nights.table_uri(TABLES["pins"])).parent
    names: dict[str, Any] = {"tables": str(tables), "past_day": DEMO_DAYS[0]}
    exec(compile(EXAMPLES[engine], engine, "exec"), names)
    assert scalar(names["now"]) == sum(not deleted for deleted in now.values())
    assert scalar(names["past"]) == sum(not deleted for deleted in past.values())
    assert len(names["vectors"]) == 5 or names["vectors"].num_rows == 5
