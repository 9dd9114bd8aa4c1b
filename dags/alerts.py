"""What people are told when something is wrong: one alert a cause, through Airflow's Apprise notifier.

| alert | when |
|---|---|
| task failed | a task has failed for good: its retries are used up, or it is one that is not retried |
| gate failed | a check ran well and found the data bad; what it found is in the alert |
| run failed | a run ended without a task of it failing: it took longer than it may, or nothing of it can run any more |
| deadline missed | a run is not through by its deadline; nothing need have failed |

Where they go is in the connection `pinlake_alerts` (type `apprise`; its `config` holds the addresses, which are secrets).
Without it nothing is sent, and a line of the log says so. An alert that cannot be sent fails nothing. What each means and what
mends it: docs/operations.md.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.sdk import Connection
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret, redact  # type: ignore[attr-defined]

from dags.said import faults, last_known

ALERTS_CONNECTION = "pinlake_alerts"

CHECK_FAILED_EXIT = 3
"""Exit status of a check program that ran well and found the data bad: running it again would find the same."""

DEADLINE_HOURS = {"nightly_pins": 6.0, "index_release": 6.0, "taste_profiles": 12.0}
"""Hours from a run's start in the queue by which it must be through; PINLAKE_DEADLINE_HOURS (JSON) over it, 0 for none."""

TASK_FAILED, GATE_FAILED, RUN_FAILED, DEADLINE_MISSED = "task failed", "gate failed", "run failed", "deadline missed"

_MOST_FINDINGS, _LONGEST = 10, 500
_USER_OF_A_URL = re.compile(r"(?<=://)[^/@\s]+@")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """What is told. `what` is a sentence or more; `url` is where Airflow shows it."""

    kind: str
    dag_id: str
    run_id: str
    ds: str | None
    what: list[str]
    url: str
    task: str | None = None
    embedding_version: str | None = None
    tried: str | None = None

    @property
    def title(self) -> str:
        """One line: what, where, of which day."""
        return f"pinlake: {self.kind}: {self.dag_id}{'.' + self.task if self.task else ''}, {self.ds or self.run_id}"

    @property
    def body(self) -> str:
        """A line a fact, and where the runbook has what to do."""
        facts = {
            "dag": self.dag_id,
            "task": self.task,
            "ds": self.ds,
            "run_id": self.run_id,
            "embedding_version": self.embedding_version,
            "try": self.tried,
            "log": self.url,
            "what to do": f"{os.environ.get('PINLAKE_RUNBOOK') or 'docs/operations.md'}#{self.kind.replace(' ', '-')}",
        }
        return "\n".join([*map(_harmless, self.what), "", *(f"{name}: {value}" for name, value in facts.items() if value)])


def is_bad_data(error: BaseException | str | None) -> bool:
    """Whether a task failed because its check found bad data. spark-submit's status is known in client mode only."""
    return f"Error code is: {CHECK_FAILED_EXIT}." in str(error)


def task_failed(context: Mapping[str, Any]) -> None:
    """`on_failure_callback` of each task: Airflow calls it where the task is not tried again."""
    ti, error = context["ti"], context.get("exception")
    said = str(error).splitlines()  # of a program: its command, its exit status, and its last lines
    send(
        Alert(
            GATE_FAILED if is_bad_data(error) else TASK_FAILED,
            ti.dag_id,
            ti.run_id,
            _day(context.get("dag_run"), context.get("params")),
            faults(said)[-_MOST_FINDINGS:] or [_first_words(error)],
            ti.log_url,
            task=ti.task_id if ti.map_index in (None, -1) else f"{ti.task_id}[{ti.map_index}]",
            embedding_version=last_known("embedding_version", said),
            tried=f"{ti.try_number} of {ti.max_tries + 1}" if isinstance(ti.max_tries, int) else str(ti.try_number),
        )
    )


