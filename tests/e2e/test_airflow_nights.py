"""Whole nights through a real Airflow: its own scheduler, API server and DAG processor, Spark, Delta, FAISS.

A backfill in the middle of a migration goes through `make cluster-test` (demo/cluster.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demo.airflow import LocalAirflow
from demo.days import DEMO_DAYS
from embedding.contracts import NIGHTS, PINS, RELATED_PINS, USER_INTERESTS
from embedding.encoder.config import embedding_version, load_config
from embedding.index.reader import open_live
from embedding.report.page import write_report
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from embedding.taste.checks import last_checks
from embedding.taste.store import graph_of_run, live_graph_id, read_manifest
from tests.conftest import Exports
from tests.e2e.receiver import Receiver, wait_for
from tests.test_log_lines import told

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_800)]

DAY_1, DAY_2, _ = DEMO_DAYS
DEADLINE_S = 60
ALERTS_PASSWORD = "for-the-operators-alone"
LIVE = str(embedding_version(load_config("pinclip-base")))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Where Airflow sends its alerts, metrics and traces."""
    with Receiver() as receiver:
        yield receiver


def observed(receiver: Receiver, lineage: Path) -> dict[str, str]:
    """The settings that docs/operations.md names, for an operator's services."""
    address = f"json://operator:{ALERTS_PASSWORD}@127.0.0.1:{receiver.port}/alerts"
    return {
        "AIRFLOW_CONN_PINLAKE_ALERTS": json.dumps({"conn_type": "apprise", "extra": {"config": {"path": address}}}),
        "PINLAKE_DEADLINE_HOURS": json.dumps({"nightly_pins": DEADLINE_S / 3600}),
        "AIRFLOW__METRICS__OTEL_ON": "True",
        "AIRFLOW__TRACES__OTEL_ON": "True",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(lineage), "append": True}),
    }


