"""The services of docker-compose.yml as processes of this machine, without containers: started, awaited, killed, ended.

    with Services(folder, variables, profiles={"store"}, replicas={"spark-worker": 1}) as services:
        services.up()                       # everything, each after what it depends on; returns when all are healthy
        services.kill("spark-worker")       # SIGKILL, to it and its descendants
        services.up("spark-worker")

What runs is the file's own command in the file's own environment (demo/compose.py), and healthy is what the file's own health
check says. Postgres and Redis are Debian's (demo/debian_programs.py); MLflow's server gets an environment from its lock on its
first use. For tests: nothing holds the processes apart but their ports and folders, and nothing bounds what they take.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.compose import LOCAL, REPO, Service, here, read_services
from demo.debian_programs import Programs, find_programs, for_everybody
from demo.processes import living_tree, process_table

MLFLOW_LOCK = REPO / "tools" / "images" / "mlflow.lock"
INHERITED = ("JAVA_HOME", "LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS")
"""Of this process's environment; everything else is the file's."""


class ServicesError(Exception):
    """A service that died, or was not healthy in time; the message has the end of its log."""


class Services:
    """Every service of the file (of some `profiles`), below one folder.

    `variables` are what `.env` would hold; `environment` is added to each process's. Logs are `folder/logs/<service>-<n>.log`.
    Leaving the `with` block ends all that was started, with all descendants.
    """

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str],
        *,
        profiles: Collection[str] = ("store",),
        replicas: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder = folder.resolve()
        self._environment = dict(environment or {})
        self._sleep = sleep
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._healthy: set[str] = set()
        self._scratch: list[Path] = []
        self.services = [self._moved(one) for one in here(read_services(variables, profiles), self.folder, replicas)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        for folder in self._scratch:
            shutil.rmtree(folder, ignore_errors=True)

    # Asking

    def named(self, *names: str) -> list[Service]:
        """The replicas of services, or a replica by its title (`spark-worker-2`); of no names: all. Raises ServicesError."""
        found = [service for service in self.services if not names or {service.name, service.title} & set(names)]
        if unknown := set(names) - {known for service in found for known in (service.name, service.title)}:
            raise ServicesError(f"no such service: {', '.join(sorted(unknown))}")
        return found

    def address(self, name: str, port: int) -> str:
        """Where a service's port of the container is on this machine: `127.0.0.1:41235`."""
        return f"{LOCAL}:{self.named(name)[0].ports[port]}"

    def running(self) -> set[str]:
        """The titles of all that was started and not ended."""
        return set(self._running)

    def pids(self, name: str) -> set[int]:
        """A service's living processes, descendants too."""
        return living_tree(
            {self._running[one.title].pid for one in self.named(name) if one.title in self._running}, process_table()
        )

    def log(self, service: Service) -> Path:
        """Where a replica's output goes."""
        return self.folder / "logs" / f"{service.title}.log"

    def environment(self, service: Service) -> dict[str, str]:
        """All of a process's environment."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        if service.target:
            bin_folder = self._mlflow if service.target == "mlflow" else Path(sys.executable).parent
            path = {"PATH": os.pathsep.join([str(bin_folder), os.environ.get("PATH", os.defpath)])}
        else:
            path = self._programs.environment()
        # In a container Spark takes the container's own address; here it must not take this machine's.
        ours = {
            "SPARK_LOCAL_IP": LOCAL,
            "SPARK_LOCAL_HOSTNAME": LOCAL,
            "PYTHONPATH": str(REPO),
            "PYSPARK_PYTHON": sys.executable,
        }
        return {**inherited, **path, **ours, **service.environment, **self._environment}

    def run(self, name: str, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command in a service's place, as `docker compose exec` would run it; its output as text."""
        service = self.named(name)[0]
        return subprocess.run(
            command,
            env=self.environment(service),
            cwd=service.folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            **self._user(service),
        )

    # Starting and ending

    def up(self, *names: str, timeout_s: float = 240) -> None:
        """Starts services that do not run, each once what it depends on is healthy or has ended well, and waits for all.

        What they depend on is started too. Raises ServicesError.
        """
        wanted = self._with_needed(self.named(*names))
        deadline = time.monotonic() + timeout_s
        while waiting := [service for service in wanted if service.title not in self._healthy]:
            for service in waiting:
                if service.title not in self._running and self._may_start(service):
                    self.start(service)
                if self._is_healthy(service):
                    self._healthy.add(service.title)
            if time.monotonic() > deadline:
                late = [service.title for service in waiting if service.title not in self._healthy]
                tails = "\n".join(_tail(self.log(self.named(title)[0]), 8) for title in late)
                raise ServicesError(f"not healthy after {timeout_s:.0f} s: {', '.join(late)}\n{tails}")
            self._sleep(0.25)

    def start(self, service: Service) -> None:
        """Starts one at once, whatever it depends on."""
        for folder in {service.folder, *(place for place in service.places.values() if not place.is_file())}:
            folder.mkdir(parents=True, exist_ok=True)
            if (user := self._user(service)) and folder != REPO:
                os.chown(folder, user["user"], user["group"])
        fresh = service.name == "postgres" and not (Path(service.environment["PGDATA"]) / "PG_VERSION").is_file()
        if fresh:
            self._make_databases(service)
        log = self.log(service)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self._running[service.title] = subprocess.Popen(
                service.argv,
                env=self.environment(service),
                cwd=service.folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # A session of its own, by which its descendants can be told.
                start_new_session=True,
                **self._user(service),
            )
        if fresh:
            self._run_scripts(service)

    def kill(self, name: str) -> None:
        """SIGKILL to a service's processes, all at once."""
        self._end(self.named(name), signal.SIGKILL, 0)

    def stop(self, *names: str, patience_s: float = 15) -> None:
        """SIGTERM to services' processes, and SIGKILL to what is left of them after a while; those others need go last."""
        later = {"postgres", "redis", "store"}
        chosen = [service for service in self.named(*names) if service.title in self._running]
        self._end([service for service in chosen if service.name not in later], signal.SIGTERM, patience_s)
        self._end([service for service in chosen if service.name in later], signal.SIGTERM, patience_s)

    def _end(self, services: list[Service], first: signal.Signals, patience_s: float) -> None:
        processes = {service.title: self._running[service.title] for service in services if service.title in self._running}
        deadline = time.monotonic() + patience_s
        asked: set[int] = set()
        while tree := living_tree({process.pid for process in processes.values()}, process_table()):
            overdue = time.monotonic() > deadline
            for pid in tree if overdue else tree - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if overdue else first)
            asked |= tree
            for process in processes.values():
                process.poll()
            self._sleep(0.1)
        for title, process in processes.items():
            process.wait()
            del self._running[title]
            self._healthy.discard(title)

    # Waiting

    def _with_needed(self, services: list[Service]) -> list[Service]:
        names = {service.name for service in services}
        while more := {needed for service in self.services if service.name in names for needed in service.needs} - names:
            names |= more
            services = [*services, *(service for service in self.services if service.name in more)]
        return services

    def _may_start(self, service: Service) -> bool:
        return all(other.title in self._healthy for needed in service.needs for other in self.named(needed))

    def _is_healthy(self, service: Service) -> bool:
        process = self._running.get(service.title)
        if process is None:
            return False
        status = process.poll()
        if service.check is None:
            if status:
                raise ServicesError(f"{service.title} failed with exit status {status}\n{_tail(self.log(service))}")
            return status == 0
        if status is not None:
            raise ServicesError(f"{service.title} has ended with exit status {status}\n{_tail(self.log(service))}")
        return self.run(service.title, *service.check).returncode == 0

    # What containers bring along

    @cached_property
    def _programs(self) -> Programs:
        programs = find_programs()
        if os.geteuid() != 0:
            return programs
        scratch = Path(tempfile.mkdtemp(prefix="pinlake-programs-"))
        scratch.chmod(0o755)
        self._scratch.append(scratch)
        return for_everybody(programs, scratch)

    @cached_property
    def _mlflow(self) -> Path:
        return mlflow_environment()

    def _user(self, service: Service) -> dict[str, Any]:
        """Postgres refuses to run as root."""
        if service.name != "postgres" or os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def _moved(self, service: Service) -> Service:
        """Postgres' folders elsewhere: a socket's address has room for 107 characters, and root's folders let nobody in."""
        if service.name != "postgres":
            return service
        scratch = Path(tempfile.mkdtemp(prefix="pinlake-postgres-"))
        self._scratch.append(scratch)
        if user := self._user(service):
            os.chown(scratch, user["user"], user["group"])
        moved = {
            str(place): str(scratch / place.name) for place in service.places.values() if place.is_relative_to(self.folder)
        }

        def move(text: str) -> str:
            for old, new in moved.items():
                text = text.replace(old, new)
            return text

        return replace(
            service,
            argv=tuple(map(move, service.argv)),
            environment={name: move(value) for name, value in service.environment.items()},
            folder=scratch,
            places={path: Path(move(str(place))) for path, place in service.places.items()},
        )

    def _make_databases(self, service: Service) -> None:
        """What the image's own start does for an empty volume: a cluster of databases, and then its scripts."""
        words = service.environment
        password = service.folder / "password"
        password.write_text(words["POSTGRES_PASSWORD"])
        if user := self._user(service):
            os.chown(password, user["user"], user["group"])
        options = ["--username", "postgres", "--pwfile", str(password), *words["POSTGRES_INITDB_ARGS"].split()]
        made = self.run(service.title, "initdb", "--pgdata", words["PGDATA"], *options)
        password.unlink()
        if made.returncode:
            raise ServicesError(f"initdb failed: {made.stderr.strip()}")

    def _run_scripts(self, service: Service) -> None:
        scripts = sorted(place for path, place in service.places.items() if path.startswith("/docker-entrypoint-initdb.d/"))
        while not self._is_healthy(service):
            self._sleep(0.1)
        for script in scripts:
            done = subprocess.run(
                ["psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--host", LOCAL, "--username", "postgres"],
                env={**self.environment(service), "PGPASSWORD": service.environment["POSTGRES_PASSWORD"]},
                input=script.read_text(),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ServicesError(f"{script} failed: {done.stderr.strip()}")


def mlflow_environment(cache: Path = REPO / ".cache") -> Path:
    """The folder of the programs of MLflow's server, in an environment made from its lock where there is none yet."""
    made_from = hashlib.sha256(MLFLOW_LOCK.read_bytes()).hexdigest()[:12]
    folder = cache / f"mlflow-{made_from}-{sys.version_info.major}.{sys.version_info.minor}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".made"
        if not done.is_file():
            uv = str(Path(sys.executable).parent / "uv")
            sync = [
                "pip",
                "sync",
                "--quiet",
                "--require-hashes",
                "--compile-bytecode",
                "--python",
                str(folder / "bin" / "python"),
            ]
            for command in (["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], [*sync, str(MLFLOW_LOCK)]):
                subprocess.run([uv, *command], check=True)
            done.touch()
    return folder / "bin"


def _tail(path: Path, lines: int = 25) -> str:
    text = path.read_text(errors="replace") if path.is_file() else ""
    return f"the end of {path}:\n" + "\n".join(text.splitlines()[-lines:])
