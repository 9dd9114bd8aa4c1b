"""How a Spark program of jobs/ is submitted: its arguments, Spark's properties, and the secrets that it needs.

Secrets (dags/connections.py) reach a program through its environment, never through its command line, which every user of the
machine can read; so in client mode alone, which is spark-submit's default. On YARN and Kubernetes, and in cluster mode, the
provider could only put them on the command line: there the cluster's own identity has to do.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import RetryDecision, RetryPolicy

from dags.alerts import is_bad_data
from dags.common import SPARK_POOL, home, recall_goal
from dags.connections import SPARK_CONNECTION, mlflow_environment, spark_environment, store_environment
from dags.lineage import lineage_of


class SparkJob(SparkSubmitOperator):
    """A Spark program of jobs/. Arguments that render to nothing are left out, so that a template can be a flag.

    `encoder` is passed as `--encoder`. It is a field of its own because Airflow renders no template in an argument list that
    is mapped, and maps over a field.
    """

    template_fields = (*SparkSubmitOperator.template_fields, "encoder")

    def __init__(self, *, encoder: Any = None, **operator_args: Any) -> None:
        super().__init__(**operator_args)
        self.encoder = encoder

    def execute(self, context: Any) -> None:
        """Submits the program and waits for it."""
        encoder = ["--encoder", self.encoder] if self.encoder else []
        self.application_args = [arg for arg in (*(self.application_args or []), *encoder) if arg]
        self._hook = self._hook or self._get_hook()
        if secrets := self._secrets(self._hook):
            # After the templates were rendered, and so shown and stored: these are not.
            self._hook._env_vars = {**(self._hook._env_vars or {}), **secrets}
        super().execute(context)

    def get_openlineage_facets_on_start(self) -> Any:
        """What the program is to read and write."""
        return lineage_of(self)

    def get_openlineage_facets_on_complete(self, ti: Any) -> Any:
        """What it has read and written."""
        return lineage_of(self, ti)

    def _secrets(self, hook: Any) -> dict[str, str]:
        if hook._is_yarn or hook._is_kubernetes or hook._connection["deploy_mode"] == "cluster":
            return {}
        return {**store_environment(), **mlflow_environment(), **spark_environment()}


class StopWhenCheckFails(RetryPolicy):
    """Fails at once where a check found bad data; retries whatever else went wrong (a lost machine, a busy disk).

    spark-submit's exit status is known in client mode only, and reaches us in the error's text; in cluster mode every
    failure is retried.
    """

    def evaluate(  # Airflow passes the arguments by name
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002
        max_tries: int,  # noqa: ARG002
        context: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Decides from the error's text."""
        if is_bad_data(exception):
            return RetryDecision.fail(reason="the check found bad data; its findings are above and in the table `nights`")
        return RetryDecision.default()


def spark_job(task_id: str, program: str, *args: str, **operator_args: Any) -> SparkJob:
    """A task that submits jobs/`program` with `--home` and `--run-id` before `args` (templates are rendered).

    The arguments travel as a list from here to the program's argv: no shell reads them.
    """
    return SparkJob(**_job_args(task_id, program, *args, **operator_args))


def mapped_job(task_id: str, program: str, *args: str, encoders: Any, **operator_args: Any) -> Any:
    """As `spark_job`, a task for each of `encoders`; where there is none, the task is skipped and costs nothing."""
    return SparkJob.partial(**_job_args(task_id, program, *args, **operator_args)).expand(encoder=encoders)


def build_and_check(*args: str, encoder: Any, execution_timeout: timedelta) -> tuple[SparkJob, SparkJob]:
    """The tasks that build a release of an encoder's vectors and check it, with the platform's goal and budget."""
    budget = os.environ.get("PINLAKE_INDEX_BYTES_A_VECTOR")
    wanted = ("--recall-goal", f"{recall_goal():g}", *(("--bytes-a-vector", budget) if budget else ()))
    build = spark_job("build", "build_index.py", *args, *wanted, encoder=encoder, execution_timeout=execution_timeout)
    least = ("--min-recall", f"{recall_goal() - 0.02:g}")
    return build, spark_job("check", "check_index.py", *least, retry_policy=StopWhenCheckFails())


def _job_args(task_id: str, program: str, *args: str, **operator_args: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "application": str(_jobs_folder() / program),
        # "=", because whoever triggers a run may name it, and a name may begin with a dash.
        "application_args": ["--home", home(), "--run-id={{ run_id }}", *args],
        "conn_id": SPARK_CONNECTION,
        "conf": _spark_conf(),
        "name": "{{ dag.dag_id }}.{{ task.task_id }}",
        "pool": SPARK_POOL,
        **operator_args,
    }


def _jobs_folder() -> Path:
    return Path(os.environ.get("PINLAKE_JOBS") or Path(__file__).resolve().parent.parent / "jobs")


_SECRET_PROPERTY = re.compile(r"(?i)(?:secret|password|token|(?:secret|access)[._]?key)$")


def _spark_conf() -> dict[str, str]:
    given = json.loads(os.environ.get("PINLAKE_SPARK_CONF") or "{}")
    if secrets := [name for name in given if _SECRET_PROPERTY.search(name)]:
        raise ValueError(
            f"PINLAKE_SPARK_CONF goes on a command line, which others can read: put {', '.join(secrets)} into "
            "spark-defaults.conf, or the secret into a connection (docs/security.md)"
        )
    # Spark would take `python3` from PATH, which need not be the one that has pyarrow.
    python = os.environ.get("PYSPARK_PYTHON") or sys.executable
    return {
        "spark.pyspark.python": python,
        "spark.pyspark.driver.python": python,
        **given,
    }