@pytest.fixture(scope="module")
def airflow(exports: Exports, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    home = tmp_path_factory.mktemp("airflow home")
    env = {"PINLAKE_EXPORTS": str(exports.folder)}
    env |= observed(receiver, home / "lineage.jsonl")
    stack = LocalAirflow(home, port=18_080, spark_master="local[1]", retry_delay_s=1, env=env)
    with stack:
        for dag_id in ("nightly_pins", "index_release", "taste_profiles"):
            stack.api.unpause(dag_id)
        yield stack
    assert not stack.is_running()


@pytest.fixture(scope="module")
def lake(airflow: LocalAirflow) -> Lake:
    return Lake(str(airflow.home))


def run(airflow: LocalAirflow, dag_id: str, run_id: str) -> str:
    state = airflow.api.wait_run(dag_id, run_id, timeout_s=900)
    return state if state == "success" else airflow.api.failure_report(dag_id, run_id)


# A demo's second day has so many broken pins for its size that the gate would be right to stop it.
LENIENT = {"min_coverage": 0.1}


def nights(lake: Lake) -> list[dict[str, Any]]:
    return sorted(read_rows(lake.open(NIGHTS)).to_pylist(), key=lambda row: row["checked_at"])


def alerts(receiver: Receiver, kind: str) -> list[dict[str, Any]]:
    return [alert for alert in receiver.alerts() if alert["title"].startswith(f"pinlake: {kind}: ")]


def names(datasets: list[dict[str, Any]]) -> set[str]:
    assert {dataset["namespace"] for dataset in datasets} <= {"file"}
    return {dataset["name"] for dataset in datasets}


def about(event: dict[str, Any]) -> dict[str, str]:
    """The tags of an event's run: program, ds, embedding_version."""
    return {tag["key"]: tag["value"] for tag in event["run"]["facets"]["tags"]["tags"] if tag["source"] == "pinlake"}


def test_a_night_lands_embeds_checks_and_releases(airflow: LocalAirflow, lake: Lake) -> None:
    asked_at = datetime.now(UTC)
    assert run(airflow, "nightly_pins", airflow.api.trigger_day("nightly_pins", DAY_1, LENIENT)) == "success"
    assert run(airflow, "index_release", airflow.api.find_run("index_release", DAY_1, after=asked_at)) == "success"
    (night,) = nights(lake)
    assert (night["status"], night["ds"]) == ("passed", DAY_1)
    assert night["landed"] == night["embedded"] + night["quarantined"] > 0
    assert night["images_per_s"] > 0
    live = open_live(lake)
    assert live.manifest.rows == night["embedded"]
    assert live.manifest.days == [DAY_1]


def test_the_night_starts_the_taste_graph_which_is_whole_and_reported(
    airflow: LocalAirflow, lake: Lake, tmp_path: Path
) -> None:
    (run_id,) = [r["dag_run_id"] for r in airflow.api.runs("taste_profiles") if r["partition_key"] == DAY_1]
    assert run(airflow, "taste_profiles", run_id) == "success"
    airflow.api.pause("taste_profiles")  # one night of it is enough here
    live = live_graph_id(lake)
    assert live is not None and live == graph_of_run(lake, run_id)
    assert read_manifest(lake, live).sides["pins"].nodes > 0
    related = read_rows(lake.open(RELATED_PINS)).to_pylist()
    assert any(row["related"] for row in related) and {row["graph_id"] for row in related} == {live}
    interests = read_rows(lake.open(USER_INTERESTS)).to_pylist()
    assert interests and {(row["ds"], row["embedding_version"]) for row in interests} == {(DAY_1, LIVE)}
    faults: list[str] = []
    (check,) = last_checks(lake, faults)
    assert (check.run_id, check.graph_id, check.passed, faults) == (run_id, live, True, [])
    write_report(lake, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert live in page and "A map of interests" in page and "What we would show" in page


def test_a_day_without_an_export_fails_and_says_so(airflow: LocalAirflow) -> None:
    report = run(airflow, "nightly_pins", airflow.api.trigger_day("nightly_pins", "2026-12-24"))
    assert "no export for 2026-12-24" in report


def test_an_export_without_its_marker_is_waited_for_without_a_worker(airflow: LocalAirflow, exports: Exports) -> None:
    folder = exports.folder / "ds=2026-12-25"
    folder.mkdir()
    run_id = airflow.api.trigger_day("nightly_pins", "2026-12-25")
    deadline = time.monotonic() + 120
    while airflow.api.task_states("nightly_pins", run_id).get("wait_for_export") != "up_for_reschedule":
        assert time.monotonic() < deadline, airflow.api.task_states("nightly_pins", run_id)
        time.sleep(1)
    assert airflow.api.run_state("nightly_pins", run_id) == "running"


def test_a_failed_gate_is_told_once_with_what_it_found(airflow: LocalAirflow, receiver: Receiver) -> None:
    run_id = airflow.api.trigger_day("nightly_pins", DAY_2, {"min_coverage": 1.0})
    report = run(airflow, "nightly_pins", run_id)
    (alert,) = wait_for(lambda: alerts(receiver, "gate failed"))
    assert alert["title"] == f"pinlake: gate failed: nightly_pins.check, {DAY_2}"
    (finding,) = {text for level, *_, text in told(report) if level == "ERROR"}  # again in Airflow's own error
    assert alert["message"].startswith(finding) and "coverage" in finding
    for fact in (f"ds: {DAY_2}", f"run_id: {run_id}", f"embedding_version: {LIVE}", "try: 1 of 3", "operations.md#gate-failed"):
        assert fact in alert["message"].splitlines() or fact in alert["message"], alert["message"]
    assert {line[1:3] for line in told(report)} == {(DAY_2, run_id)}
    assert told(report)[-1][3] == LIVE


def test_a_task_that_failed_for_good_is_told_once_and_not_by_each_retry(airflow: LocalAirflow, receiver: Receiver) -> None:
    (alert,) = wait_for(lambda: alerts(receiver, "task failed"))
    assert alert["title"] == "pinlake: task failed: nightly_pins.wait_for_export, 2026-12-24"
    assert "FileNotFoundError: no export for 2026-12-24" in alert["message"]
    assert "try: 3 of 3" in alert["message"]


def test_a_run_that_misses_its_deadline_is_told(airflow: LocalAirflow, receiver: Receiver) -> None:
    waiting = [r for r in airflow.api.runs("nightly_pins") if r["partition_key"] == "2026-12-25"]
    title = "pinlake: deadline missed: nightly_pins, 2026-12-25"
    (alert,) = wait_for(lambda: [alert for alert in alerts(receiver, "deadline missed") if alert["title"] == title])
    assert f"run_id: {waiting[0]['dag_run_id']}" in alert["message"]
    assert "it is running" in alert["message"] and "operations.md#deadline-missed" in alert["message"]


def test_metrics_and_traces_reach_the_collector(airflow: LocalAirflow, receiver: Receiver) -> None:
    def nights_of(metric: str) -> list[dict[str, Any]]:
        return [point for point in receiver.metrics().get(metric, []) if point.get("dag_id") == "nightly_pins"]

    assert wait_for(lambda: nights_of("airflow.dagrun.duration.success"))
    assert wait_for(lambda: {"land", "embed", "check"} <= {point["task_id"] for point in nights_of("airflow.task.duration")})
    assert wait_for(lambda: receiver.metrics().get("airflow.scheduler_heartbeat"))
    (night,) = {
        trace
        for trace, name, facts in receiver.spans()
        if name == "dag_run.nightly_pins" and facts.get("airflow.dag_run.partition_key") == DAY_1
    }
    spans = {name: facts["airflow.dag_run.run_id"] for trace, name, facts in receiver.spans() if trace == night}
    assert {"dag_run.nightly_pins", "worker.land", "worker.embed", "worker.check"} <= set(spans)
    assert len(set(spans.values())) == 1, "a trace is a run"


def test_lineage_goes_from_the_export_to_the_live_release(airflow: LocalAirflow, lake: Lake, exports: Exports) -> None:
    events = [json.loads(line) for line in (airflow.home / "lineage.jsonl").read_text().splitlines()]
    ended = [event for event in events if event["eventType"] == "COMPLETE" and about(event).get("ds") == DAY_1]
    reached = {str(exports.folder / f"ds={DAY_1}")}
    while new := {name for event in ended if names(event["inputs"]) & reached for name in names(event["outputs"])} - reached:
        reached |= new
    tables = "pins boards saves users quarantine pin_embeddings nights releases related_pins user_interests board_embeddings"
    ends = [f"tables/{name}" for name in (*tables.split(), "user_embeddings")]
    ends += ["releases/pins", "releases/pins/LIVE", "graphs", "graphs/LIVE", "user_models"]
    assert reached == {str(exports.folder / f"ds={DAY_1}"), *(f"{lake.home}/{end}" for end in ends)}
    versions = {event["job"]["name"]: about(event).get("embedding_version") for event in ended}
    assert {task for task, version in versions.items() if version != LIVE} <= {
        "nightly_pins.land",
        "taste_profiles.graph",
        "taste_profiles.relate",
    }
    (pins,) = {
        json.dumps([field["name"] for field in output["facets"]["schema"]["fields"]])
        for event in ended
        for output in event["outputs"]
        if output["name"] == f"{lake.home}/tables/pins"
    }
    assert json.loads(pins) == PINS.schema.names


def test_no_secret_is_in_a_log(airflow: LocalAirflow) -> None:
    password = airflow.password_file.read_text().split('"')[3]
    for log in Path(airflow.airflow_home, "logs").rglob("*.log"):
        assert password not in log.read_text(errors="replace"), log
        assert ALERTS_PASSWORD not in log.read_text(errors="replace"), log
