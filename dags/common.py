"""What the DAG files share: settings from the environment, the day of a run, and the encoders that it works with.

Settings (read where a DAG file is parsed, so set them alike for scheduler, DAG processor and workers):

| variable | meaning | default |
|---|---|---|
| PINLAKE_HOME | folder or URI of tables and releases | required |
| PINLAKE_EXPORTS | folder or URI of the platform's exports | $PINLAKE_HOME/exports |
| PINLAKE_ENCODER | encoder of a lake that has no release yet: a name, or the path of a config | pinclip-base |
| PINLAKE_ENCODER_RETENTION_DAYS | days for which the encoder before the live one is kept for a rollback | 7 |
| PINLAKE_RECALL_GOAL | recall@10 that a release is tuned for; the check lets through what is 0.02 below | 0.95 |
| PINLAKE_INDEX_BYTES_A_VECTOR | what an index may take a vector, pin id included | no limit |
| PINLAKE_RELEASES_KEPT | releases of an encoder that stay, besides those that LIVE names | 7 |
| PINLAKE_TABLE_RETENTION_HOURS | hours for which files of tables stay that are no longer needed | 168 |
| PINLAKE_FORGET_DAYS | days for which a deletion can be taken back; then what was deleted leaves the tables' older days | 7 |
| PINLAKE_MIGRATION_SLICES | into how many tasks a migration's days are dealt | 4 |
| PINLAKE_JOBS | folder of the Spark programs | jobs/ beside dags/ |
| PINLAKE_SPARK_CONF | JSON object of Spark properties, added to those below | {} |
| PYSPARK_PYTHON | Python of driver and executors | the one that parses the DAG |
| PINLAKE_RETRY_DELAY_S | seconds before the first retry; doubles with each | 300 |
| PINLAKE_DEADLINE_HOURS | JSON object: hours within which a DAG's run must be through; 0 for none | dags/alerts.py |
| PINLAKE_RUNBOOK | address of the runbook that alerts name | docs/operations.md |
| PINLAKE_FIRST_NIGHT | moment (ISO 8601) before which nothing is scheduled | none: the next 02:00 UTC |

Nothing here reads data but `export_is_complete`, which looks at two names, and `read_encoders`, which reads small markers.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import Asset, Param, task
from airflow.sdk.exceptions import AirflowFailException

from dags.alerts import task_failed
from dags.connections import use_store
from embedding.contracts import (
    DS_PATTERN,
    ENCODERS_FOLDER,
    FRESH_MARKER,
    LIVE_POINTER,
    RETIRED_MARKER,
    SUCCESS_MARKER,
    export_day_folder,
    parse_ds,
)

PIN_EMBEDDINGS = Asset(name="pin_embeddings", uri="pinlake://tables/pin_embeddings")
"""The table, as an asset partitioned by day: an event means that the day's vectors are there and passed the gate."""

SPARK_POOL, MIGRATION_POOL, POINTER_POOL = "spark", "migration", "release_pointer"
"""Pools (dags/pools.json): of tasks that run Spark, of a migration's slices, of what moves the pointer to the live release."""

DAY = "{{ day_of(dag_run.partition_key, params.ds) }}"
"""Template of the run's day; needs `day_of` among the DAG's `user_defined_macros`."""


def home() -> str:
    """Where tables and releases are; refuses to guess."""
    if not (found := os.environ.get("PINLAKE_HOME", "").rstrip("/")):
        raise ValueError("PINLAKE_HOME is not set: give Airflow's processes the folder or URI of the tables")
    return _without_credentials("PINLAKE_HOME", found)


def exports() -> str:
    """Where the platform leaves its exports, a folder a day."""
    return _without_credentials("PINLAKE_EXPORTS", os.environ.get("PINLAKE_EXPORTS") or f"{home()}/exports")


def _without_credentials(variable: str, address: str) -> str:
    # It goes on command lines and into logs. Azure's `container@account` is no secret.
    if "@" in urlsplit(address).netloc and not address.startswith("abfs"):
        raise ValueError(f"{variable} may carry no key or password: put them into the connection pinlake_store")
    return address


def first_encoder() -> str:
    """Name or path of the encoder of a lake that has no release yet; later the live release says which."""
    return os.environ.get("PINLAKE_ENCODER") or "pinclip-base"


def retention_days() -> str:
    """For how many days the version before the live one is kept."""
    return os.environ.get("PINLAKE_ENCODER_RETENTION_DAYS") or "7"


def recall_goal() -> float:
    """The recall@10 that a release's index is tuned for."""
    return float(os.environ.get("PINLAKE_RECALL_GOAL") or 0.95)


def releases_kept() -> str:
    """How many releases of an encoder stay, besides those that the pointer names."""
    return os.environ.get("PINLAKE_RELEASES_KEPT") or "7"


def table_retention_hours() -> int:
    """For how many hours a table's files stay that its current version does not need."""
    return int(os.environ.get("PINLAKE_TABLE_RETENTION_HOURS") or 168)


def forget_days() -> int:
    """For how many days the tables keep the rows of what was deleted."""
    return int(os.environ.get("PINLAKE_FORGET_DAYS") or 7)


def migration_slices() -> int:
    """Into how many tasks a migration's days are dealt."""
    return int(os.environ.get("PINLAKE_MIGRATION_SLICES") or 4)


