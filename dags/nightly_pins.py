"""The night of pinlake: every new or changed pin of a day gets its vector, or a reason why not.

1. **wait_for_export**: the platform's export of the day is complete (`_SUCCESS` in `$PINLAKE_EXPORTS/ds=<day>/`). A folder
   without the marker is waited for, without holding a worker; a day without a folder fails and says so.
2. **choose_encoders**: the encoder of the live release, and those that are kept fresh beside it. The night stays with these,
   whatever goes live meanwhile.
3. **land**: the export becomes rows of `pins`, `boards` and `saves`; unusable rows go to `quarantine`.
4. **embed**: new and changed contents go through the encoder, once; all other pins keep the vector that they have.
5. **check**: counts that add up, coverage, norms. A bad night stops here, before anyone reads it. A good one is announced
   as the day's event of the asset `pin_embeddings`, from which `index_release` starts.
6. **beside**: embed and check under each version that is kept fresh (a migration's candidate; the version before the last
   cut-over). After the check, so that it neither stops nor delays what serves; mostly there is none, and it is skipped.

A run is for one day of data, its partition key: at 02:00 UTC for the day before. Each step commits a table's day at once and
may be repeated, so any day can be run again, in any order and beside tonight's:
`airflow backfill create --dag-id nightly_pins --from-date 2026-11-01 --to-date 2026-11-18T23:59` (a bare `--to-date` is
that day's midnight and would leave the day out). For one day by hand, trigger with a partition key or with the Param `ds`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronPartitionTimetable, Param, task, task_group

from dags.alerts import deadline, run_failed
from dags.common import (
    DAY,
    PIN_EMBEDDINGS,
    choose_encoders,
    day_of,
    day_param,
    export_is_complete,
    exports,
    first_night,
    task_policy,
)
from dags.connections import use_store
from dags.programs import StopWhenCheckFails, spark_job

with DAG(
    dag_id="nightly_pins",
    description="Land the day's export, encode what is new, check the night.",
    doc_md=__doc__,
    tags=["pinlake", "nightly"],
    schedule=CronPartitionTimetable(
        "0 2 * * *",
        timezone="UTC",
        run_offset=-1,
        key_format="%Y-%m-%d",
        # Unpausing must not run last night's day unasked. False would, until 10% of the day is over.
        run_immediately=timedelta(0),
    ),
    start_date=first_night(),
    catchup=False,
    max_active_runs=4,  # a late night and repairs by hand beside tonight; backfills have a limit of their own
    dagrun_timeout=timedelta(hours=24),
    deadline=deadline("nightly_pins"),
    default_args=task_policy(),
    on_failure_callback=run_failed,
    user_defined_macros={"day_of": day_of},
    params={
        "ds": day_param(),
        "retry_quarantined": Param(
            False, type="boolean", description="Try again the pins whose picture could not be read, though unchanged."
        ),
        "min_coverage": Param(
            0.9, type="number", minimum=0, maximum=1, description="Least share of the landed pins that must have a vector."
        ),
    },
) as dag:

    @task.sensor(mode="reschedule", poke_interval=30, timeout=6 * 3600, execution_timeout=timedelta(minutes=5))
    def wait_for_export(exports_uri: str, day: str) -> bool:
        """The day's export is complete."""
        use_store()
        return export_is_complete(exports_uri, day)

    def announce_day(context: Any, _result: Any) -> None:
        """Puts the day on the asset's event where the run has no partition key to take it from."""
        if not context["dag_run"].partition_key:
            context["outlet_events"][PIN_EMBEDDINGS].add_partitions(day_of(None, context["params"]["ds"]))

    retry_flag = "{{ '--retry-quarantined' if params.retry_quarantined else '' }}"

    def embed_with(encoder: Any) -> Any:
        """The task that embeds the day under an encoder."""
        arguments = ("--ds", DAY, retry_flag)
        return spark_job("embed", "embed_pins.py", *arguments, encoder=encoder, execution_timeout=timedelta(hours=8))

    def check_with(encoder: Any, **announcing: Any) -> Any:
        """The task that checks it."""
        arguments = ("--ds", DAY, "--min-coverage", "{{ params.min_coverage }}")
        return spark_job(
            "check", "check_night.py", *arguments, encoder=encoder, retry_policy=StopWhenCheckFails(), **announcing
        )

    @task_group
    def beside(encoder: Any) -> None:
        """The day under one of the other versions."""
        embed_with(encoder) >> check_with(encoder)

    chosen = choose_encoders()
    land = spark_job("land", "land_exports.py", "--ds", DAY, "--exports", exports())
    embed = embed_with(chosen["live"])
    check = check_with(chosen["live"], outlets=[PIN_EMBEDDINGS], post_execute=announce_day)

    wait_for_export(exports(), DAY) >> chosen >> land >> embed >> check >> beside.expand(encoder=chosen)
