"""A local Airflow for a laptop: real scheduler, DAG processor and API server, on SQLite, reachable from this machine only.

    python -m demo.airflow up        # from nothing to healthy in about 15 s
    python -m demo.airflow status
    python -m demo.airflow run -- airflow backfill create --dag-id nightly_pins \\
        --from-date 2026-11-01 --to-date 2026-11-03T23:59
    python -m demo.airflow down

Everything it writes is under $PINLAKE_HOME/airflow: airflow.cfg and passwords.json (mode 0600; secrets are made once, at
random), the database, logs/ and stack.json, which says what runs. What it is not: a deployment. There is one machine, one
user, no TLS, and Spark runs in the scheduler's machine (`local[*]`).

Imports no airflow: the processes are started as anyone would start them, and talked to over the REST API.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import httpx

from demo.airflow_api import AirflowApi, AirflowError
from demo.processes import living_tree, process_table

REPO = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
USER = "admin"
DAG_IDS = ("nightly_pins", "index_release", "taste_profiles")

COMPONENTS: dict[str, tuple[str, ...]] = {
    "api-server": (),
    "dag-processor": (),
    # Logs are read from disk: without its log server the scheduler opens no port.
    "scheduler": ("--skip-serve-logs",),
}
"""The processes of the stack and their arguments. No triggerer: no task defers."""

SETTINGS: dict[str, dict[str, str]] = {
    "core": {
        "executor": "LocalExecutor",
        # Worker processes, forked at start: two Spark tasks (the pool has two slots), a few short waits beside them.
        "parallelism": "4",
        "load_examples": "False",
        "dags_are_paused_at_creation": "True",
        "simple_auth_manager_users": f"{USER}:admin",
    },
    "scheduler": {
        # Seconds between two looks for work. The defaults (1 and 5) suit a database shared by many.
        "scheduler_idle_sleep_time": "0.5",
        "job_heartbeat_sec": "2",
        "scheduler_heartbeat_sec": "1",
        # Seconds until a task that was running when the stack was stopped is tried again after the next start.
        "task_instance_heartbeat_timeout": "120",
        # And how often a scheduler looks for tasks of one that died; the default of 300 is a long wait for a person.
        "orphaned_tasks_check_interval": "60",
    },
    "dag_processor": {"parsing_processes": "1", "min_file_process_interval": "60", "print_stats_interval": "0"},
    "workers": {"min_heartbeat_interval": "2"},
    "usage_data_collection": {"enabled": "False"},
}


_CLASS_ARCHIVE = Path(sys.prefix) / "spark.jsa"
JAVA_OPTIONS = " ".join(
    ["-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"]
    # Made by tools/setup_env.sh: spares each program five seconds of loading classes. Spark splits options at spaces.
    + (
        [f"-XX:SharedArchiveFile={_CLASS_ARCHIVE}", "-Xlog:cds=off"]
        if " " not in str(_CLASS_ARCHIVE) and _CLASS_ARCHIVE.is_file()
        else []
    )
)
LAPTOP_SPARK_CONF = {
    # A night on a laptop is many short programs, which end before the JVM's optimising compiler pays off: without it, one
    # that does nothing took 12 s of CPU rather than 29.
    "spark.driver.extraJavaOptions": JAVA_OPTIONS,
    "spark.ui.enabled": "false",  # it would listen on every network interface
    "spark.sql.shuffle.partitions": "4",  # for thousands of rows, not the billions that the default has in mind
    # Generated code and replanning pay off over millions of rows; here they are a quarter of a program's time.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.adaptive.enabled": "false",
    "spark.driver.memory": "2g",
    "spark.log.level": "WARN",
}
"""Spark properties for programs that run in this machine's `local[...]`; PINLAKE_SPARK_CONF replaces them."""


@dataclass(frozen=True)
class Process:
    """A process, told from a later one of the same number by the moment it started (in the kernel's own unit)."""

    name: str
    pid: int
    started: str


