"""The DAG files: that Airflow can read them, quickly; that every task has the policy; that the order of steps holds."""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
DAGS = REPO / "dags"
FORBIDDEN = ("torch", "pyspark", "faiss", "deltalake", "transformers", "embedding.encoder", "embedding.index")
SPARK_TASKS = {
    ("nightly_pins", "land"): "land_exports.py",
    ("nightly_pins", "embed"): "embed_pins.py",
    ("nightly_pins", "check"): "check_night.py",
    ("index_release", "build"): "build_index.py",
    ("index_release", "check"): "check_index.py",
    ("index_release", "publish"): "publish_index.py",
    ("encoder_migration", "begin"): "begin_migration.py",
    ("encoder_migration", "migrate_0"): "migrate_pins.py",
    ("encoder_migration", "catch_up"): "migrate_pins.py",
    ("encoder_migration", "build"): "build_index.py",
    ("encoder_migration", "check"): "check_index.py",
    ("encoder_migration", "compare"): "compare_encoders.py",
    ("encoder_migration", "cut_over"): "publish_index.py",
    ("table_maintenance", "forget"): "forget.py",
    ("table_maintenance", "maintain"): "maintain_tables.py",
    ("taste_profiles", "graph"): "build_graph.py",
    ("taste_profiles", "relate"): "relate_pins.py",
    ("taste_profiles", "interests"): "build_interests.py",
    ("taste_profiles", "boards"): "embed_boards.py",
    ("taste_profiles", "train_users"): "train_users.py",
    ("taste_profiles", "users"): "embed_users.py",
    ("taste_profiles", "check"): "check_taste.py",
    ("requeue_pins", "requeue"): "requeue_pins.py",
    ("requeue_pins", "publish"): "publish_index.py",
}
POINTER_TASKS = {
    ("index_release", "publish"),
    ("index_release", "retire"),
    ("encoder_migration", "cut_over"),
    ("requeue_pins", "publish"),
}
DAG_IDS = ("nightly_pins", "index_release", "encoder_migration", "table_maintenance", "requeue_pins", "taste_profiles")


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An Airflow of the tests' own: it reads its settings once, at import."""
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(home))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        patch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
        patch.setenv("PINLAKE_HOME", str(home / "lake"))
        for name in ("PINLAKE_EXPORTS", "PINLAKE_ENCODER", "PINLAKE_JOBS", "PINLAKE_SPARK_CONF", "PINLAKE_FIRST_NIGHT"):
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture(scope="session")
def dags(airflow_home: Path) -> dict[str, Any]:
    """The DAGs as Airflow's DAG processor would read them."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(DAGS))
    assert bag.import_errors == {}
    return dict(bag.dags)


@pytest.fixture(scope="session")
def common(airflow_home: Path) -> ModuleType:
    """The module that the DAG files share."""
    import dags.common

    return dags.common


@pytest.fixture(scope="session")
def programs(airflow_home: Path) -> ModuleType:
    """The module that submits Spark programs."""
    import dags.programs

    return dags.programs


def test_airflow_finds_the_dags(dags: dict[str, Any]) -> None:
    assert set(dags) >= set(DAG_IDS)


@pytest.mark.parametrize("module", DAG_IDS)
def test_a_dag_file_parses_in_under_a_second_and_loads_nothing_heavy(airflow_home: Path, module: str) -> None:
    program = (
        "import sys, json, airflow.sdk; from time import process_time as clock; before = clock(); "
        f"import dags.{module}; print(json.dumps([clock() - before, list(sys.modules)]))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True, timeout=120)
    seconds, loaded = json.loads(result.stdout.splitlines()[-1])
    assert seconds < 1
    assert not set(loaded) & set(FORBIDDEN)


def test_every_task_has_the_policy(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.doc_md and dag.doc_md.count("**") >= 6, "the docstring that lists the steps"
        assert dag.tags and dag.dagrun_timeout and not dag.catchup
        for task in dag.tasks:
            assert task.owner == "pinlake", task.task_id
            assert task.retries >= 1 and task.retry_exponential_backoff, task.task_id
            assert task.execution_timeout and task.execution_timeout < dag.dagrun_timeout, task.task_id
            assert task.pool, task.task_id


@pytest.mark.parametrize(("dag_id", "task_id"), SPARK_TASKS)
def test_spark_tasks_submit_their_program_within_the_pool(dags: dict[str, Any], dag_id: str, task_id: str) -> None:
    task = dags[dag_id].get_task(task_id)
    assert task.application == str(REPO / "jobs" / SPARK_TASKS[dag_id, task_id])
    assert Path(task.application).is_file()
    assert task.pool in json.loads((DAGS / "pools.json").read_text())
    assert all(isinstance(arg, str) for arg in task.application_args)
    assert task.application_args[0] == "--home" and "--run-id={{ run_id }}" in task.application_args
    assert task.conf["spark.pyspark.python"]


def test_nights_and_migrations_wait_for_their_own_slots(dags: dict[str, Any]) -> None:
    assert {task.pool for task in dags["nightly_pins"].tasks if "embed" in task.task_id} == {"spark"}
    slices = [task for task in dags["encoder_migration"].tasks if task.task_id.startswith("migrate_")]
    assert {task.pool for task in slices} == {"migration"}
    assert [task.application_args[5:9] for task in slices] == [
        ["--slice", str(i), "--of", str(len(slices))] for i in range(len(slices))
    ]


def test_whatever_moves_the_pointer_waits_for_the_only_slot(dags: dict[str, Any]) -> None:
    assert json.loads((DAGS / "pools.json").read_text())["release_pointer"]["slots"] == 1
    in_pool = {(dag_id, task.task_id) for dag_id in DAG_IDS for task in dags[dag_id].tasks if task.pool == "release_pointer"}
    assert in_pool == POINTER_TASKS


def test_the_wait_for_the_export_holds_no_worker(dags: dict[str, Any]) -> None:
    assert dags["nightly_pins"].get_task("wait_for_export").mode == "reschedule"


def test_embeddings_are_announced_by_the_check_and_by_nothing_before_it(dags: dict[str, Any]) -> None:
    night = dags["nightly_pins"]
    announcing = [task.task_id for task in night.tasks if task.outlets]
    assert announcing == ["check"]
    before = {"wait_for_export", "choose_encoders", "land", "embed"}
    assert night.get_task("check").get_flat_relative_ids(upstream=True) == before
    assert [asset.uri for asset in night.get_task("check").outlets] == [dags["index_release"].timetable.asset_condition.uri]


def test_publish_stays_downstream_of_the_check(dags: dict[str, Any]) -> None:
    release = dags["index_release"]
    assert release.get_task("publish").upstream_task_ids == {"check"}
    assert release.get_task("check").upstream_task_ids == {"build"}
    assert release.max_active_runs == 1
    assert all(task.trigger_rule == "all_success" for dag_id in DAG_IDS for task in dags[dag_id].tasks)


def test_a_night_stays_with_the_encoders_that_it_chose(dags: dict[str, Any]) -> None:
    night = dags["nightly_pins"]
    for task_id in ("embed", "check"):
        encoder = night.get_task(task_id).encoder
        assert (encoder.operator.task_id, encoder.key) == ("choose_encoders", "live")
        assert "choose_encoders" in night.get_task(task_id).upstream_task_ids


def test_other_versions_are_embedded_only_after_the_live_one_is_announced(dags: dict[str, Any]) -> None:
    night = dags["nightly_pins"]
    embed, check = night.get_task("beside.embed"), night.get_task("beside.check")
    assert embed.upstream_task_ids >= {"check"} and check.upstream_task_ids >= {"beside.embed"}
    assert night.get_task("check").get_flat_relative_ids(upstream=False) == {"beside.embed", "beside.check"}
    assert embed.get_closest_mapped_task_group() is check.get_closest_mapped_task_group() is not None
    assert not embed.outlets and not check.outlets


def test_a_migration_compares_before_it_cuts_over(dags: dict[str, Any]) -> None:
    migration = dags["encoder_migration"]
    order = ["begin", "choose_encoders", "catch_up", "build", "check", "compare", "cut_over"]
    for before, after in itertools.pairwise(order):
        assert before in migration.get_task(after).get_flat_relative_ids(upstream=True), after
    assert migration.get_task("cut_over").upstream_task_ids == {"compare"}
    assert "--cut-over" in migration.get_task("cut_over").application_args
    assert not any("--cut-over" in task.application_args for task in dags["index_release"].tasks if task.task_id == "publish")
    assert migration.max_active_runs == 1
    for task_id in ("migrate_0", "catch_up", "check", "compare"):
        assert type(migration.get_task(task_id).retry_policy).__name__ == "StopWhenCheckFails", task_id


@pytest.mark.parametrize("minute", [1, 60])
def test_unpausing_waits_for_the_next_night_which_is_for_the_day_before(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, minute: int
) -> None:
    from airflow.serialization.decoders import decode_timetable
    from airflow.serialization.encoders import encode_timetable
    from airflow.timetables.base import TimeRestriction

    timetable = decode_timetable(encode_timetable(dags["nightly_pins"].timetable))
    unpaused_at = datetime(2026, 11, 21, 2, tzinfo=UTC) + timedelta(minutes=minute)
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: unpaused_at)
    run = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=TimeRestriction(None, None, False))
    assert run is not None
    assert run.run_after == datetime(2026, 11, 22, 2, tzinfo=UTC)
    assert run.partition_key == "2026-11-21"


@pytest.mark.parametrize("dag_id", ["nightly_pins", "index_release"])
@pytest.mark.parametrize("bad", ["yesterday", "2026-11-1", "2026-11-18; rm -rf /", "--conf", "2026-11-18\n--conf", 20261118])
def test_the_day_param_refuses_what_is_no_day(dags: dict[str, Any], dag_id: str, bad: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = dags[dag_id].params.get_param("ds")
    with pytest.raises(ParamValidationError):
        param.resolve(bad)
    assert param.resolve("2026-11-18") == "2026-11-18"
    assert param.resolve(None) is None


@pytest.mark.parametrize(
    ("param", "bad"), [("reasons", "fetch_failed"), ("reasons", ["null_id"]), ("reasons", ["--conf"]), ("pins", ["1; ls"])]
)
def test_only_pins_that_landed_are_tried_again_and_by_nothing_but_names(dags: dict[str, Any], param: str, bad: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    asked = dags["requeue_pins"].params.get_param(param)
    with pytest.raises(ParamValidationError):
        asked.resolve(bad)
    assert asked.resolve([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, "0.9"])
def test_coverage_is_a_share(dags: dict[str, Any], bad: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dags["nightly_pins"].params.get_param("min_coverage").resolve(bad)


@pytest.mark.parametrize(
    ("partition_key", "ds", "day"),
    [("2026-11-18", None, "2026-11-18"), (None, "2026-11-18", "2026-11-18"), ("2026-11-18", "2026-11-18", "2026-11-18")],
)
def test_the_day_is_the_partition_key_or_the_param(common: ModuleType, partition_key: str, ds: str, day: str) -> None:
    assert common.day_of(partition_key, ds) == day


@pytest.mark.parametrize(
    ("partition_key", "ds", "message"),
    [
        (None, None, "no day"),
        ("2026-11-18", "2026-11-19", "two days"),
        ("2026-02-30", None, "not a day"),
        ("--conf spark.x=y", None, "not a day"),
        ("2026-11-18\n", None, "not a day"),
    ],
)
def test_a_run_without_one_clear_day_fails_without_a_retry(
    common: ModuleType, partition_key: str, ds: str, message: str
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match=message):
        common.day_of(partition_key, ds)


@pytest.mark.parametrize("as_uri", [str, Path.as_uri], ids=["path", "uri"])
def test_a_day_without_a_folder_fails_with_the_folder_and_what_to_do(common: ModuleType, tmp_path: Path, as_uri: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"no export for 2026-11-18.*ds=2026-11-18.*PINLAKE_EXPORTS"):
        common.export_is_complete(as_uri(tmp_path), "2026-11-18")


@pytest.mark.parametrize("as_uri", [str, Path.as_uri], ids=["path", "uri"])
def test_a_folder_is_waited_for_until_its_marker_is_there(common: ModuleType, tmp_path: Path, as_uri: Any) -> None:
    exports = tmp_path / "the exports"
    folder = exports / "ds=2026-11-18"
    folder.mkdir(parents=True)
    assert common.export_is_complete(as_uri(exports), "2026-11-18") is False
    (folder / "_SUCCESS").touch()
    assert common.export_is_complete(as_uri(exports), "2026-11-18") is True


def test_settings_come_from_the_environment(common: ModuleType, programs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINLAKE_HOME", "s3://lake/")
    monkeypatch.setenv("PINLAKE_SPARK_CONF", '{"spark.executor.memory": "8g"}')
    monkeypatch.setenv("PYSPARK_PYTHON", "/opt/python")
    assert common.exports() == "s3://lake/exports"
    task = programs.spark_job("a_task", "a_job.py")
    assert task.application_args[:2] == ["--home", "s3://lake"]
    assert task.conf["spark.executor.memory"] == "8g" and task.conf["spark.pyspark.python"] == "/opt/python"
    monkeypatch.delenv("PINLAKE_HOME")
    with pytest.raises(ValueError, match="PINLAKE_HOME"):
        common.home()


def put(folder: Path, **files: dict[str, str]) -> None:
    """Small JSON files below a lake's home; two underscores stand for a slash."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("as_uri", [str, Path.as_uri], ids=["path", "uri"])
