"""The tables' upkeep, once a week: few large files in the order of their ids, a short log, nothing on disk that nobody needs.

**maintain**, table by table:

1. **rewrite**: a day of many small files, or of files that a look-up of one pin would all have to open, becomes few files in
   the order of their ids. No row changes. A night that commits the day meanwhile is not held up: the rewrite gives way.
2. **log**: a checkpoint of the current version, so that tables open quickly; entries older than 90 days go.
3. **vacuum**: files go that no version of the retention's time needs, and what runs that were killed left behind. Versions that
   the live release and those to go back to refer to stay readable, however old they are.

Saturdays at 06:00 UTC, and by hand: with `dry_run` it says what it would do, table by table, and changes none. What was done is
in its log and in `$PINLAKE_HOME/runs/ds=maintenance/<run>/maintain.json`. It runs beside nights, releases and migrations, never
beside itself. Killed at any point, it goes on when its task is cleared. (docs/decisions/0008-maintenance.md)
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param

from dags.common import first_night, spark_job, table_retention_hours, task_policy

MAINTENANCE_POOL = "maintenance"
"""Pool of what rewrites and deletes the tables' files (dags/pools.json): beside the nights, in nobody's place."""

with DAG(
    dag_id="table_maintenance",
    description="Rewrite small files, shorten the logs, delete what nobody needs.",
    doc_md=__doc__,
    tags=["pinlake", "tables"],
    schedule=CronTriggerTimetable("0 6 * * 6", timezone="UTC", run_immediately=timedelta(0)),  # as in nightly_pins
    start_date=first_night(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=2),
    default_args=task_policy(),
    params={
        "dry_run": Param(False, type="boolean", description="Say what would be done, and do nothing."),
        "retention_hours": Param(
            table_retention_hours(),
            type="integer",
            minimum=24,
            description="How long files stay that are no longer needed. Never less than the longest night takes.",
        ),
    },
) as dag:
    maintain = spark_job(
        "maintain",
        "maintain_tables.py",
        "--retention-hours",
        "{{ params.retention_hours }}",
        "{{ '--dry-run' if params.dry_run else '' }}",
        pool=MAINTENANCE_POOL,
        execution_timeout=timedelta(hours=12),
    )
