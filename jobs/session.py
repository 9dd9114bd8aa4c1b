"""What every Spark program here shares: arguments, session, reading Delta tables, staging files.

Delta tables are read by executors through pyarrow, file by file from the snapshot's log, so that no jar is needed and
every address that the library knows works the same on every master.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import DeltaTable
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from embedding import log_lines
from embedding.contracts import TableContract
from embedding.encoder.config import DEFAULT_CONFIG
from embedding.encoder.store import LIVE, LakeEncoder, resolve_encoder
from embedding.log_lines import told_in_workers
from embedding.redaction import hide_in_tracebacks
from embedding.tables.lake import DayChangedError, Lake, PartitionFilter, data_files
from embedding.tables.scan import projected_schema, scan_file
from embedding.tables.staging import STAGED_SCHEMA, StagedFile, describe_staged, staged_files
from embedding.workers import imports_aside
from jobs.argument_types import address, day_argument, run_name
from jobs.credentials import credentials_conf

ArrowRows = Iterator[pa.RecordBatch]
Item = TypeVar("Item")

EXIT_BAD_INPUT = 2  # the day's data or the arguments are at fault: a retry without a change will fail again
EXIT_GATE_FAILED = 3  # the quality gate said no

ENCODER_HELP = """live (the default: the live release's; without a release $PINLAKE_ENCODER, else pinclip-base), candidate, an
embedding version of the lake, or a config's name or path"""

log = logging.getLogger("pinlake")


class _Arguments(argparse.ArgumentParser):
    """Has the log's lines say what the program was asked about."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = super().parse_known_args(args, namespace)
        ds = getattr(parsed, "ds", None)
        log_lines.start_over(run_id=parsed.run_id, ds=ds if ds and ds[0].isdigit() else None)
        return parsed, rest


def arguments(about: str | None, *, ds: bool = True, encoder: bool = False) -> argparse.ArgumentParser:
    """A parser with the arguments that the programs share."""
    parser = _Arguments(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = "where the tables and releases lie: a folder or an object-store URI"
    parser.add_argument("--home", required=True, type=address, help=where)
    parser.add_argument("--run-id", required=True, type=run_name, help="names this run in the rows that it writes")
    if ds:
        parser.add_argument("--ds", required=True, type=day_argument, help="the data's day, YYYY-MM-DD")
    if encoder:
        parser.add_argument("--encoder", default=LIVE, help=ENCODER_HELP)
    return parser


def job_encoder(lake: Lake, spec: str) -> LakeEncoder:
    """The encoder that `--encoder` means; a named config is copied into the lake on its first use."""
    encoder = resolve_encoder(lake, spec, os.environ.get("PINLAKE_ENCODER") or DEFAULT_CONFIG)
    log_lines.tell(embedding_version=encoder.version)
    return encoder


def spark_session(name: str) -> SparkSession:
    """The session. Master and resources come from spark-submit or its defaults; only what results depend on is set here."""
    return (
        SparkSession.builder.appName(f"pinlake {name}")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "1024")
        .config("spark.log.level", "WARN")
        .config("spark.ui.showConsoleProgress", "false")
        .config(map=dict(credentials_conf()))
        # Spark takes what Python reads for little, and would send all of it to everyone. Adaptive execution sees sizes.
        .config("spark.sql.autoBroadcastJoinThreshold", "-1")
        .config("spark.sql.adaptive.autoBroadcastJoinThreshold", "10MB")
        .getOrCreate()
    )


def run_program(main: Callable[[], int | None], *expected: type[Exception]) -> None:
    """Runs a program's main. An error of the `expected` kinds ends it with a sentence and EXIT_BAD_INPUT, no traceback."""
    log_lines.set_up(sys.stdout)
    hide_in_tracebacks()
    logging.getLogger("py4j").setLevel(logging.WARNING)
    try:
        sys.exit(main() or 0)
    except expected as error:
        log.error("%s", error)
        sys.exit(EXIT_BAD_INPUT)
    except Exception:
        log.exception("%s failed", Path(sys.argv[0]).name)
        sys.exit(1)


def spark_schema(schema: pa.Schema) -> StructType:
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    return from_arrow_schema(nullable)


def map_items(
    spark: SparkSession, items: Sequence[Item], function: Callable[[Item], Iterable[pa.RecordBatch]], schema: pa.Schema
) -> DataFrame:
    """The batches that `function` makes of each item (a file, say), the items shared out over the executors.

    The items travel with the function, and a range of numbers drives it: a DataFrame of the items themselves would be
    pickled through a Python worker of its own first.
    """
    items = list(items)
    slices = max(1, min(len(items), 4 * spark.sparkContext.defaultParallelism))

    def run(batches: ArrowRows) -> ArrowRows:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from function(items[number])

    return map_arrow(spark.range(0, len(items), 1, slices), run, schema)


def map_arrow(
    frame: DataFrame, function: Callable[[ArrowRows], ArrowRows], schema: pa.Schema, profile: ResourceProfile | None = None
) -> DataFrame:
    """`function` over each partition's batches; in a stage that asks for the resources of `profile`, where there is one."""
    return frame.mapInArrow(imports_aside(told_in_workers(function)), spark_schema(schema), profile=profile)


def read_table(
    spark: SparkSession, table: DeltaTable, columns: Sequence[str], where: PartitionFilter | None = None
) -> DataFrame:
    """Columns of a Delta snapshot, of the partitions that `where` keeps, as a DataFrame."""
    schema = projected_schema(table, columns)
    return map_items(spark, data_files(table, where), partial(scan_file, schema=schema), schema)


def stage(frame: DataFrame, function: Callable[[ArrowRows], Iterable[StagedFile]]) -> dict[str, list[StagedFile]]:
    """Runs `function` on each partition of `frame`; returns the files that the successful attempts staged, by table."""

    def report(batches: ArrowRows) -> ArrowRows:
        yield describe_staged(function(batches))

    rows = map_arrow(frame, report, STAGED_SCHEMA).collect()
    by_table: dict[str, list[StagedFile]] = {}
    for file in staged_files(row.asDict() for row in rows):
        by_table.setdefault(file.table, []).append(file)
    return by_table


def until_settled(step: Callable[[], None], attempts: int = 3) -> None:
    """Runs a step that ends in commits; again where another run of the day committed first, so that it finds its work done."""
    for attempt in range(1, attempts + 1):
        try:
            step()
            return
        except DayChangedError as change:
            if attempt == attempts:
                raise
            log.info("%s; looking again", change)


def with_columns(batch: pa.RecordBatch, constants: Mapping[str, str | None]) -> pa.RecordBatch:
    """The batch with text columns of one value each set."""
    for name, value in constants.items():
        column = pa.array([value] * batch.num_rows, pa.string())
        index = batch.schema.get_field_index(name)
        batch = batch.append_column(name, column) if index < 0 else batch.set_column(index, name, column)
    return batch


def contract_partition(contract: TableContract, **values: str | None) -> dict[str, str | None]:
    return {name: values[name] for name in contract.partition_by}
