"""What alerts say and what they keep to themselves. That Airflow calls them, and when: tests/e2e."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.e2e.receiver import Receiver

CONNECTION = "AIRFLOW_CONN_PINLAKE_ALERTS"
SECRET = "hook-secret-4711"


@pytest.fixture(scope="module")
def alerts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """dags/alerts.py, in an Airflow of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.delenv(CONNECTION, raising=False)
        import dags.alerts

        yield dags.alerts


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Where `pinlake_alerts` leads to."""
    with Receiver() as receiver:
        config = [{"path": f"json://operator:{SECRET}@127.0.0.1:{receiver.port}/alerts"}]
        monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "apprise", "extra": {"config": json.dumps(config)}}))
        yield receiver


def failed(error: object, **facts: Any) -> dict[str, Any]:
    """The context of a task that has failed for good."""
    ti = {"dag_id": "nightly_pins", "task_id": "embed", "run_id": "r 1", "map_index": -1, "try_number": 3, "max_tries": 2}
    run = SimpleNamespace(partition_key="2026-11-18")
    return {"ti": SimpleNamespace(**ti | {"log_url": "http://airflow/log"} | facts), "dag_run": run, "exception": error}


def test_an_alert_says_where_and_what_and_renders_nothing(alerts: ModuleType, receiver: Receiver) -> None:
    alerts.task_failed(failed(ValueError(f"{{{{ conn.pinlake_store.password }}}}: https://u:{SECRET}@store/x is away")))
    (alert,) = receiver.alerts()
    assert (alert["title"], alert["type"]) == ("pinlake: task failed: nightly_pins.embed, 2026-11-18", "failure")
    what, _, *facts = alert["message"].splitlines()
    assert what == "ValueError: {{ conn.pinlake_store.password }}: https://***@store/x is away"
    assert facts == [
        "dag: nightly_pins",
        "task: embed",
        "ds: 2026-11-18",
        "run_id: r 1",
        "try: 3 of 3",
        "log: http://airflow/log",
        "what to do: docs/operations.md#task-failed",
    ]


def test_of_a_programs_failure_its_own_sentences_are_told(alerts: ModuleType, receiver: Receiver) -> None:
    line = '2026-11-19 02:14:07,312 {} ds=2026-11-18 run_id="r 1" embedding_version=pinclip-base-b0bf4cfd9d6f {}'
    log = [
        line.format("INFO", "55 pins"),
        "26/11/19 WARN Utils: a line of the JVM",
        line.format("ERROR", "coverage 0.4 is low"),
        line.format("ERROR", "Traceback (most recent call last):"),
        line.format("ERROR", '  File "check_night.py", line 1, in main'),
        line.format("ERROR", "OSError: no space left"),
    ]
    command = "Cannot execute: spark-submit --conf key=value. Error code is: {}.\nLast spark-submit output:\n"
    alerts.task_failed(failed(RuntimeError(command.format(3) + "\n".join(log)), try_number=1, map_index=2))
    alerts.task_failed(failed(RuntimeError(command.format(137) + log[1])))
    gate, lost = receiver.alerts()
    assert gate["title"] == "pinlake: gate failed: nightly_pins.embed[2], 2026-11-18"
    assert gate["message"].startswith("coverage 0.4 is low\nOSError: no space left\n\n")
    assert "embedding_version: pinclip-base-b0bf4cfd9d6f\ntry: 1 of 3\n" in gate["message"]
    assert lost["message"].startswith("The program ended with exit status 137, and said no reason.\n")
    assert "spark-submit" not in gate["message"] + lost["message"]


def test_a_run_that_failed_by_itself_is_told_and_one_of_a_failed_task_not_again(alerts: ModuleType, receiver: Receiver) -> None:
    context = {"dag": SimpleNamespace(dag_id="taste_profiles"), "run_id": "r1"}
    alerts.run_failed(context | {"reason": "task_failure"})
    alerts.run_failed(context | {"reason": "timed_out"})
    (alert,) = receiver.alerts()
    assert alert["title"] == "pinlake: run failed: taste_profiles, r1" and "dagrun_timeout" in alert["message"]


def test_a_backfill_and_a_run_whose_failure_was_told_miss_no_deadline(alerts: ModuleType, receiver: Receiver) -> None:
    run = {"dag_id": "index_release", "dag_run_id": "r1", "partition_key": None, "conf": {"ds": "2026-11-18"}}
    for run_type, state in (("backfill", "queued"), ("scheduled", "failed"), ("manual", "queued")):
        context = {"dag_run": run | {"run_type": run_type, "state": state}, "deadline": {"deadline_time": "2026-11-19T08:00"}}
        alerts.deadline_missed(context)
    (alert,) = receiver.alerts()
    assert alert["title"] == "pinlake: deadline missed: index_release, 2026-11-18"


def test_without_a_connection_or_a_working_one_the_log_says_that_nobody_was_told(
    alerts: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="dags.alerts"):
        alerts.task_failed(failed(None))
        monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "apprise", "extra": {"config": "no JSON, " + SECRET}}))
        alerts.task_failed(failed(None))
    assert "there is no connection pinlake_alerts: nobody was told: pinlake: task failed" in caplog.messages[0]
    assert "nobody was told" in caplog.messages[1]
    assert SECRET not in caplog.text


def test_hours_of_deadlines_are_settings(alerts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINLAKE_DEADLINE_HOURS", '{"nightly_pins": 8, "index_release": 0}')
    assert alerts.deadline("nightly_pins").interval == timedelta(hours=8)
    assert alerts.deadline("index_release") is None
    assert alerts.deadline("taste_profiles").interval == timedelta(hours=12)
    assert alerts.deadline("encoder_training") is None


def test_the_runbook_has_a_section_for_each_alert(alerts: ModuleType) -> None:
    headings = Path(__file__).resolve().parents[2].joinpath("docs", "operations.md").read_text().splitlines()
    kinds = (alerts.TASK_FAILED, alerts.GATE_FAILED, alerts.RUN_FAILED, alerts.DEADLINE_MISSED)
    assert {f"### {kind.capitalize()}" for kind in kinds} <= set(headings)
