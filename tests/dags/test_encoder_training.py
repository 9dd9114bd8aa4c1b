"""The DAG of trainings: its order, what stops it, what is recorded all the same, and when it runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "pairs": "build_training_set.py",
    "train": "train_encoder.py",
    "judge": "judge_encoder.py",
    "record": "register_encoder.py",
    "register": "register_encoder.py",
}


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        # Read once, at Airflow's import; where another module's tests came first, theirs hold.
        patch.setenv("AIRFLOW_HOME", os.environ.get("AIRFLOW_HOME", str(home)))
        patch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
        patch.setenv("PINLAKE_HOME", str(home / "lake"))
        for name in ("PINLAKE_JOBS", "PINLAKE_SPARK_CONF", "PINLAKE_FIRST_NIGHT"):
            patch.delenv(name, raising=False)
        yield importlib.import_module("dags.encoder_training").dag


def test_the_steps_are_in_order_and_run_their_programs(dag: Any) -> None:
    upstream = {task.task_id: task.upstream_task_ids for task in dag.tasks}
    assert upstream == {
        "pairs": set(),
        "train": {"pairs"},
        "judge": {"train"},
        "record": {"train", "judge"},
        "register": {"judge", "record"},
    }
    assert {task.task_id: Path(task.application).name for task in dag.tasks} == PROGRAMS
    for task in dag.tasks:
        assert task.application_args[0] == "--home" and task.application_args[2] == "--run-id={{ run_id }}"
        assert task.execution_timeout < dag.dagrun_timeout and task.retries >= 1 and task.owner == "pinlake"
        assert f"**{task.task_id}**" in dag.doc_md


def test_a_refused_encoder_is_recorded_and_never_registered(dag: Any) -> None:
    rules = {task.task_id: task.trigger_rule.value for task in dag.tasks if task.trigger_rule.value != "all_success"}
    assert rules == {"record": "all_done_min_one_success"}
    assert "--record-only" in dag.get_task("record").application_args
    assert not {"--record-only", "--anyway"} & set(dag.get_task("register").application_args)


@pytest.mark.parametrize("task_id", ["judge", "register"])
def test_a_verdict_is_not_asked_for_twice(dag: Any, task_id: str) -> None:
    policy = dag.get_task(task_id).retry_policy
    for status, action in ((1, "default"), (3, "fail")):
        failure = RuntimeError(f"Cannot execute: spark-submit. Error code is: {status}.")
        assert policy.evaluate(failure, try_number=1, max_tries=2).action.value == action


def test_trainings_wait_for_each_other_and_for_no_night(dag: Any) -> None:
    pools = json.loads((REPO / "dags" / "pools.json").read_text())
    assert pools["training"]["slots"] == 1
    assert {task.task_id: task.pool for task in dag.tasks} == {
        **dict.fromkeys(PROGRAMS, "spark"),
        **dict.fromkeys(("train", "judge"), "training"),
    }
    assert dag.max_active_runs == 1 and not dag.catchup


@pytest.mark.parametrize("hours", [1, 5 * 24])
def test_it_runs_on_sundays_and_unpausing_waits_for_the_next(dag: Any, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    from airflow.serialization.decoders import decode_timetable
    from airflow.serialization.encoders import encode_timetable
    from airflow.timetables.base import TimeRestriction

    timetable = decode_timetable(encode_timetable(dag.timetable))
    sunday = datetime(2026, 11, 22, 4, tzinfo=UTC)
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: sunday + timedelta(hours=hours))
    run = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=TimeRestriction(None, None, False))
    assert run is not None and run.run_after == sunday + timedelta(days=7)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("recipe", ["", None], ["pinclip-base", "/recipes/large.json"]),
        ("processes", [0, 1.5, "2"], [1, 8]),
        ("seed", [-1, "x"], [0, 7]),
        ("ds", ["latest", "2026-11-1"], [None, "2026-11-20"]),
    ],
)
def test_params_refuse_what_no_program_takes(dag: Any, name: str, bad: list[Any], good: list[Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = dag.params.get_param(name)
    for value in bad:
        with pytest.raises(ParamValidationError):
            param.resolve(value)
    assert [param.resolve(value) for value in good] == good


def test_arguments_are_rendered_from_the_params(dag: Any) -> None:
    environment = dag.get_template_env()
    values = {"run_id": "manual", "params": {"recipe": "--x", "processes": 2, "seed": 7, "ds": None}}

    def rendered(task_id: str) -> list[str]:
        return [environment.from_string(arg).render(values) for arg in dag.get_task(task_id).application_args[2:]]

    assert rendered("train") == ["--run-id=manual", "--recipe=--x", "--seed", "7", "--processes", "2"]
    assert rendered("pairs") == ["--run-id=manual", "--ds", "latest"]
    values["params"] = {"ds": "2026-11-20"}
    assert rendered("pairs")[1:] == ["--ds", "2026-11-20"]


def test_the_file_loads_nothing_heavy(dag: Any, tmp_path: Path) -> None:
    program = "import sys, json, dags.encoder_training; print(json.dumps(list(sys.modules)))"
    env = os.environ | {"PINLAKE_HOME": "x", "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__UNIT_TEST_MODE": "True"}
    result = subprocess.run([sys.executable, "-c", program], cwd=REPO, env=env, capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert not loaded & {"mlflow", "torch", "pyspark", "deltalake", "faiss", "embedding.encoder", "embedding.index", "jobs"}
