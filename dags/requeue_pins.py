"""Quarantined pins tried again: by reason or by pin, on whichever days they are, and a release with those that came right.

1. **choose_encoders**: the version that is live now.
2. **requeue**: each day that has such pins is embedded, checked and recorded again; nothing else of it changes. What fails
   again stays in quarantine, with its reason of today.
3. **build**, **check**, **publish**: the next release, as every night's; where the tables have not moved, it is the live one.

By hand, after a store's outage or once a setting was mended, with the Params `reasons` (`["fetch_failed", "missing_image"]`),
`pins` (`[42, 43]`), or both: pins that either names. Which reasons there are, and how many pins each holds, says the section
"Quarantine" of the report. One run at a time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from dags.alerts import run_failed
from dags.common import POINTER_POOL, choose_encoders, task_policy
from dags.programs import StopWhenCheckFails, build_and_check, spark_job
from embedding.contracts import EMBED_REASONS, MAX_ID

with DAG(
    dag_id="requeue_pins",
    description="Try quarantined pins again, by reason or by pin.",
    doc_md=__doc__,
    tags=["pinlake", "nightly"],
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    default_args=task_policy(),
    on_failure_callback=run_failed,
    params={
        "reasons": Param(
            [],
            type="array",
            items={"type": "string", "enum": sorted(EMBED_REASONS)},
            uniqueItems=True,
            description="Try the pins again that are in quarantine for one of these reasons.",
        ),
        "pins": Param(
            [],
            type="array",
            items={"type": "integer", "minimum": -MAX_ID, "maximum": MAX_ID},
            maxItems=5_000,  # 100 KB: an argument of a program has at most 128
            description="Try these pins again.",
        ),
    },
) as dag:
    asked = ("--retry-reasons={{ params.reasons | join(',') }}", "--retry-pins={{ params.pins | join(',') }}")
    chosen = choose_encoders()
    requeue = spark_job(
        "requeue", "requeue_pins.py", *asked, retry_policy=StopWhenCheckFails(), execution_timeout=timedelta(hours=8)
    )
    build, check = build_and_check(encoder=chosen["live"], execution_timeout=timedelta(hours=6))
    publish = spark_job("publish", "publish_index.py", pool=POINTER_POOL, execution_timeout=timedelta(minutes=15))

    chosen >> requeue >> build >> check >> publish
