"""The cluster of `make cluster-test`: docker-compose.yml's services as processes, with invented GPUs, and what gets killed.

Secrets are made at random for each run, as `make compose-env` makes them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from demo.airflow import JAVA_OPTIONS, LAPTOP_SPARK_CONF
from demo.airflow_api import AirflowApi
from demo.compose import LOCAL, REPO, Service
from demo.services import Services

BUCKET = "s3://pinlake"
GPUS = """#!/bin/sh
# In nvidia-smi's place, of which tools/images/discover_gpus.sh asks the addresses.
echo 0
"""
AIRFLOW = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "airflow-worker")
SPARK = ("spark-master", "spark-worker-gpu")
SETTINGS = {
    "SPARK_WORKER_CORES": "1",
    "SPARK_WORKER_MEMORY": "2g",
    "SPARK_WORKER_GPUS": "1",
    "SPARK_EXECUTOR_GPUS": "1",
    "SPARK_EXECUTOR_MEMORY": "1g",
    "AIRFLOW_TASK_HEARTBEAT_TIMEOUT_S": "30",
    "PINLAKE_RETRY_DELAY_S": "5",
    "PINLAKE_MIGRATION_SLICES": "2",
}
"""What .env would say besides the secrets."""


class ClusterFailedError(Exception):
    """Something of the cluster did not do what it should; the message holds what it said."""


class ClusterServices(Services):
    """The services, made small enough for a machine of two cores, with a GPU a worker that is a CPU."""

    def environment(self, service: Service) -> dict[str, str]:
        """As the file has it, and what this machine needs."""
        environment = super().environment(service)
        if service.name == "spark-worker-gpu":
            environment["PATH"] = f"{self.folder / 'gpus'}:{environment['PATH']}"
            environment["PINLAKE_GPU_DEVICE"] = "cpu"
        if service.name == "store":
            environment["PINLAKE_STORE_LOG"] = str(self.folder / "store-writes.jsonl")
        if conf := environment.get("PINLAKE_SPARK_CONF"):
            small = {**LAPTOP_SPARK_CONF, **json.loads(conf), "spark.driver.memory": "1g"}
            environment["PINLAKE_SPARK_CONF"] = json.dumps({**small, "spark.executor.extraJavaOptions": JAVA_OPTIONS})
        return environment


class Cluster:
    """Starts, kills and ends the services, and knows what they share. `say` is told what is done."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        folder.mkdir(parents=True)
        made = folder / "env"
        subprocess.run(
            [sys.executable, str(REPO / "tools" / "make_env.py"), "--file", str(made)], check=True, capture_output=True
        )
        lines = (line.partition("=")[::2] for line in made.read_text().splitlines() if "=" in line and line[0] != "#")
        self._variables = dict(lines)
        made.unlink()
        nvidia = folder / "gpus" / "nvidia-smi"
        nvidia.parent.mkdir()
        nvidia.write_text(GPUS)
        nvidia.chmod(0o755)
        self.services = ClusterServices(
            folder,
            {**self._variables, **SETTINGS},
            profiles={"store", "gpu"},
            replicas={"spark-worker": 0, "spark-worker-gpu": 2},
        )
        self.home, self.exports = f"{BUCKET}/lake", f"{BUCKET}/exports"
        self.killed: list[str] = []

    @property
    def secrets(self) -> dict[str, str]:
        """What no log may hold."""
        return {name: value for name, value in self._variables.items() if name.isupper() and len(value) >= 16}

    @property
    def logs(self) -> list[Path]:
        """Folders of all that the processes write for people: their output, tasks' logs, executors' logs."""
        executors = [service.places["/var/lib/spark"] for service in self.services.named("spark-worker-gpu")]
        return [self.folder / "logs", self.folder / "volumes" / "airflow-logs", *executors]

    @property
    def store_writes(self) -> Path:
        """The store's record of writes."""
        return self.folder / "store-writes.jsonl"

    @property
    def api(self) -> AirflowApi:
        """Airflow's REST API, as its administrator."""
        address = self.services.address("airflow-api-server", 8080)
        return AirflowApi(f"http://{address}", "admin", self._variables["PINLAKE_ADMIN_PASSWORD"])

    def store_environment(self) -> dict[str, str]:
        """The store's key and address, for this process alone: no service has them but those that the file gives them to."""
        return {
            "AWS_ACCESS_KEY_ID": self._variables["PINLAKE_STORE_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": self._variables["PINLAKE_STORE_SECRET_KEY"],
            "AWS_ENDPOINT_URL": f"http://{self.services.address('store', 9000)}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def airflow(self, *command: str) -> str:
        """Runs Airflow's command beside its scheduler; returns what it printed."""
        done = self.services.run("airflow-scheduler", "airflow", *command, timeout_s=300)
        if done.returncode:
            raise ClusterFailedError(f"airflow {' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    # Kills. Each says whether the moment had come; what is killed is started again, as its restart policy would.

    def kill_store(self) -> bool:
        """The store, once the land program has begun to write; it stays away for some seconds."""
        if '"/pinlake/lake/tables/' not in self._written():
            return False
        self.services.kill("store")
        self._say("  killed: the store")
        time.sleep(5)
        self.services.up("store")
        self.killed.append("store")
        return True

    def kill_spark_worker(self) -> bool:
        """A Spark worker and its executor, once that executor encodes."""
        for service in self.services.named("spark-worker-gpu"):
            if any("encodes on" in log.read_text(errors="replace") for log in service.places["/var/lib/spark"].rglob("stderr")):
                self.services.kill(service.title)
                self._say(f"  killed: {service.title} with its executor, which was encoding")
                self.services.start(service)
                self.killed.append(service.title)
                return True
        return False

    def kill_celery_worker(self, program: str) -> bool:
        """The Celery worker whose task runs a program, with the program's driver."""
        for service in self.services.named("airflow-worker"):
            if any(program in command for command in map(_command, self.services.pids(service.title))):
                self.services.kill(service.title)
                self._say(f"  killed: {service.title} with the driver of {program}")
                self.services.start(service)
                self.killed.append(service.title)
                return True
        return False

    def _written(self) -> str:
        return self.store_writes.read_text() if self.store_writes.exists() else ""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def program_environment(inherited: dict[str, str]) -> dict[str, str]:
    """What Spark needs to run this Python and this repository in one process of this machine."""
    return inherited | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": LOCAL,
        "PYTHONPATH": str(REPO),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PINLAKE_IMAGE_SCHEMES": "https,s3",
    }


def until(deadline_s: float, every_s: float = 0.5) -> Iterator[None]:
    """Turns of a loop until the time is up."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        yield
        time.sleep(every_s)
