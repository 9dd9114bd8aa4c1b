"""Makes docs/tables.md from the contracts: `python -m embedding.tables.document > docs/tables.md`.

A test compares the committed page with what this prints, and runs each example in it.
"""

from __future__ import annotations

import pyarrow as pa

from embedding.contracts import TABLES, TableContract
from embedding.tables.sql import MACROS, VIEWS

_INTRO = """\
# Tables

Made from `embedding/contracts.py` by `make docs`; change the contracts, not this page.

All tables are [Delta tables](https://github.com/delta-io/delta/blob/master/PROTOCOL.md) under `$PINLAKE_HOME/tables/`
(default `.pinlake/tables/`), written without deletion vectors or column mapping, so that any reader of Delta opens them.
A night replaces its own day's partition of each table in one commit. Every row names its day, `ds`; the current state of
pins is the latest day's row of each, unless that row is a deletion.
"""

_SQL = """\
## A quick question

`pinlake sql` asks in [DuckDB's SQL](https://duckdb.org/docs/stable/sql/introduction), wherever the lake lies; columns and
days that a question does not need are not read. It can write nothing and reads no other file. Besides the tables there are:

{views}

```console
$ pinlake sql "SELECT ds, count(*) AS pins, sum(CAST(deleted AS int)) AS deleted FROM pins GROUP BY ds ORDER BY ds"
$ pinlake sql "SELECT unnest(tags) AS tag, count(*) AS pins FROM current_pins GROUP BY tag ORDER BY pins DESC LIMIT 5"
$ pinlake sql "SELECT n.cosine, p.title FROM (SELECT min(pin_id) AS pin FROM current_vectors), neighbours(pin, 5) AS n \\
    JOIN current_pins AS p USING (pin_id) ORDER BY n.cosine DESC"
$ pinlake sql "SELECT reason, count(*) AS pins FROM quarantine GROUP BY reason" --as-of 2030-01-01
$ pinlake sql "SELECT pin_id, embedding FROM current_vectors" --format parquet --out vectors.parquet
```

`--as-of 2026-11-19T06:00` asks what the tables said at that time, `--as-of pins=3` what a table said at a version; which day
a row is about is in `ds`. `--format csv` and `json` (an object a line) write to standard output. In Python:

```python
from embedding.tables.lake import Lake
from embedding.tables.sql import open_sql

with open_sql(Lake(".pinlake")) as connection:
    pins = connection.sql("SELECT count(*) FROM current_pins").fetchall()
```
"""