class LocalAirflow:
    """Airflow's processes for one PINLAKE_HOME: start, wait until healthy, stop. A context manager does all three.

    `port` is a wish: if it is taken, a free one is used. `spark_master` is where Spark programs run. `env` is added to the
    environment of every process and so of every Spark program. `retry_delay_s` is the wait before a failed task's first
    retry. Stopping works from another process than the one that started.
    """

    def __init__(
        self,
        home: Path,
        *,
        port: int = 8080,
        spark_master: str = "local[*]",
        retry_delay_s: float = 10,
        env: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.home = home.expanduser().resolve()
        self.airflow_home = self.home / "airflow"
        self.logs = self.airflow_home / "logs"
        self.password_file = self.airflow_home / "passwords.json"
        self._config_file = self.airflow_home / "airflow.cfg"
        self._stack_file = self.airflow_home / "stack.json"
        self._wanted_port = port
        self._spark_master = spark_master
        self._retry_delay_s = retry_delay_s
        self._extra_env = dict(env or {})
        self._sleep = sleep
        self._children: list[subprocess.Popen[bytes]] = []
        self._api: AirflowApi | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the web page and the REST API of the running stack are."""
        return f"http://{HOST}:{self._recorded()['port']}"

    @property
    def api(self) -> AirflowApi:
        """The REST API of the running stack."""
        if self._api is None:
            password = json.loads(self.password_file.read_text())[USER]
            self._api = AirflowApi(self.url, USER, password, sleep=self._sleep)
        return self._api

    def start(self) -> None:
        """Starts the processes and returns at once; `wait_healthy` waits for them.

        Raises AirflowError when they run already.
        """
        with self._locked():
            if running := self._running():
                names = ", ".join(f"{process.name} ({process.pid})" for process in running)
                raise AirflowError(f"Airflow is running already, at {self.url}: {names}. `down` stops it.")
            port = _free_port(self._wanted_port)
            self._write_config(port)
            try:
                self._launch(port)
            except BaseException:
                self._stop_processes()
                raise

    def wait_healthy(self, timeout_s: float = 120, on_progress: Callable[[str], None] = lambda _waiting_for: None) -> None:
        """Waits until every component is up and the DAGs can be triggered; makes the pools of dags/pools.json.

        `on_progress` is told what is being waited for, each time that changes. Raises AirflowError with the end of the
        log when a component dies, a DAG file cannot be read, or time is up.
        """
        deadline = time.monotonic() + timeout_s
        reported = ""
        while waiting_for := self._not_ready():
            if waiting_for != reported:
                reported = waiting_for
                on_progress(waiting_for)
            self._raise_if_dead()
            if time.monotonic() > deadline:
                raise AirflowError(f"Airflow is not healthy after {timeout_s:.0f} s: {waiting_for}. Logs: {self.logs}")
            self._sleep(0.25)
        for name, pool in json.loads((REPO / "dags" / "pools.json").read_text()).items():
            self.api.ensure_pool(name, **pool)

    def stop(self) -> None:
        """Ends every process of the stack with all their descendants: task runners and Spark's JVMs too.

        Does nothing when none runs.
        """
        if not self.airflow_home.exists():
            return
        with self._locked():
            self._stop_processes()
        if self._api is not None:
            self._api.close()
            self._api = None

    def is_running(self) -> bool:
        """Whether any process of the stack is alive."""
        return bool(self._running())

    def processes(self) -> dict[str, bool]:
        """The components that were started, and whether each is still alive."""
        alive = {process.name for process in self._running()}
        return {process.name: process.name in alive for process in self._recorded_processes()}

    def environment(self) -> dict[str, str]:
        """The environment in which the stack's processes, and `airflow` commands about it, run."""
        # A shell that was set up for another Airflow must not leak into this one.
        inherited = {key: value for key, value in os.environ.items() if not re.match(r"AIRFLOW_(?!CONN_)", key)}
        bin_folder = str(Path(sys.executable).parent)
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).date()
        spark = {"conn_type": "spark", "host": self._spark_master, "extra": {"deploy-mode": "client"}}
        defaults = {
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps(spark),
            "PINLAKE_RETRY_DELAY_S": str(self._retry_delay_s),
            # A laptop has exports for the days that it was given, not for last night.
            "PINLAKE_FIRST_NIGHT": f"{tomorrow}T00:00:00+00:00",
            "PYSPARK_PYTHON": sys.executable,
        }
        if self._spark_master.startswith("local"):
            defaults |= {"PINLAKE_SPARK_CONF": json.dumps(LAPTOP_SPARK_CONF), "SPARK_LOCAL_IP": HOST}
        return {
            **defaults,
            **inherited,
            **self._extra_env,
            "AIRFLOW_HOME": str(self.airflow_home),
            "PINLAKE_HOME": str(self.home),
            "PATH": os.pathsep.join([bin_folder, inherited.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), inherited.get("PYTHONPATH")])),
        }

    def run_command(self, *command: str) -> int:
        """Runs a command (`airflow`, `backfill`, `create`, ...) in the stack's environment; returns its exit status."""
        if not self._config_file.exists():
            raise AirflowError(f"no Airflow has been set up in {self.airflow_home}; `up` does that")
        program = [sys.executable, "-m", "airflow"] if command[0] == "airflow" else [command[0]]
        return subprocess.run([*program, *command[1:]], env=self.environment(), check=False).returncode

    # Starting

    def _launch(self, port: int) -> None:
        environment = self.environment()
        started: list[Process] = []
        # The API server spends seconds on its imports before it touches the database: they overlap with making it.
        started.append(self._spawn("api-server", environment))
        self._record(port, started)
        self._migrate(environment)
        for name in COMPONENTS:
            if name != "api-server":
                started.append(self._spawn(name, environment))
                self._record(port, started)

    def _spawn(self, name: str, environment: Mapping[str, str]) -> Process:
        with (self.logs / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "airflow", name, *COMPONENTS[name]],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.airflow_home,
                # A session of its own: Ctrl-C in the terminal does not reach it, and its descendants can be told by it.
                start_new_session=True,
            )
        self._children.append(child)
        row = process_table().get(child.pid)
        return Process(name, child.pid, row.started if row else "")

    def _migrate(self, environment: Mapping[str, str]) -> None:
        """Brings the database to this Airflow's schema, unless a start of this version has done so."""
        done = self.airflow_home / f"database-{importlib.metadata.version('apache-airflow-core')}"
        if done.exists():
            return
        log_file = self.logs / "db-migrate.log"
        with log_file.open("wb") as log:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            result = subprocess.run(command, env=dict(environment), stdout=log, stderr=subprocess.STDOUT, check=False)
        if result.returncode:
            raise AirflowError(f"`airflow db migrate` failed; the end of {log_file}:\n{_tail(log_file)}")
        done.touch()

    def _write_config(self, port: int) -> None:
        self.airflow_home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        if not self.password_file.exists():
            _write_private(self.password_file, json.dumps({USER: secrets.token_urlsafe(18)}) + "\n")
        config = configparser.ConfigParser(interpolation=None)
        config.read(self._config_file)
        for section, settings in _merged(self._secrets(config), SETTINGS, self._places(port)).items():
            config[section] = {key: value.replace("%", "%%") for key, value in settings.items()}
        with contextlib.closing(_open_private(self._config_file)) as file:
            file.write("# Written at each start by demo/airflow.py; only the secrets are kept.\n")
            config.write(file)

    def _secrets(self, config: configparser.ConfigParser) -> dict[str, dict[str, str]]:
        """The secrets of an earlier start, or new ones."""
        fresh = {
            ("core", "fernet_key"): urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            ("api", "secret_key"): secrets.token_urlsafe(32),
            ("api_auth", "jwt_secret"): secrets.token_urlsafe(64),
        }
        kept: dict[str, dict[str, str]] = {}
        for (section, key), value in fresh.items():
            kept.setdefault(section, {})[key] = config.get(section, key, fallback=value)
        return kept

    def _places(self, port: int) -> dict[str, dict[str, str]]:
        """The settings that depend on where this stack lives."""
        url = f"http://{HOST}:{port}"
        return {
            "core": {
                "dags_folder": str(REPO / "dags"),
                "plugins_folder": str(self.airflow_home / "plugins"),
                "simple_auth_manager_passwords_file": str(self.password_file),
                "execution_api_server_url": f"{url}/execution/",
            },
            "database": {
                "sql_alchemy_conn": f"sqlite:///{self.airflow_home / 'airflow.db'}",
                # `_launch` migrates, while the API server is still at its imports.
                "check_migrations": "False",
            },
            "api": {"host": HOST, "port": str(port), "base_url": url, "workers": "1"},
            "logging": {
                "base_log_folder": str(self.logs),
                "dag_processor_child_process_log_directory": str(self.logs / "dag_processor"),
            },
        }

    # Waiting

    def _not_ready(self) -> str:
        """What is still missing, in words; empty when all is there."""
        try:
            health = self.api.health()
        except (httpx.HTTPError, ValueError):
            return "the API server"
        for component in ("metadatabase", "scheduler", "dag_processor"):
            if health.get(component) != "healthy":
                return f"the {component.replace('_', ' ')}"
        if missing := set(DAG_IDS) - self.api.dag_ids():
            if errors := self.api.import_errors():
                raise AirflowError("a DAG file cannot be read:\n" + "\n".join(errors))
            return f"the DAG{'s' if len(missing) > 1 else ''} {' and '.join(sorted(missing))}"
        return ""

    def _raise_if_dead(self) -> None:
        for name, alive in self.processes().items():
            if not alive:
                log = self.logs / f"{name}.log"
                raise AirflowError(f"Airflow's {name} has died; the end of {log}:\n{_tail(log)}")

    # Stopping

    def _stop_processes(self, patience_s: float = 8) -> None:
        """SIGTERM to the whole tree at once, then SIGKILL to what is left of it after `patience_s`."""
        asked: set[int] = set()
        deadline = time.monotonic() + patience_s
        while tree := self._tree():
            overdue = time.monotonic() > deadline
            for pid in tree if overdue else tree - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if overdue else signal.SIGTERM)
            asked |= tree
            for child in self._children:
                child.poll()  # reaps it, where this process started it
            self._sleep(0.1)
        for child in self._children:
            child.wait()
        self._children.clear()
        self._stack_file.unlink(missing_ok=True)

    def _tree(self) -> set[int]:
        """The stack's living processes and their descendants, also those whose parents have died."""
        table = process_table()
        roots = {process.pid: process for process in self._recorded_processes()}
        # A number that now belongs to a later process is not ours, nor is its session.
        reused = {pid for pid, process in roots.items() if pid in table and table[pid].started != process.started}
        sessions = set(roots) - reused
        return living_tree(sessions, table)

    # What runs, on disk

    def _record(self, port: int, processes: list[Process]) -> None:
        record = {"port": port, "boot": _boot_id(), "processes": [asdict(process) for process in processes]}
        temporary = self._stack_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.replace(self._stack_file)

    def _recorded(self) -> dict[str, Any]:
        try:
            record = dict(json.loads(self._stack_file.read_text()))
        except FileNotFoundError:
            raise AirflowError(f"no Airflow is running for {self.home}; `up` starts one") from None
        return record

    def _recorded_processes(self) -> list[Process]:
        if not self._stack_file.exists():
            return []
        record = self._recorded()
        # After a reboot the numbers mean other processes.
        return [Process(**process) for process in record["processes"]] if record["boot"] == _boot_id() else []

    def _running(self) -> list[Process]:
        for child in self._children:
            child.poll()
        table = process_table()
        return [
            process
            for process in self._recorded_processes()
            if (row := table.get(process.pid)) and row.started == process.started and not row.is_zombie
        ]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a second `up` or `down` waiting until this one is through."""
        self.airflow_home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.airflow_home / "stack.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _free_port(wanted: int) -> int:
    """`wanted`, or another port if that one is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that only lingers is free
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise AirflowError(f"no port is free on {HOST}")


