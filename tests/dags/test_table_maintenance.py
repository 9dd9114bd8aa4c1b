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
        for name in ("PINLAKE_JOBS", "PINLAKE_SPARK_CONF", "PINLAKE_FIRST_NIGHT", "PINLAKE_TABLE_RETENTION_HOURS"):
            patch.delenv(name, raising=False)
        yield importlib.import_module("dags.table_maintenance").dag


def test_one_run_at_a_time_in_nobodys_place(dag: Any) -> None:
    (task,) = dag.tasks
    pools = json.loads((REPO / "dags" / "pools.json").read_text())
    assert task.pool == "maintenance" and pools[task.pool]["slots"] == 1
    assert dag.max_active_runs == 1 and not dag.catchup
    assert task.execution_timeout < dag.dagrun_timeout


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"dry_run": False, "retention_hours": 168}, ["--retention-hours", "168", ""]),
        ({"dry_run": True, "retention_hours": 24}, ["--retention-hours", "24", "--dry-run"]),
    ],
)
def test_arguments_are_rendered_from_the_params(dag: Any, params: dict[str, Any], expected: list[str]) -> None:
    from jobs.maintain_tables import parse_args

    environment = dag.get_template_env()
    args = dag.get_task("maintain").application_args
    rendered = [environment.from_string(arg).render({"run_id": "manual", "params": params}) for arg in args]
    assert rendered[2:] == ["--run-id=manual", *expected]
    parsed = parse_args([arg for arg in rendered if arg])
    assert (parsed.dry_run, parsed.retention_hours) == (params["dry_run"], params["retention_hours"])


@pytest.mark.parametrize(
    ("name", "bad", "good"), [("retention_hours", [0, 23, 24.5, "168"], [24, 720]), ("dry_run", ["yes", 1], [True, False])]
)
def test_params_refuse_what_would_endanger_a_night(dag: Any, name: str, bad: list[Any], good: list[Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = dag.params.get_param(name)
    assert param.resolve() == {"retention_hours": 168, "dry_run": False}[name]
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
