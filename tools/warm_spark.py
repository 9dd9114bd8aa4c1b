"""A Spark program that does a little of everything the jobs do, so that the JVM can write down which classes that takes.

Run once by tools/setup_env.sh under -XX:ArchiveClassesAtExit: programs that start from that archive (class data sharing, see
java(1)) need about a third less CPU to come up. Nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F


def main() -> None:
    spark = SparkSession.builder.appName("warm").getOrCreate()

    def same(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from batches

    rows = spark.range(0, 100, 1, 2).mapInArrow(same, "id long").withColumn("name", F.sha2(F.col("id").cast("string"), 256))
    rows = rows.withColumn("tags", F.array("name")).withColumn(
        "rank", F.row_number().over(Window.partitionBy("name").orderBy("id"))
    )
    rows = rows.persist()
    grouped = rows.groupBy("name").agg(F.collect_list(F.struct("id", "tags")).alias("all"), F.max_by("id", "rank").alias("id"))
    joined = rows.join(F.broadcast(grouped.select("name")), "name", "left_semi").join(grouped.select("id"), "id", "left_anti")
    joined.unionByName(rows).repartition(2).select("id").mapInArrow(same, "id long").collect()
    rows.agg(F.count_distinct("name"), F.count_if(F.col("id") > 1)).collect()
    rows.select("id", "name").limit(10).toArrow()


if __name__ == "__main__":
    main()