_EXAMPLES = '''\
## Queries

Each example counts the pins of today and of a past day, and takes a few current vectors. They expect
the folder of tables in `tables` and a day in `past_day`, for example:

```python
tables, past_day = ".pinlake/tables", "2026-11-18"
```

### deltalake

`QueryBuilder` is deltalake's own SQL engine. Give `DeltaTable` a `version` to see a table as it was at a commit; `ds` says
which day a row is about, the version says when the table learnt of it.

```python
from deltalake import DeltaTable, QueryBuilder

engine = QueryBuilder()
for name in ("pins", "pin_embeddings"):
    engine = engine.register(name, DeltaTable(f"{tables}/{name}"))

state = """
    SELECT * FROM (
        SELECT *, row_number() OVER (PARTITION BY pin_id ORDER BY ds DESC) AS recency FROM pins WHERE ds <= '{day}'
    ) WHERE recency = 1 AND NOT deleted
"""
now = engine.execute(f"SELECT count(*) AS pins FROM ({state.format(day='9999-12-31')})").read_all()
past = engine.execute(f"SELECT count(*) AS pins FROM ({state.format(day=past_day)})").read_all()
vectors = engine.execute(f"""
    SELECT now.pin_id, now.title, e.embedding_version, e.embedding
    FROM ({state.format(day="9999-12-31")}) AS now
    JOIN pin_embeddings AS e ON e.pin_id = now.pin_id AND e.ds = now.ds
    LIMIT 5
""").read_all()
print(now, past)
```

### Polars

```python
import polars as pl


def state(day: str) -> pl.LazyFrame:
    rows = pl.scan_delta(f"{tables}/pins").filter(pl.col("ds") <= day)
    latest = rows.sort("ds").group_by("pin_id").last()
    return latest.filter(~pl.col("deleted"))


now = state("9999-12-31").select(pl.len()).collect()
past = state(past_day).select(pl.len()).collect()
vectors = (
    state("9999-12-31")
    .join(pl.scan_delta(f"{tables}/pin_embeddings"), on=["pin_id", "ds"])
    .select("pin_id", "title", "embedding_version", "embedding")
    .head(5)
    .collect()
)
print(now, past)
```

### DuckDB

Where DuckDB's `delta` extension is installed, `delta_scan('.pinlake/tables/pins')` reads a table. Without it, deltalake names
the Parquet files of a snapshot and DuckDB reads them.

```python
import duckdb
from deltalake import DeltaTable

for name in ("pins", "pin_embeddings"):
    files = DeltaTable(f"{tables}/{name}").file_uris()
    parquet = f"read_parquet({files}, hive_partitioning = true, hive_types_autocast = false)"
    duckdb.sql(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {parquet}")

duckdb.sql("""
    CREATE OR REPLACE MACRO state(day) AS TABLE
    SELECT * FROM pins WHERE ds <= day QUALIFY row_number() OVER (PARTITION BY pin_id ORDER BY ds DESC) = 1 AND NOT deleted
""")
now = duckdb.sql("SELECT count(*) AS pins FROM state('9999-12-31')").fetchall()
past = duckdb.sql(f"SELECT count(*) AS pins FROM state('{past_day}')").fetchall()
vectors = duckdb.sql("""
    SELECT now.pin_id, title, embedding_version, embedding
    FROM state('9999-12-31') AS now JOIN pin_embeddings USING (pin_id, ds) LIMIT 5
""").fetchall()
print(now, past)
```

### Spark

With the `delta-spark` jar, `spark.read.format("delta")` opens the tables. Without it, the files of a snapshot are plain
Parquet: deltalake names them, Spark reads them.

```python
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

spark = SparkSession.builder.config("spark.sql.sources.partitionColumnTypeInference.enabled", "false").getOrCreate()


def table(name: str) -> DataFrame:
    snapshot = DeltaTable(f"{tables}/{name}")
    return spark.read.option("basePath", snapshot.table_uri).parquet(*snapshot.file_uris())


def state(day: str) -> DataFrame:
    latest = Window.partitionBy("pin_id").orderBy(F.col("ds").desc())
    rows = table("pins").where(F.col("ds") <= day).withColumn("recency", F.row_number().over(latest))
    return rows.where("recency = 1 AND NOT deleted").drop("recency")


now = state("9999-12-31").agg(F.count("*").alias("pins")).collect()
past = state(past_day).agg(F.count("*").alias("pins")).collect()
vectors = (
    state("9999-12-31")
    .join(table("pin_embeddings"), ["pin_id", "ds"])
    .select("pin_id", "title", "embedding_version", "embedding")
    .limit(5)
    .collect()
)
print(now, past)
```
'''


def _type_name(arrow: pa.DataType) -> str:
    if pa.types.is_list(arrow):
        return f"array<{_type_name(arrow.value_type)}>"
    names = {pa.int64(): "long", pa.float32(): "float", pa.float64(): "double", pa.bool_(): "boolean", pa.string(): "string"}
    return names.get(arrow, "timestamp")


def describe(contract: TableContract) -> str:
    """One table's section."""
    lines = [f"## `{contract.name}`", "", contract.about, ""]
    partition = ", ".join(f"`{name}`" for name in contract.partition_by) or "nothing"
    key = ", ".join(f"`{name}`" for name in contract.key) or "none"
    lines += [f"Partitioned by {partition}. Key: {key}.", "", "| column | type | null | meaning |", "|---|---|---|---|"]
    for field in contract.schema:
        null = "yes" if field.nullable else "no"
        lines.append(f"| `{field.name}` | {_type_name(field.type)} | {null} | {contract.meanings[field.name]} |")
    lines += ["", *(f"- CHECK `{name}`: `{expression}`" for name, expression in contract.constraints.items()), ""]
    return "\n".join(lines)


def document() -> str:
    """The whole page."""
    views = [f"- `{name}`: {view.about}" if name in VIEWS else f"- {view.about}" for name, view in (VIEWS | MACROS).items()]
    sql = _SQL.format(views="\n".join(views))
    return "\n".join([_INTRO, *(describe(contract) for contract in TABLES.values()), sql, _EXAMPLES]).rstrip() + "\n"


if __name__ == "__main__":
    print(document(), end="")
