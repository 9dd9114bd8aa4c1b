"""docker-compose.yml: a compose implementation reads it, it keeps its promises, and what it would start runs by hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from demo.compose import REPO, ComposeError, read_services
from demo.services import Services

IMPLEMENTATIONS = {
    # It asks podman for its version even where it only reads.
    "podman-compose": [sys.executable if shutil.which("podman") else "", "-m", "podman_compose"],
    "docker-compose": [shutil.which("docker-compose") or ""],
}
RUN_ONCE = {"airflow-init"}


def read_env(file: Path) -> dict[str, str]:
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make compose-env` writes."""
    file = tmp_path_factory.mktemp("compose") / "compose.env"
    made = subprocess.run(
        [sys.executable, REPO / "tools" / "make_env.py", "--file", file], check=True, capture_output=True, text=True
    )
    assert not any(value in made.stdout for name, value in read_env(file).items() if name in secret_names())
    return file


@pytest.fixture(scope="module")
def variables(env_file: Path) -> dict[str, str]:
    return read_env(env_file)


def secret_names() -> set[str]:
    return {name for name, value in read_env(REPO / ".env.example").items() if not value}


def config(implementation: str, env_file: Path) -> subprocess.CompletedProcess[str]:
    command = IMPLEMENTATIONS[implementation]
    if not command[0]:
        pytest.skip(f"there is no {implementation} here")
    # Nothing of this process's settings: `make test` has a PINLAKE_HOME, for one.
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [*command, "--file", REPO / "docker-compose.yml", "--env-file", env_file, "config"],
        env=clean,
        cwd=env_file.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_compose_implementation_reads_the_file_as_we_do(
    implementation: str, env_file: Path, variables: dict[str, str]
) -> None:
    told = config(implementation, env_file)
    assert told.returncode == 0, told.stderr
    theirs = yaml.safe_load(told.stdout)["services"]
    ours = read_services(variables, {"store", "gpu"})
    for name, service in read_services(variables, {"store"}).items():
        # Compose v1 writes a dollar twice again, as the file has it.
        assert [word.replace("$$", "$") for word in theirs[name]["command"]] == service["command"]
        assert {key: str(value).replace("$$", "$") for key, value in theirs[name]["environment"].items()} == {
            key: str(value) for key, value in service["environment"].items()
        }
    assert theirs.keys() <= ours.keys()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_a_secret_the_file_is_refused_and_the_secret_named(implementation: str, env_file: Path, tmp_path: Path) -> None:
    for name in ("POSTGRES_PASSWORD", "SPARK_AUTH_SECRET"):
        lacking = tmp_path / "lacking.env"
        lacking.write_text(re.sub(rf"^{name}=.*\n", "", env_file.read_text(), flags=re.MULTILINE))
        told = config(implementation, lacking)
        assert told.returncode != 0
        assert name in told.stderr


@pytest.mark.parametrize("name", sorted(secret_names()))
def test_each_secret_has_to_be_given_and_has_no_default(name: str, variables: dict[str, str]) -> None:
    for absent in ({}, {name: ""}):
        with pytest.raises(ComposeError, match=f"{name} is not set: ."):
            read_services({**{key: value for key, value in variables.items() if key != name}, **absent}, {"store"})


def test_the_secrets_are_random_and_for_their_owner_alone(env_file: Path, variables: dict[str, str], tmp_path: Path) -> None:
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    secrets = [variables[name] for name in secret_names()]
    assert len(set(secrets)) == len(secrets) and all(len(secret) >= 20 for secret in secrets)
    again = tmp_path / "kept.env"
    again.write_text("REDIS_PASSWORD=mine\n")
    for _ in range(2):
        subprocess.run([sys.executable, REPO / "tools" / "make_env.py", "--file", again], check=True, capture_output=True)
        kept = read_env(again)
        assert kept["REDIS_PASSWORD"] == "mine" and kept.keys() == variables.keys()
        assert kept["SPARK_AUTH_SECRET"] != variables["SPARK_AUTH_SECRET"]


SERVICES = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    user, _, _ = service["user"].partition(":")
    assert user.isdigit() and int(user) > 0
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "cap_add" not in service and service.get("network_mode") is None
    assert service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    assert isinstance(service["command"], list)
    if name in RUN_ONCE:
        assert service["restart"] == "on-failure"
    else:
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_images_are_our_own_or_of_a_version() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (REPO / "Dockerfile").read_text(), re.MULTILINE))
    for service in SERVICES.values():
        if "build" in service:
            assert service["build"]["target"] in targets and "latest" not in service["image"]
        else:
            assert re.fullmatch(r"docker\.io/library/\w+:\d[\w.-]+", service["image"])