def first_night() -> datetime | None:
    """`start_date` of the DAGs. Without one the schedule begins with the next 02:00 after the first unpausing."""
    moment = os.environ.get("PINLAKE_FIRST_NIGHT")
    return datetime.fromisoformat(moment).astimezone(UTC) if moment else None


def task_policy() -> dict[str, Any]:
    """`default_args` of every DAG: who owns the task, how often it is tried, for how long."""
    return {
        "owner": "pinlake",
        "retries": 2,
        "retry_delay": timedelta(seconds=float(os.environ.get("PINLAKE_RETRY_DELAY_S") or 300)),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
        "execution_timeout": timedelta(hours=2),
        "on_failure_callback": task_failed,
    }


def day_param() -> Param:
    """The day of a manual run that has no partition key."""
    return Param(
        None,
        type=["null", "string"],
        pattern=DS_PATTERN,
        title="Day",
        description="The data's day, YYYY-MM-DD. Leave it empty where the run has a partition key: that is the day.",
    )


def day_of(partition_key: str | None, ds: str | None) -> str:
    """The day that a run is for: its partition key or, in a manual run, the Param `ds`.

    Raises AirflowFailException, which is not retried, when there is none, when it is no day, or when the two disagree.
    """
    if partition_key and ds and partition_key != ds:
        raise AirflowFailException(f"two days: partition key {partition_key!r} and Param ds {ds!r}; give one of them")
    day = partition_key or ds
    if not day:
        raise AirflowFailException("no day: trigger the run with a partition key, or with the Param ds (YYYY-MM-DD)")
    try:
        return parse_ds(day)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def export_is_complete(exports_uri: str, ds: str) -> bool:
    """Whether the platform has finished the export of day `ds`: its folder holds the marker `_SUCCESS`.

    Raises FileNotFoundError when there is no folder at all: nothing is on its way, so waiting would hide a fault.
    """
    from pyarrow import fs  # here, so that parsing a DAG file does not load the object stores' clients

    folder = export_day_folder(exports_uri, ds)
    filesystem, path = fs.FileSystem.from_uri(folder)
    found, marker = filesystem.get_file_info([path, f"{path}/{SUCCESS_MARKER}"])
    if marker.type == fs.FileType.File:
        return True
    if found.type != fs.FileType.Directory:
        raise FileNotFoundError(
            f"no export for {ds}: there is no folder {folder}. Ask the platform for the day's export, or set "
            "PINLAKE_EXPORTS to where the exports are; then clear this task."
        )
    return False


def read_encoders(home_uri: str) -> dict[str, Any]:
    """Which encoder versions a run works with, read once, so that a cut-over in its middle changes nothing about it.

    `live` is the live release's version (before the first release `first_encoder`), `beside` those that are kept fresh,
    `candidate` the one of these that a migration is under way to, or None, and `leaving` those that served before.
    """
    from pyarrow import fs  # here, for the reason above

    filesystem, root = fs.FileSystem.from_uri(home_uri if "://" in home_uri else str(Path(home_uri).expanduser().resolve()))

    def read(path: str) -> dict[str, Any]:
        with filesystem.open_input_stream(f"{root}/{path}") as stream:
            return dict(json.loads(stream.readall()))

    def exists(path: str) -> bool:
        return bool(filesystem.get_file_info(f"{root}/{path}").type == fs.FileType.File)

    live = first_encoder()
    if exists(LIVE_POINTER):
        pointer = read(LIVE_POINTER)
        # A pointer of an earlier pinlake names the release alone.
        release = f"{LIVE_POINTER.rpartition('/')[0]}/{pointer['release_id']}/manifest.json"
        live = pointer.get("embedding_version") or read(release)["embedding_version"]
    folders = filesystem.get_file_info(fs.FileSelector(f"{root}/{ENCODERS_FOLDER}", allow_not_found=True))
    roles: dict[str, str] = {}
    leaving: list[str] = []
    for version in sorted(folder.base_name for folder in folders if not folder.base_name.startswith(".")):
        marker = f"{ENCODERS_FOLDER}/{version}/{FRESH_MARKER}"
        if version == live or not exists(marker):
            continue
        role = str(read(marker)["role"])
        if not exists(f"{ENCODERS_FOLDER}/{version}/{RETIRED_MARKER}"):
            roles[version] = role
        if role == "previous":
            leaving.append(version)
    candidate = next((version for version, role in roles.items() if role == "candidate"), None)
    return {"live": live, "beside": list(roles), "candidate": candidate, "leaving": leaving}


def choose_encoders(others: str = "beside") -> Any:
    """The task that pins a run's encoder versions: `chosen["live"]` and `chosen["candidate"]` are single ones.

    `chosen` itself is the list of those that `others` names, `beside` or `leaving`, to map over: Airflow maps over a task's
    return value only.
    """
    return _choose_encoders.override(task_id="choose_encoders")(home(), others)


@task(execution_timeout=timedelta(minutes=5))
def _choose_encoders(home_uri: str, others: str, ti: Any = None) -> list[str]:
    use_store()
    encoders = read_encoders(home_uri)
    for key in ("live", "candidate"):
        ti.xcom_push(key=key, value=encoders[key])
    return list(encoders[others])
