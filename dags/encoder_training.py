"""A new encoder, once a week: trained on the lake's own pins, judged beside the live one, registered if it is better.

1. **pairs**: the training set: the pins and boards of all days that passed their gate, split by creator so that nothing that
   is judged was trained on. A set of the same state is taken as it is.
2. **train**: an encoder by the recipe, from the recipe's start.
3. **judge**: the trained encoder and the live one on the same pins, kept out of the training. One that is not better stops
   here.
4. **record**: the training becomes a run in MLflow, with its curves, figures and verdict, whichever way it was judged.
5. **register**: the encoder is copied into the lake and becomes MLflow's `candidate`.

Sundays at 04:00 UTC, and by hand. Changes nothing of what serves: a person looks at the candidate and starts
`encoder_migration`. A run that ends red at `judge` has trained an encoder that was no better; MLflow has its figures. MLflow's
tables are in `$PINLAKE_HOME/mlflow.db`, or where `PINLAKE_MLFLOW_URI` says, which the jobs' environment needs.
(docs/decisions/0006-mlflow-records-the-pointer-decides.md)
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param, TriggerRule

from dags.alerts import run_failed
from dags.common import first_night, task_policy
from dags.programs import StopWhenCheckFails, spark_job
from embedding.contracts import DS_PATTERN, FILE_OR_NAME_PATTERN

TRAINING_POOL = "training"
"""Pool of what takes the machine's processors or GPUs for hours (dags/pools.json)."""

with DAG(
    dag_id="encoder_training",
    description="Train an encoder on the lake's pins, judge it, register it if it is better.",
    doc_md=__doc__,
    tags=["pinlake", "encoder"],
    schedule=CronTriggerTimetable("0 4 * * 0", timezone="UTC", run_immediately=timedelta(0)),  # as in nightly_pins
    start_date=first_night(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(days=3),
    default_args=task_policy(),
    on_failure_callback=run_failed,
    params={
        "recipe": Param(
            "pinclip-base",
            type="string",
            pattern=FILE_OR_NAME_PATTERN,
            description="Recipe of the training: a name, or a file.",
        ),
        "processes": Param(
            1, type="integer", minimum=1, maximum=1024, description="Training processes: one a GPU, or a share of the cores."
        ),
        "seed": Param(
            0, type="integer", minimum=0, maximum=2**31 - 1, description="Of all that is drawn by chance in the training."
        ),
        "ds": Param(
            None,
            type=["null", "string"],
            pattern=DS_PATTERN,
            title="Day",
            description="Last day of data to train on, YYYY-MM-DD. Empty: the latest that passed its gate.",
        ),
    },
) as dag:
    recipe = ("--recipe={{ params.recipe }}", "--seed", "{{ params.seed }}", "--processes", "{{ params.processes }}")
    stop = StopWhenCheckFails()

    pairs = spark_job("pairs", "build_training_set.py", "--ds", "{{ params.ds or 'latest' }}")
    train = spark_job("train", "train_encoder.py", *recipe, pool=TRAINING_POOL, execution_timeout=timedelta(days=2))
    judge = spark_job("judge", "judge_encoder.py", pool=TRAINING_POOL, retry_policy=stop)
    # Once both are done: after a refusal too, but not where nothing was trained.
    either = TriggerRule.ALL_DONE_MIN_ONE_SUCCESS
    short = timedelta(minutes=15)
    record = spark_job("record", "register_encoder.py", "--record-only", trigger_rule=either, execution_timeout=short)
    register = spark_job("register", "register_encoder.py", retry_policy=stop, execution_timeout=short)

    pairs >> train >> judge
    [train, judge] >> record
    [judge, record] >> register
