"""The secrets of pinlake's tasks, as Airflow's connections hold them, or whatever secrets backend Airflow reads them from.

| connection | what it holds | without it |
|---|---|---|
| spark_default | Spark's master; its password is what drivers and workers share (`spark.authenticate`) | none runs |
| pinlake_store | an object store (type `aws`): its key as login and password; extra `endpoint_url`, `region_name` | below |
| pinlake_mlflow | MLflow's server: host, login and password | PINLAKE_MLFLOW_URI |
| pinlake_alerts | where alerts go (dags/alerts.py) | nobody is told |

Without `pinlake_store` the store is found as any AWS client finds it: by the environment, or by the machine's own identity.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

SPARK_CONNECTION, STORE_CONNECTION, MLFLOW_CONNECTION = "spark_default", "pinlake_store", "pinlake_mlflow"


def store_environment() -> dict[str, str]:
    """The object store's address and key as every client of S3 reads them; empty where there is no `pinlake_store`."""
    connection = _connection(STORE_CONNECTION)
    if connection is None:
        return {}
    extra = connection.extra_dejson
    found = {
        "AWS_ACCESS_KEY_ID": connection.login,
        "AWS_SECRET_ACCESS_KEY": connection.password,
        "AWS_SESSION_TOKEN": extra.get("aws_session_token"),
        "AWS_ENDPOINT_URL": extra.get("endpoint_url"),
        "AWS_REGION": extra.get("region_name"),
        "AWS_DEFAULT_REGION": extra.get("region_name"),
        # delta-rs and obstore refuse plain HTTP unless they are told.
        "AWS_ALLOW_HTTP": "true" if str(extra.get("endpoint_url")).startswith("http://") else None,
    }
    return {name: value for name, value in found.items() if value}


def use_store() -> None:
    """Lets this task's own process, which ends with the task, reach the store."""
    os.environ.update(store_environment())


def mlflow_environment() -> dict[str, str]:
    """Where the record of trainings is, for jobs/mirror_registry.py; empty where there is no `pinlake_mlflow`."""
    connection = _connection(MLFLOW_CONNECTION)
    if connection is None:
        return {}
    host = str(connection.host)
    address = host if "://" in host else f"{connection.schema or 'http'}://{host}"
    found = {
        "PINLAKE_MLFLOW_URI": f"{address}:{connection.port}" if connection.port else address,
        "MLFLOW_TRACKING_USERNAME": connection.login,
        "MLFLOW_TRACKING_PASSWORD": connection.password,
    }
    return {name: value for name, value in found.items() if value}


def spark_environment() -> dict[str, str]:
    """The secret that Spark's processes prove themselves with, under Spark's own name; empty where none is set."""
    connection = _connection(SPARK_CONNECTION)
    return {"_SPARK_AUTH_SECRET": connection.password} if connection and connection.password else {}


def _connection(conn_id: str) -> Any:
    try:
        return Connection.get(conn_id)
    except AirflowNotFoundException:
        return None