def test_encoders_are_chosen_from_the_pointer_and_the_markers(common: ModuleType, tmp_path: Path, as_uri: Any) -> None:
    home = tmp_path / "a lake"
    home.mkdir()
    nobody: dict[str, Any] = {"live": "pinclip-base", "beside": [], "candidate": None, "leaving": []}
    assert common.read_encoders(as_uri(home)) == nobody
    put(home, releases__pins__LIVE={"release_id": "r1"}, releases__pins__r1={})
    (home / "releases/pins/r1").unlink()
    (home / "releases/pins/r1").mkdir()
    (home / "releases/pins/r1/manifest.json").write_text('{"embedding_version": "a-1"}')
    assert common.read_encoders(as_uri(home)) == {**nobody, "live": "a-1"}, "a pointer of an earlier pinlake"
    put(home, releases__pins__LIVE={"release_id": "r2", "embedding_version": "b-2"})
    for version, role in {"a-1": "previous", "b-2": "candidate", "c-3": "candidate", "d-4": "previous"}.items():
        (home / "encoders" / version).mkdir(parents=True)
        (home / "encoders" / version / "FRESH").write_text(json.dumps({"role": role}))
    (home / "encoders" / "d-4" / "RETIRED").touch()
    (home / "encoders" / "e-5").mkdir()
    chosen = {"live": "b-2", "beside": ["a-1", "c-3"], "candidate": "c-3", "leaving": ["a-1", "d-4"]}
    assert common.read_encoders(as_uri(home)) == chosen


