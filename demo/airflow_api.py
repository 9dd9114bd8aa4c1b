"""The few calls of Airflow's REST API (v2) that the demo needs: trigger a day, wait for a run, read why it failed.

Knows nothing of how that Airflow was started (demo/airflow.py does that), and imports no airflow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import httpx

DONE_STATES = frozenset({"success", "failed"})
"""States that a DAG run does not leave by itself."""


class AirflowError(Exception):
    """Something about the local Airflow that its user should read."""


class AirflowApi:
    """The few calls of Airflow's REST API that a demo needs. Logs in by itself, and again when its token runs out."""

    def __init__(
        self, url: str, username: str, password: str, *, timeout_s: float = 30, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._credentials = {"username": username, "password": password}
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)
        self._sleep = sleep

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def health(self) -> dict[str, str | None]:
        """State of each component, as in `{"scheduler": "healthy", ...}`; raises httpx.TransportError while nothing answers."""
        answer = self._http.get("/api/v2/monitor/health").raise_for_status().json()
        return {name: (info or {}).get("status") for name, info in answer.items()}

    def dag_ids(self) -> set[str]:
        """The DAGs that the DAG processor has read."""
        return {dag["dag_id"] for dag in self._call("GET", "/dags", params={"limit": 100})["dags"]}

    def import_errors(self) -> list[str]:
        """What is wrong with DAG files that cannot be read."""
        errors = self._call("GET", "/importErrors")["import_errors"]
        return [f"{error['filename']}: {error['stack_trace']}" for error in errors]

    def ensure_pool(self, name: str, slots: int, description: str, include_deferred: bool) -> None:
        """Makes a pool if there is none of that name. A pool that is there keeps its slots: someone may have chosen them."""
        pool = {"name": name, "slots": slots, "description": description, "include_deferred": include_deferred}
        self._call("POST", "/pools", json=pool, accept_conflict=True)

    def unpause(self, dag_id: str) -> None:
        """Lets the scheduler start runs of a DAG."""
        self._call("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Starts no run of a DAG any more; an event of an asset that comes meanwhile starts none later either."""
        self._call("PATCH", f"/dags/{dag_id}", json={"is_paused": True})

    def trigger_day(self, dag_id: str, ds: str, conf: Mapping[str, Any] | None = None) -> str:
        """Starts a run of `dag_id` for the day `ds` as its partition; returns the run's id. `conf` sets Params."""
        return self._trigger(dag_id, ds, conf)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Starts a manual run without a partition: the day is the Param `ds` in `conf`. Returns the run's id."""
        return self._trigger(dag_id, None, conf)

    def _trigger(self, dag_id: str, partition_key: str | None, conf: Mapping[str, Any] | None) -> str:
        body = {"partition_key": partition_key, "logical_date": None, "conf": dict(conf or {})}
        return str(self._call("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The latest hundred runs of a DAG, newest first, as the API gives them."""
        found = self._call("GET", f"/dags/{dag_id}/dagRuns", params={"limit": 100, "order_by": "-id"})["dag_runs"]
        return list(found)

    def find_run(self, dag_id: str, partition_key: str, after: datetime, timeout_s: float = 60) -> str:
        """The id of the first run for `partition_key` that came to be at or after `after`, waited for.

        For runs that an asset starts, whose id nobody is told. Raises AirflowError when none appears in time.
        """
        for _ in self._until(timeout_s, f"{dag_id} for {partition_key} to start"):
            matches = [run for run in self.runs(dag_id) if run["partition_key"] == partition_key and _made_at(run) >= after]
            if matches:
                return str(min(matches, key=_made_at)["dag_run_id"])
        raise AssertionError("unreachable: _until raises")

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of a run: queued, running, success or failed."""
        return str(self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """State of each task of a run; `none` for one that is not due yet."""
        return {task["task_id"]: task["state"] or "none" for task in self._task_instances(dag_id, run_id)}

    def tries(self, dag_id: str, run_id: str) -> dict[str, int]:
        """How often each task of a run was tried; of mapped tasks the most."""
        found: dict[str, int] = {}
        for task in self._task_instances(dag_id, run_id):
            found[task["task_id"]] = max(found.get(task["task_id"], 0), task["try_number"])
        return found

    def wait_run(
        self,
        dag_id: str,
        run_id: str,
        on_progress: Callable[[dict[str, str]], None] = lambda _states: None,
        timeout_s: float = 900,
    ) -> str:
        """Waits for a run's end and returns its state, `success` or `failed`.

        `on_progress` gets the tasks' states each time one changes. Raises AirflowError when the run takes too long.
        """
        seen: dict[str, str] | None = None
        for _ in self._until(timeout_s, f"run {run_id} of {dag_id} to end"):
            state = self.run_state(dag_id, run_id)  # before the tasks, so that the last report has their last states
            tasks = self.task_states(dag_id, run_id)
            if tasks != seen:
                seen = tasks
                on_progress(tasks)
            if state in DONE_STATES:
                return state
        raise AssertionError("unreachable: _until raises")

    def task_log_tail(self, dag_id: str, run_id: str, task_id: str, lines: int = 30) -> str:
        """The last lines of a task's log, of its last try; why it failed stands at the end."""
        task = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{task['try_number']}"
        content = self._call("GET", path, params={"full_content": "true"}, headers={"Accept": "application/json"})["content"]
        text = "\n".join(_log_line(entry) for entry in content)
        shown = [line for line in text.splitlines() if not line.startswith(("::group::", "::endgroup::"))]
        return "\n".join(shown[-lines:])

    def failure_report(self, dag_id: str, run_id: str, lines: int = 30) -> str:
        """The ends of the logs of a run's failed tasks."""
        failed = [task for task, state in self.task_states(dag_id, run_id).items() if state in ("failed", "up_for_retry")]
        return "\n".join(f"--- {dag_id}.{task}\n{self.task_log_tail(dag_id, run_id, task, lines)}" for task in failed)

    def _task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return list(self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"])

    def _until(self, timeout_s: float, what: str, poll_s: float = 1.0) -> Iterator[None]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            yield
            self._sleep(poll_s)
        raise AirflowError(f"waited {timeout_s:.0f} s in vain for {what}")

    def _call(self, method: str, path: str, *, accept_conflict: bool = False, **request: Any) -> dict[str, Any]:
        response = self._http.request(method, f"/api/v2{path}", **request)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._log_in()
            response = self._http.request(method, f"/api/v2{path}", **request)
        if response.is_success or (accept_conflict and response.status_code == httpx.codes.CONFLICT):
            return dict(response.json())
        raise AirflowError(f"Airflow answered {response.status_code} to {method} {path}: {_detail(response)}")

    def _log_in(self) -> None:
        response = self._http.post("/auth/token", json=self._credentials)
        if not response.is_success:
            raise AirflowError(f"Airflow refused the password of {self._credentials['username']!r}: {_detail(response)}")
        self._http.headers["Authorization"] = f"Bearer {response.json()['access_token']}"


def _made_at(run: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(run["queued_at"] or run["run_after"])


def _detail(response: httpx.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(response.json().get("detail", response.text))
    return response.text[:500]


def _log_line(entry: Mapping[str, Any] | str) -> str:
    """One entry of a task's log as text; an exception as `Kind: message` lines."""
    if isinstance(entry, str):
        return entry
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or ()]
    return "\n".join([str(entry["event"]), *errors])
