"""The DAG of the tables' upkeep: what it submits, when, and which params it refuses. The rest is in test_dags.py."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        # Read once, at Airflow's import; where another module's tests came first, theirs hold.
        patch.setenv("AIRFLOW_HOME", os.environ.get("AIRFLOW_HOME", str(home)))
        patch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
        patch.setenv("PINLAKE_HOME", str(home / "lake"))
        for name in (
            "PINLAKE_JOBS",
            "PINLAKE_SPARK_CONF",
            "PINLAKE_FIRST_NIGHT",
            "PINLAKE_TABLE_RETENTION_HOURS",
            "PINLAKE_FORGET_DAYS",
        ):
            patch.delenv(name, raising=False)
        yield importlib.import_module("dags.table_maintenance").dag


def test_one_run_at_a_time_in_nobodys_place(dag: Any) -> None:
    pools = json.loads((REPO / "dags" / "pools.json").read_text())
    assert dag.task_ids == ["forget", "maintain"]
    for task in dag.tasks:
        assert task.pool == "maintenance" and pools[task.pool]["slots"] == 1
        assert not task.upstream_list, "neither is held up by what the other found"
    assert dag.max_active_runs == 1 and not dag.catchup
    assert sum((task.execution_timeout for task in dag.tasks), timedelta()) < dag.dagrun_timeout


@pytest.mark.parametrize(
    ("dry_run", "retention_hours", "days"),
    [(False, 168, 7), (True, 24, 1)],
)
def test_arguments_are_rendered_from_the_params(dag: Any, dry_run: bool, retention_hours: int, days: int) -> None:
    from jobs import forget, maintain_tables

    environment = dag.get_template_env()
    params = {"dry_run": dry_run, "retention_hours": retention_hours, "forget_days": days}

    def rendered(task_id: str) -> list[str]:
        args = dag.get_task(task_id).application_args
        found = [environment.from_string(arg).render({"run_id": "manual", "params": params}) for arg in args]
        assert found[2] == "--run-id=manual"
        return [arg for arg in found if arg]

    maintained, forgotten = maintain_tables.parse_args(rendered("maintain")), forget.parse_args(rendered("forget"))
    assert (maintained.dry_run, maintained.retention_hours) == (dry_run, retention_hours)
    assert (forgotten.dry_run, forgotten.forget_days) == (dry_run, days)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("retention_hours", [0, 23, 24.5, "168"], [24, 720]),
        ("forget_days", [0, -1, 1.5, "7"], [1, 30]),
        ("dry_run", ["yes", 1], [True, False]),
    ],
)
def test_params_refuse_what_would_endanger_a_night(dag: Any, name: str, bad: list[Any], good: list[Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = dag.params.get_param(name)
    assert param.resolve() == {"retention_hours": 168, "forget_days": 7, "dry_run": False}[name]
    for value in bad:
        with pytest.raises(ParamValidationError):
            param.resolve(value)
    assert [param.resolve(value) for value in good] == good


@pytest.mark.parametrize("hours", [1, 5 * 24])
def test_it_runs_on_saturdays_and_unpausing_waits_for_the_next(dag: Any, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    from airflow.serialization.decoders import decode_timetable
    from airflow.serialization.encoders import encode_timetable
    from airflow.timetables.base import TimeRestriction

    timetable = decode_timetable(encode_timetable(dag.timetable))
    saturday = datetime(2026, 11, 21, 6, tzinfo=UTC)
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: saturday + timedelta(hours=hours))
    run = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=TimeRestriction(None, None, False))
    assert run is not None and run.run_after == saturday + timedelta(days=7)
