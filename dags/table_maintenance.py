"""The tables' upkeep, once a week: what was deleted is forgotten, files are few, logs short, and nothing is kept in vain.

**forget**: what was deleted `forget_days` ago or earlier is taken out of the tables' older days; releases, training sets and
graphs that were made of it and are as old go, too. Fails where the live release or graph is that old: then the nightly ones do
not get through any more. What is left of a deletion, where and for how long: docs/decisions/0015-forgetting.md.

**maintain**, table by table:

1. **rewrite**: a day of many small files, or of files that a look-up of one pin would all have to open, becomes few files in
   the order of their ids. No row changes. A night that commits the day meanwhile is not held up: the rewrite gives way.
2. **log**: a checkpoint of the current version, so that tables open quickly; entries older than 90 days go.
3. **vacuum**: files go that no version of the retention's time needs, and what runs that were killed left behind. Versions that
   the live release and those to go back to refer to stay readable, however old they are.

Saturdays at 06:00 UTC, and by hand: with `dry_run` it says what it would do, table by table, and changes none. What was done is
in the tasks' logs and in `$PINLAKE_HOME/runs/ds=maintenance/<run>/`. It runs beside nights, releases and migrations, never
beside itself. Killed at any point, it goes on when its task is cleared. (docs/decisions/0008-maintenance.md)
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param

from dags.alerts import run_failed
from dags.common import first_night, forget_days, table_retention_hours, task_policy
from dags.programs import StopWhenCheckFails, spark_job

MOST_DAYS = 36_500
"""Of a retention."""

MAINTENANCE_POOL = "maintenance"
"""Pool of what rewrites and deletes the tables' files (dags/pools.json): beside the nights, in nobody's place."""

with DAG(
    dag_id="table_maintenance",
    description="Forget what was deleted, rewrite small files, shorten the logs, delete what nobody needs.",
    doc_md=__doc__,
    tags=["pinlake", "tables"],
    schedule=CronTriggerTimetable("0 6 * * 6", timezone="UTC", run_immediately=timedelta(0)),  # as in nightly_pins
    start_date=first_night(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=2),
    default_args=task_policy(),
    on_failure_callback=run_failed,
    params={
        "dry_run": Param(False, type="boolean", description="Say what would be done, and do nothing."),
        "retention_hours": Param(
            table_retention_hours(),
            type="integer",
            minimum=24,
            maximum=24 * MOST_DAYS,
            description="How long files stay that are no longer needed. Never less than the longest night takes.",
        ),
        "forget_days": Param(
            forget_days(),
            type="integer",
            minimum=1,
            maximum=MOST_DAYS,
            description="For how many days a deletion can still be taken back.",
        ),
    },
) as dag:
    # Neither waits for the other's success: the pool lets one of them run at a time.
    forget = spark_job(
        "forget",
        "forget.py",
        "--forget-days",
        "{{ params.forget_days }}",
        "{{ '--dry-run' if params.dry_run else '' }}",
        pool=MAINTENANCE_POOL,
        priority_weight=2,
        retry_policy=StopWhenCheckFails(),
        execution_timeout=timedelta(hours=12),
    )
    maintain = spark_job(
        "maintain",
        "maintain_tables.py",
        "--retention-hours",
        "{{ params.retention_hours }}",
        "{{ '--dry-run' if params.dry_run else '' }}",
        pool=MAINTENANCE_POOL,
        execution_timeout=timedelta(hours=12),
    )
