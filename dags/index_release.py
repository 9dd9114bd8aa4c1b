"""A release of the index: built from the checked embeddings, checked against exact search, published in one move.

1. **build**: shards, files and manifest of a candidate. Nobody reads it yet.
2. **check**: SHA-256 of every file, row count against the table's version, recall@10 against exact search.
3. **publish**: the candidate becomes live by one atomic change of the pointer; the previous release stays for rollback.

Starts with the day's event of the asset `pin_embeddings`, which `nightly_pins` emits once its gate passed; the run has the
same partition key as the night. Days that finish together get a run each, first come, first served; a day that finishes
twice before its run starts gets one. One run at a time, so that releases don't race for the pointer. By hand: trigger with
a partition key or with the Param `ds`.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.common import DAY, PIN_EMBEDDINGS, StopWhenCheckFails, day_of, day_param, encoder, spark_job, task_policy

with DAG(
    dag_id="index_release",
    description="Build an index of the checked embeddings, check it, publish it.",
    doc_md=__doc__,
    tags=["pinlake", "release"],
    schedule=PartitionedAssetTimetable(assets=PIN_EMBEDDINGS),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    default_args=task_policy(),
    user_defined_macros={"day_of": day_of},
    params={"ds": day_param()},
) as dag:
    build = spark_job("build", "build_index.py", "--encoder", encoder(), "--ds", DAY, execution_timeout=timedelta(hours=6))
    check = spark_job("check", "check_index.py", retry_policy=StopWhenCheckFails())
    publish = spark_job("publish", "publish_index.py", execution_timeout=timedelta(minutes=15))

    build >> check >> publish
