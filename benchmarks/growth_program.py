"""A program that does nothing but start: a session, and on each worker a Python that has imported what the jobs import."""

from __future__ import annotations

import argparse

import pyarrow as pa

import embedding.tables.staging
import jobs.current  # noqa: F401
from jobs.session import ArrowRows, map_items, run_program, spark_session

_ROWS = pa.schema([("rows", pa.int64())])


def _number(number: int) -> ArrowRows:
    assert embedding.tables.staging.MAX_ROWS_A_FILE
    yield pa.RecordBatch.from_pydict({"rows": [number]}, _ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, required=True)
    tasks = parser.parse_args().tasks
    assert map_items(spark_session("nothing"), list(range(tasks)), _number, _ROWS).count() == tasks


if __name__ == "__main__":
    run_program(main)