@pytest.fixture
def fake_spark_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spark-submit that writes its argv down, one a line, and exits with $EXIT."""
    program = tmp_path / "bin" / "spark-submit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/argv"\nenv > "{tmp_path}/env"\nexit $EXIT\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "local[1]"}')
    return tmp_path / "argv"


def test_arguments_reach_the_program_as_they_are(
    programs: ModuleType, fake_spark_submit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXIT", "0")
    programs.spark_job("a_task", "a_job.py", "", "$(touch x); 'y'", encoder="a-1").execute({})
    argv = fake_spark_submit.read_text().splitlines()
    assert argv[argv.index("--master") + 1] == "local[1]"
    expected = ["--run-id={{ run_id }}", "$(touch x); 'y'", "--encoder", "a-1"]
    assert argv[-4:] == expected, "an empty argument is left out"


def test_secrets_reach_a_program_by_its_environment_alone(
    programs: ModuleType, fake_spark_submit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = {
        "conn_type": "aws",
        "login": "the-key",
        "password": "the-secret",
        "extra": {"endpoint_url": "http://store:9000", "region_name": "eu-1"},
    }
    monkeypatch.setenv("EXIT", "0")
    monkeypatch.setenv("AIRFLOW_CONN_PINLAKE_STORE", json.dumps(store))
    spark = {"conn_type": "spark", "host": "spark://master", "port": 7077, "password": "the-shared-secret"}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(spark))
    task = programs.spark_job("a_task", "a_job.py")
    task.execute({})
    environment = dict(line.partition("=")[::2] for line in fake_spark_submit.with_name("env").read_text().splitlines())
    assert (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]) == ("the-key", "the-secret")
    assert (environment["AWS_ENDPOINT_URL"], environment["AWS_ALLOW_HTTP"]) == ("http://store:9000", "true")
    assert environment["_SPARK_AUTH_SECRET"] == "the-shared-secret"
    shown = fake_spark_submit.read_text() + caplog.text + str({name: getattr(task, name) for name in task.template_fields})
    assert "the-key" not in shown and "the-secret" not in shown and "the-shared-secret" not in shown

    # On YARN the provider would put them on the command line.
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({**spark, "host": "yarn", "port": None}))
    programs.spark_job("a_task", "a_job.py").execute({})
    assert "the-secret" not in fake_spark_submit.read_text()
    assert "AWS_SECRET_ACCESS_KEY=the-secret" not in fake_spark_submit.with_name("env").read_text()


@pytest.mark.parametrize(("status", "action"), [(1, "default"), (3, "fail"), (30, "default"), (143, "default")])
def test_only_a_failed_check_is_not_retried(
    programs: ModuleType, fake_spark_submit: Path, monkeypatch: pytest.MonkeyPatch, status: int, action: str
) -> None:
    monkeypatch.setenv("EXIT", str(status))
    with pytest.raises(Exception, match="Error code is") as failure:
        programs.spark_job("a_task", "a_job.py").execute({})
    decision = programs.StopWhenCheckFails().evaluate(failure.value, try_number=1, max_tries=2)
    assert decision.action.value == action
