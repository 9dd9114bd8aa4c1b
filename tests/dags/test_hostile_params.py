"""What whoever triggers a run can type, and how far it comes: Airflow's own checks, the templates, spark-submit, the programs.

Every Spark task of every DAG is rendered by Airflow and run with a spark-submit that writes its argv down; the rest of that
argv is then given to the program that it names.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedding.tables.lake import Lake, run_folder

REPO = Path(__file__).resolve().parents[2]
DAGS = (
    "nightly_pins",
    "index_release",
    "encoder_migration",
    "encoder_training",
    "table_maintenance",
    "requeue_pins",
    "taste_profiles",
)
VERSION = "pinclip-base-0123456789ab"
EVERYTHING = "--conf spark.x=y --jars /x.jar; $(touch x) `x` 'q' \"q\" {{ 7*7 }} {% raw %} ../../etc/passwd %s \\n 漢"
RUN_IDS = ["--conf", "-h", "--jars=x", "a\nb", "a\n", "../../x", "/etc/x", "x" * 251, "", " ", "é漢" * 60, EVERYTHING]
REFUSED_RUN_IDS = {"a\nb", "a\n", "x" * 251, "", " "}

Argv = Callable[..., list[str]]


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The DAGs as Airflow reads them."""
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(home))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        patch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
        patch.setenv("PINLAKE_HOME", str(home / "lake"))
        patch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "local[1]"}')
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(dag_folder=str(REPO / "dags"))
        assert bag.import_errors == {}
        yield dict(bag.dags)


def spark_tasks(dag: Any) -> list[Any]:
    return [task for task in dag.tasks if task.task_type == "SparkJob"]


@pytest.fixture(scope="module")
def argv(dags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Argv]:
    """Renders a task for a run, runs it, and returns what spark-submit was started with."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "spark-submit"
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > "{folder}/argv"\n')
    program.chmod(0o755)
    defaults = {dag_id: {name: dags[dag_id].params[name] for name in dags[dag_id].params} for dag_id in DAGS}

    def xcom_pull(key: str = "return_value", **_: Any) -> Any:
        return [VERSION] if key == "return_value" else VERSION

    def run(dag_id: str, task_id: str, run_id: str = "manual", key: str | None = None, **conf: Any) -> list[str]:
        from airflow.sdk.definitions.param import process_params

        dag = copy.deepcopy(dags[dag_id])
        conf = {**defaults[dag_id], **conf}  # all of them, since a Param remembers what it was given, and copies share it
        task = dag.get_task(task_id)
        ti = SimpleNamespace(xcom_pull=xcom_pull, map_index=0, task=task)
        context = {"dag": dag, "task": task, "ti": ti, "run_id": run_id}
        context |= {"params": process_params(dag, task, conf, suppress_exception=False)}
        context |= {"dag_run": SimpleNamespace(partition_key=key, run_id=run_id, conf=conf)}
        task.render_template_fields(context)
        (folder / "argv").unlink(missing_ok=True)
        ti.task.execute(context)  # for a mapped task the one that rendering has made of it
        return (folder / "argv").read_text().split("\0")[:-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield run


def program_at(arguments: list[str]) -> int:
    """Where in spark-submit's argv the program is; what comes before it is Spark's."""
    return next(i for i, word in enumerate(arguments) if word.startswith(f"{REPO}/jobs/"))


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the program that spark-submit would run makes of its arguments; SystemExit where it refuses them."""
    program = program_at(arguments)
    module = importlib.import_module(f"jobs.{Path(arguments[program]).stem}")
    parse = getattr(module, "parse_args", None)
    if parse is None:  # a program of no arguments of its own
        from jobs.session import arguments as shared

        parse = shared(None, ds=False).parse_args
    return dict(vars(parse(arguments[program + 1 :])))


