"""All pins to another encoder, while the live one goes on serving: embed, build, check, compare, and one change of the pointer.

1. **begin**: the encoder is copied into the lake. From the next night on, each day is embedded under it too.
2. **choose_encoders**: the version that this run migrates to.
3. **migrate**: each landed day's living pins go through the encoder, a commit a day, in several slices. What is there stays: a
   killed slice goes on where it was.
4. **catch_up**: once more over all days, for what landed meanwhile. Mostly there is little or nothing to do.
5. **build** and **check**: a release of the new version, checked like any other.
6. **compare**: each live pin is there; recall; whether a pin's neighbours are on its board as often as under the live
   encoder. A candidate that is incomplete or worse stops here, and the live one goes on.
7. **cut_over**: the pointer names the new release; index and encoder have changed at once. Nights keep the version before it
   fresh until `index_release` retires it, so that `pinlake rollback` is one command.
8. **mirror**: MLflow's alias `live` follows, for people; nothing that serves reads it.

By hand, with the Param `to`: a config's path or name, an embedding version of the lake, or `candidate`. One run at a time.
Slices wait for the pool `migration`, the nights for the pool `spark`: nobody takes the other's place. If a release of the live
version is published between `build` and `cut_over`, the cut-over is refused: clear `catch_up` and what follows it. How to
watch, resume, end and undo a migration: docs/operations.md.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from dags.alerts import run_failed
from dags.common import MIGRATION_POOL, POINTER_POOL, choose_encoders, migration_slices, task_policy
from dags.programs import StopWhenCheckFails, build_and_check, spark_job
from embedding.contracts import FILE_OR_NAME_PATTERN

TO = "{{ ti.xcom_pull(task_ids='choose_encoders', key='candidate') }}"

with DAG(
    dag_id="encoder_migration",
    description="Move all pins to another encoder, and cut over.",
    doc_md=__doc__,
    tags=["pinlake", "encoder"],
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=14),
    default_args=task_policy(),
    on_failure_callback=run_failed,
    params={
        "to": Param(
            "candidate",
            type="string",
            pattern=FILE_OR_NAME_PATTERN,
            description="Config's path or name, embedding version, or candidate.",
        ),
        "allow_worse": Param(False, type="boolean", description="Cut over though board-mates are found less often than now."),
        "min_coverage": Param(
            0.9, type="number", minimum=0, maximum=1, description="Least share of a day's live vectors that it must have too."
        ),
    },
) as dag:
    at_least = ("--min-coverage", "{{ params.min_coverage }}")
    slow = {"pool": MIGRATION_POOL, "retry_policy": StopWhenCheckFails(), "execution_timeout": timedelta(days=7)}
    slices = migration_slices()

    begin = spark_job("begin", "begin_migration.py", "--to={{ params.to }}")
    chosen = choose_encoders()
    migrate = [
        spark_job(f"migrate_{i}", "migrate_pins.py", "--to", TO, "--slice", str(i), "--of", str(slices), *at_least, **slow)
        for i in range(slices)
    ]
    catch_up = spark_job("catch_up", "migrate_pins.py", "--to", TO, *at_least, **slow)
    build, check = build_and_check(encoder=chosen["candidate"], execution_timeout=timedelta(hours=12))
    allow = "{{ '--allow-worse' if params.allow_worse else '' }}"
    compare = spark_job("compare", "compare_encoders.py", allow, retry_policy=StopWhenCheckFails())
    cut_over = spark_job("cut_over", "publish_index.py", "--cut-over", pool=POINTER_POOL)
    mirror = spark_job("mirror", "mirror_registry.py", execution_timeout=timedelta(minutes=15))

    begin >> chosen >> migrate >> catch_up >> build >> check >> compare >> cut_over >> mirror