def run_failed(context: Mapping[str, Any]) -> None:
    """`on_failure_callback` of each DAG. Where a task failed, that task's alert has gone out."""
    reason = str(context.get("reason"))
    if reason == "task_failure":
        return
    said = {
        "timed_out": "The run took longer than its DAG's dagrun_timeout; what was running was stopped.",
        "all_tasks_deadlocked": "No task of the run can run any more, and none is running.",
    }
    run_id = context["run_id"]
    dag_id = context["dag"].dag_id
    day = _day(context.get("dag_run"), context.get("params"))
    send(Alert(RUN_FAILED, dag_id, run_id, day, [said.get(reason, reason)], _run_url(dag_id, run_id)))


def deadline_missed(context: Mapping[str, Any]) -> None:
    """The callback of each deadline. An executor runs it, with the run as it was when the scheduler saw the deadline pass."""
    run, deadline = context["dag_run"], context["deadline"]
    if run["run_type"] == "backfill" or run["state"] == "failed":
        # Days of a backfill wait for each other; of a run that failed there has been an alert.
        log.info("%s %s, which missed its deadline: no alert", run["run_type"], run["dag_run_id"])
        return
    what = f"The run was to be through by {deadline['deadline_time']}; it is {run['state']}."
    url = _run_url(run["dag_id"], run["dag_run_id"])
    send(Alert(DEADLINE_MISSED, run["dag_id"], run["dag_run_id"], _day(run, run.get("conf")), [what], url))


def deadline(dag_id: str) -> DeadlineAlert | None:
    """The deadline of a DAG's runs; None where it has none. Counted from the queue: a partitioned run has no logical date."""
    hours = (DEADLINE_HOURS | json.loads(os.environ.get("PINLAKE_DEADLINE_HOURS") or "{}")).get(dag_id)
    if not hours:
        return None
    interval = timedelta(hours=float(hours))
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, interval, SyncCallback(deadline_missed))


def send(alert: Alert) -> None:
    """Sends it, or says in the log why not; raises nothing."""
    # Here, so that DAG files load quickly.
    from airflow.providers.apprise.notifications.apprise import AppriseNotifier
    from apprise import NotifyType

    try:
        for address in _addresses(Connection.get(ALERTS_CONNECTION)):
            mask_secret(address)
        notifier = AppriseNotifier(
            title=alert.title, body=alert.body, notify_type=NotifyType.FAILURE, apprise_conn_id=ALERTS_CONNECTION
        )
        notifier.notify({})  # type: ignore[no-untyped-call]  # not a call, which would take what is told for a template
    except AirflowNotFoundException:
        log.warning("there is no connection %s: nobody was told: %s", ALERTS_CONNECTION, alert.title)
    except Exception as error:
        log.exception("nobody was told: %s (%s)", alert.title, type(error).__name__)


def _addresses(connection: Any) -> list[str]:
    """The services' addresses, of which Airflow does not know that they are secrets. Raises KeyError where there are none."""
    config = connection.extra_dejson["config"]
    services = json.loads(config) if isinstance(config, str) else config
    return [service["path"] for service in (services if isinstance(services, list) else [services])]


def _first_words(error: BaseException | str | None) -> str:
    """Of a program's failure its exit status, for the rest of that text is its command; of other errors the text."""
    if error is None:
        return "The task's process was lost, or it was failed by hand; there is no error."
    if status := re.search(r"Error code is: (\d+)\.", str(error)):
        return f"The program ended with exit status {status[1]}, and said no reason."
    return f"{type(error).__name__}: {error}"


def _harmless(text: str) -> str:
    """Without secrets that Airflow knows, without an address's password, not too long."""
    return _USER_OF_A_URL.sub("***@", str(redact(text)))[:_LONGEST]


def _day(run: Any, params: Any) -> str | None:
    key = run.get("partition_key") if isinstance(run, Mapping) else getattr(run, "partition_key", None)
    return key or (params or {}).get("ds")


def _run_url(dag_id: str, run_id: str) -> str:
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/dags/{dag_id}/runs/{quote(run_id)}"
