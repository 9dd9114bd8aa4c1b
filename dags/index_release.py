"""A release of the index: built from the checked embeddings, checked against exact search, published in one move.

1. **choose_encoders**: the version that is live now is the one that is built.
2. **build**: the recipe (chosen by trying, kept from night to night), shards, files and manifest of a candidate. Nobody
   reads it yet.
3. **check**: SHA-256 of every file, rows and ids against the tables' versions, known pins, recall@10 against exact search,
   latency, overlap with the live release.
4. **publish**: the candidate becomes live by one atomic change of the pointer; the previous release stays for rollback. If
   another version went live since step 1, this fails and changes nothing: the next night's release is of that version. Then
   the oldest releases go; the last seven stay.
5. **retire**: a version that served before is deleted once it has been kept for its retention. Mostly there is none.

Starts with the day's event of the asset `pin_embeddings`, which `nightly_pins` emits once its gate passed; the run has the
same partition key as the night. Days that finish together get a run each, first come, first served; a day that finishes
twice before its run starts gets one. One run at a time, so that releases don't race for the pointer. By hand: trigger with
a partition key or with the Param `ds`.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.alerts import deadline, run_failed
from dags.common import (
    DAY,
    PIN_EMBEDDINGS,
    POINTER_POOL,
    choose_encoders,
    day_of,
    day_param,
    releases_kept,
    retention_days,
    task_policy,
)
from dags.programs import build_and_check, mapped_job, spark_job

with DAG(
    dag_id="index_release",
    description="Build an index of the checked embeddings, check it, publish it.",
    doc_md=__doc__,
    tags=["pinlake", "release"],
    schedule=PartitionedAssetTimetable(assets=PIN_EMBEDDINGS),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    deadline=deadline("index_release"),
    default_args=task_policy(),
    on_failure_callback=run_failed,
    user_defined_macros={"day_of": day_of},
    params={"ds": day_param()},
) as dag:
    chosen = choose_encoders("leaving")
    build, check = build_and_check("--ds", DAY, encoder=chosen["live"], execution_timeout=timedelta(hours=6))
    keep = ("--keep-releases", releases_kept())
    publish = spark_job("publish", "publish_index.py", *keep, pool=POINTER_POOL, execution_timeout=timedelta(minutes=15))
    kept = ("--retention-days", retention_days())
    retire = mapped_job("retire", "retire_encoders.py", *kept, encoders=chosen, pool=POINTER_POOL)

    chosen >> build >> check >> publish >> retire
