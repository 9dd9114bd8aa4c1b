"""The taste graph of a night: who keeps what with what, what is related to each pin, and what each user is interested in.

1. **choose_encoders**: the version that is live now; interests are clusters of its vectors.
2. **graph**: adjacency shards of all current saves.
3. **relate**: walks from the pins that have a board on which something changed.
4. **interests**: clusters of each user whose history changed.
5. **boards**: a vector of each board whose pins changed.
6. **train_users**, **users**: a model that reads a user as one vector, anew after a week of days; and that vector of each user
   whose history or model changed.
7. **check**: nobody without interests, no pin without a row, none that names a pin that has left, the live release's encoder,
   about as many edges and interests as before. Then the graph is live; otherwise the one before stays.

Starts with the asset `pin_embeddings`, which `nightly_pins` emits once its gate passed. It reads all days that passed, so that
nights of several days, late ones among them, need one run: the last of them finds what the others left. One run at a time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.alerts import deadline, run_failed
from dags.common import PIN_EMBEDDINGS, choose_encoders, task_policy
from dags.programs import StopWhenCheckFails, spark_job

with DAG(
    dag_id="taste_profiles",
    description="Graph of pins and boards, related pins, interests of users.",
    doc_md=__doc__,
    tags=["pinlake", "taste"],
    schedule=PartitionedAssetTimetable(assets=PIN_EMBEDDINGS),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    deadline=deadline("taste_profiles"),
    default_args=task_policy(),
    on_failure_callback=run_failed,
) as dag:
    chosen = choose_encoders()
    graph = spark_job("graph", "build_graph.py")
    relate = spark_job("relate", "relate_pins.py", execution_timeout=timedelta(hours=6))
    interests = spark_job("interests", "build_interests.py", encoder=chosen["live"], execution_timeout=timedelta(hours=6))
    boards = spark_job("boards", "embed_boards.py", encoder=chosen["live"], execution_timeout=timedelta(hours=6))
    train_users = spark_job("train_users", "train_users.py", encoder=chosen["live"], execution_timeout=timedelta(hours=12))
    users = spark_job("users", "embed_users.py", encoder=chosen["live"], execution_timeout=timedelta(hours=6))
    check = spark_job("check", "check_taste.py", encoder=chosen["live"], retry_policy=StopWhenCheckFails())

    graph >> relate >> check
    chosen >> [interests, boards] >> check
    chosen >> train_users >> users >> check