@pytest.mark.parametrize("dag_id", DAGS)
def test_a_run_s_name_is_one_argument_of_the_program_whatever_it_is(dags: dict[str, Any], argv: Argv, dag_id: str) -> None:
    day = {"ds": "2026-11-18"} if "ds" in dags[dag_id].params else {}
    asked = {"pins": [42]} if dag_id == "requeue_pins" else {}
    tasks = spark_tasks(dags[dag_id])
    assert tasks
    for task in tasks:
        usual = argv(dag_id, task.task_id, "manual", **day, **asked)
        hostile = argv(dag_id, task.task_id, EVERYTHING, **day, **asked)
        at = usual.index("--run-id=manual")
        assert program_at(usual) == program_at(hostile) < at, "nothing before the program's path"
        assert hostile == [*usual[:at], f"--run-id={EVERYTHING}", *usual[at + 1 :]], task.task_id
        assert parsed(hostile) == {**parsed(usual), "run_id": EVERYTHING}, task.task_id


@pytest.mark.parametrize("run_id", RUN_IDS)
def test_a_run_s_name_is_refused_or_taken_literally_and_leads_to_no_other_folder(
    argv: Argv, tmp_path: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = argv("taste_profiles", "graph", run_id)
    if run_id in REFUSED_RUN_IDS:
        with pytest.raises(SystemExit, match="2"):
            parsed(arguments)
        assert "not the name of a run" in capsys.readouterr().err
        return
    assert parsed(arguments)["run_id"] == run_id
    folder = Path(Lake(str(tmp_path)).run_uri("2026-11-18", run_id))
    folder.mkdir(parents=True)
    assert folder.resolve().parent == (tmp_path / "runs" / "ds=2026-11-18").resolve()


def test_runs_of_different_names_have_different_folders() -> None:
    names = ["a.b", "a_b", "a/b", "a:b", "A_b", "x" * 100, "x" * 101, "x" * 102, "é", "è", "..", "__"]
    names += [run_folder(name) for name in names]
    assert len({run_folder(name) for name in names}) == len(set(names))
    assert run_folder("by-hand_2") == "by-hand_2"


@pytest.mark.parametrize(
    ("dag_id", "conf"),
    [
        ("nightly_pins", {"ds": "2026-11-18\n"}),
        ("nightly_pins", {"ds": "２０２６-11-18"}),
        ("nightly_pins", {"ds": ["2026-11-18"]}),
        ("nightly_pins", {"min_coverage": "0.9 --home /x"}),
        ("nightly_pins", {"retry_quarantined": "yes"}),
        ("encoder_training", {"ds": "latest --recipe x"}),
        ("encoder_training", {"recipe": "--conf"}),
        ("encoder_training", {"recipe": "s3://bucket/recipe.json"}),
        ("encoder_training", {"recipe": "a\x00"}),
        ("encoder_training", {"recipe": "x" * 501}),
        ("encoder_training", {"seed": 2**31}),
        ("encoder_training", {"processes": 10**6}),
        ("encoder_migration", {"to": "-candidate"}),
        ("encoder_migration", {"to": "candidate\n"}),
        ("encoder_migration", {"to": "https://host/config.json"}),
        ("encoder_migration", {"to": ""}),
        ("table_maintenance", {"forget_days": 10**9}),
        ("table_maintenance", {"retention_hours": 0}),
        ("requeue_pins", {"pins": [2**63]}),
        ("requeue_pins", {"pins": list(range(5_001))}),
        ("requeue_pins", {"pins": ["42"]}),
        ("requeue_pins", {"reasons": ["fetch_failed"] * 2}),
    ],
)
def test_airflow_refuses_before_a_task_starts(argv: Argv, dags: dict[str, Any], dag_id: str, conf: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError, match=f"Invalid input for param {next(iter(conf))}"):
        argv(dag_id, spark_tasks(dags[dag_id])[0].task_id, **conf)


@pytest.mark.parametrize(
    "value", ["/etc/passwd", "../../../etc/passwd", "$(touch x); x", "{{ 7*7 }}", "a b --home=/x", "~root/x"]
)
def test_an_encoder_s_and_a_recipe_s_name_is_one_argument_and_rendered_once(argv: Argv, value: str) -> None:
    begin, train = argv("encoder_migration", "begin", to=value), argv("encoder_training", "train", recipe=value)
    assert begin[-1] == f"--to={value}" and f"--recipe={value}" in train
    assert parsed(begin)["to"] == value and parsed(train)["recipe"] == value


@pytest.mark.parametrize(
    ("dag_id", "task_id", "conf", "message"),
    [
        ("nightly_pins", "check", {"min_coverage": math.nan}, "not a number from 0 to 1"),
        ("encoder_migration", "catch_up", {"min_coverage": math.nan}, "not a number from 0 to 1"),
        ("requeue_pins", "requeue", {"pins": [42.0]}, "pin ids separated by commas"),
        ("table_maintenance", "forget", {"forget_days": 7.0}, "not a whole number"),
    ],
)
def test_the_program_refuses_what_json_schema_lets_through(
    argv: Argv, capsys: pytest.CaptureFixture[str], dag_id: str, task_id: str, conf: dict[str, Any], message: str
) -> None:
    day = {"ds": "2026-11-18"} if dag_id == "nightly_pins" else {}
    with pytest.raises(SystemExit, match="2"):
        parsed(argv(dag_id, task_id, **day, **conf))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["root:x:0:0:a-secret", '"a-secret"', "[1, 'a-secret']", "\x80\x04a-secret"])