def _open_private(path: Path) -> TextIO:
    """Opens a file for writing that only its owner may read, from its first byte."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")


def _write_private(path: Path, text: str) -> None:
    with _open_private(path) as file:
        file.write(text)


def _merged(*layers: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    merged: dict[str, dict[str, str]] = {}
    for layer in layers:
        for section, settings in layer.items():
            merged.setdefault(section, {}).update(settings)
    return merged


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def up(stack: LocalAirflow) -> None:
    """Starts the stack and tells where it is."""
    began = time.monotonic()
    stack.start()
    try:
        stack.wait_healthy(on_progress=lambda waiting_for: print(f"waiting for {waiting_for}", flush=True))
    except BaseException:
        stack.stop()
        raise
    print(f"Airflow is up after {time.monotonic() - began:.0f} s: {stack.url}")
    print(f"Log in as {USER}; the password is in {stack.password_file}")
    print(f"Logs: {stack.logs}")


def status(stack: LocalAirflow) -> int:
    """Prints what runs; the exit status is 0 when all does."""
    if not stack.is_running():
        print(f"no Airflow is running for {stack.home}")
        return 1
    print(f"{stack.url} (user {USER}, password in {stack.password_file})")
    processes = stack.processes()
    for name, alive in processes.items():
        print(f"{name}: {'running' if alive else 'dead, see ' + str(stack.logs / (name + '.log'))}")
    return 0 if all(processes.values()) else 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line: up, down, status, or run -- COMMAND."""
    parser = argparse.ArgumentParser(prog="python -m demo.airflow", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("PINLAKE_HOME") or ".pinlake"), help="PINLAKE_HOME")
    parser.add_argument("--port", type=int, default=8080, help="port of the API server; another one if it is taken")
    parser.add_argument("--spark-master", default="local[*]", help="where Spark programs run (default: this machine)")
    actions = parser.add_subparsers(dest="action", required=True)
    for action, about in {"up": "start", "down": "stop", "status": "say what runs"}.items():
        actions.add_parser(action, help=about)
    run = actions.add_parser("run", help="run a command in the stack's environment")
    run.add_argument("command", nargs="+", help="for example: -- airflow dags list")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Does what the command line asks; returns the exit status."""
    args = parse_args(argv)
    stack = LocalAirflow(args.home, port=args.port, spark_master=args.spark_master)
    try:
        if args.action == "run":
            return stack.run_command(*args.command)
        if args.action == "status":
            return status(stack)
        if args.action == "down":
            stack.stop()
        else:
            up(stack)
    except AirflowError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