def test_no_image_runs_as_root() -> None:
    stages = re.split(r"^FROM ", (REPO / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    used = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    final = {stage.split()[2]: stage for stage in stages if len(stage.split()) > 2 and stage.split()[2] in used}
    assert final.keys() == used
    assert all(re.search(r"^USER 50000:50000$", stage, re.MULTILINE) for stage in final.values())


def test_no_secret_stands_in_the_file(variables: dict[str, str]) -> None:
    """What looks like a secret is taken from a variable that has no default, wherever it stands."""
    looks_secret = re.compile(r"PASSWORD|SECRET|TOKEN|FERNET|_KEY$|AUTH$")
    literal = {
        (name, variable)
        for name, service in SERVICES.items()
        for variable, value in service.get("environment", {}).items()
        if looks_secret.search(variable) and not re.search(r"\$\{\w+:\?", str(value)) and not str(value).startswith("/")
    }
    assert not literal
    said = json.dumps([service["command"] for service in read_services(variables, {"store", "gpu"}).values()])
    assert not any(variables[name] in said for name in secret_names()), "a command line can be read by others"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]) -> Iterator[Services]:
    """Each service's own command on this machine, all together, each found healthy by its own check."""
    if sys.platform != "linux":
        pytest.skip("processes are told by /proc")
    replicas = {"spark-worker": 1, "airflow-worker": 1}
    with Services(tmp_path_factory.mktemp("services"), variables, replicas=replicas) as services:
        services.up(timeout_s=400)
        yield services


def test_all_are_healthy_and_run_as_the_file_says(services: Services) -> None:
    titles = {service.title for service in services.services}
    assert {"airflow-scheduler-1", "airflow-worker-1", "spark-worker-1", "mlflow-1", "assistant-1", "store-1"} <= titles
    health = get_json(f"http://{services.address('airflow-api-server', 8080)}/api/v2/monitor/health")
    assert {part["status"] for part in health.values()} == {"healthy"}, health


def test_airflow_knows_its_administrator_its_pools_and_its_dags(services: Services, variables: dict[str, str]) -> None:
    url = f"http://{services.address('airflow-api-server', 8080)}"
    assert status_of(f"{url}/api/v2/pools") == 401
    assert status_of(f"{url}/auth/token", {"username": "admin", "password": "admin"}) == 401
    login = {"username": "admin", "password": variables["PINLAKE_ADMIN_PASSWORD"]}
    token = get_json(f"{url}/auth/token", login)["access_token"]
    pools = get_json(f"{url}/api/v2/pools", headers={"Authorization": f"Bearer {token}"})["pools"]
    wanted = json.loads((REPO / "dags" / "pools.json").read_text())
    assert {name: pool["slots"] for name, pool in wanted.items()}.items() <= {
        pool["name"]: pool["slots"] for pool in pools
    }.items()
    dags = get_json(f"{url}/api/v2/dags", headers={"Authorization": f"Bearer {token}"})["dags"]
    assert {"nightly_pins", "index_release", "taste_profiles"} <= {dag["dag_id"] for dag in dags}


def test_nobody_is_let_in_without_a_secret(services: Services, variables: dict[str, str]) -> None:
    host, port = services.address("postgres", 5432).split(":")
    for role, password, database in (
        ("postgres", "postgres", "postgres"),
        ("airflow", "airflow", "airflow"),
        ("mlflow", variables["MLFLOW_DB_PASSWORD"], "airflow"),
        ("celery", variables["CELERY_DB_PASSWORD"], "airflow"),
    ):
        with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|permission denied"):
            psycopg.connect(f"host={host} port={port} user={role} password={password} dbname={database} connect_timeout=10")
    redis = ["redis-cli", "-h", host, "-p", services.address("redis", 6379).split(":")[1], "ping"]
    assert "NOAUTH" in services.run("redis", "env", "-u", "REDISCLI_AUTH", *redis).stdout
    assert status_of(f"http://{services.address('store', 9000)}/pinlake") == 403
    mlflow = f"http://{services.address('mlflow', 5000)}/api/2.0/mlflow/experiments/search?max_results=5"
    assert status_of(mlflow) == 401
    key = b64encode(f"admin:{variables['MLFLOW_ADMIN_PASSWORD']}".encode()).decode()
    assert get_json(mlflow, headers={"Authorization": f"Basic {key}"})["experiments"]
    assert status_of(f"http://{services.address('assistant', 8100)}/search?text=bicycle") == 401


def test_a_program_runs_on_the_worker_that_it_shares_a_secret_with(services: Services, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from jobs.session import spark_session\n"
        "spark = spark_session('test')\n"
        "print('secret', spark.conf.get('spark.authenticate'), spark.range(100).groupBy().sum().collect()[0][0])\n"
    )
    # The properties that Airflow's tasks give their programs, on a smaller machine.
    conf = json.loads(services.environment(services.named("airflow-worker")[0])["PINLAKE_SPARK_CONF"])
    conf |= {"spark.executor.memory": "512m", "spark.driver.memory": "512m"}
    done = services.run(
        "spark-worker",
        "spark-submit",
        "--master",
        f"spark://{services.address('spark-master', 7077)}",
        *(part for item in conf.items() for part in ("--conf", "=".join(item))),
        str(program),
    )
    assert "secret true 4950" in done.stdout, done.stderr[-3000:]


def request(url: str, form: dict[str, str] | None = None, headers: dict[str, str] | None = None) -> urllib.request.Request:
    data = json.dumps(form).encode() if form is not None else None
    return urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})


def get_json(url: str, form: dict[str, str] | None = None, headers: dict[str, str] | None = None) -> Any:
    with urllib.request.urlopen(request(url, form, headers), timeout=30) as answer:
        return json.load(answer)


def status_of(url: str, form: dict[str, str] | None = None) -> int:
    try:
        with urllib.request.urlopen(request(url, form), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