def test_a_file_that_is_no_config_and_no_recipe_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    from embedding.encoder.config import ConfigError, load_config
    from embedding.encoder.recipe import RecipeError, load_recipe

    (tmp_path / "file").write_text(content)
    for load, kind in ((load_config, ConfigError), (load_recipe, RecipeError)):
        with pytest.raises(kind, match=r"not JSON|a JSON object is needed") as caught:
            load(str(tmp_path / "file"))
        assert "a-secret" not in str(caught.value)


def test_what_is_no_param_reaches_no_program(argv: Argv) -> None:
    others = {"application": "/x", "conf": {"spark.x": "y"}, "encoder": "--x", "env_vars": {"X": "y"}}
    assert argv("taste_profiles", "graph", **others) == argv("taste_profiles", "graph")


@pytest.mark.parametrize("key", ["--conf spark.x=y", "../2026-11-18", "2026-11-18\n", "2026-02-30", "x" * 300, "{{ 7*7 }}"])
@pytest.mark.parametrize(("dag_id", "task_id"), [("nightly_pins", "land"), ("index_release", "build")])
def test_a_partition_key_that_is_no_day_fails_the_task_for_good(argv: Argv, dag_id: str, task_id: str, key: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="not a day"):
        argv(dag_id, task_id, key=key)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("spark.authenticate.secret", True),
        ("spark.hadoop.fs.s3a.secret.key", True),
        ("spark.executorEnv.AWS_SECRET_ACCESS_KEY", True),
        ("spark.ssl.keyPassword", True),
        ("spark.authenticate.secret.file", False),
        ("spark.kubernetes.driver.secrets.a", False),
    ],
)
def test_no_secret_goes_on_the_command_line(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, refused: bool
) -> None:
    from dags.programs import spark_job

    monkeypatch.setenv("PINLAKE_SPARK_CONF", json.dumps({name: "hunter2"}))
    if refused:
        with pytest.raises(ValueError, match=name) as caught:
            spark_job("a_task", "a_job.py")
        assert "hunter2" not in str(caught.value)
    else:
        assert (spark_job("a_task", "a_job.py").conf or {})[name] == "hunter2"


def test_a_real_spark_submit_hands_every_argument_on_as_it_is(argv: Argv, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    hostile = argv("encoder_training", "train", EVERYTHING, recipe="$(touch x) {{ 7*7 }} --jars=x")
    at = program_at(hostile)
    words = [*hostile[at + 1 :], "two\nlines", "--driver-memory", "1t"]
    submit = str(Path(sys.executable).with_name("spark-submit"))
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [submit, *hostile[:at], str(program), *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1]) == words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py"], "no shell has read any of it"
