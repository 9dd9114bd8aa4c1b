"""The local Airflow's housekeeping, without Airflow: files, ports, and ending every process but nobody else's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.airflow import COMPONENTS, LocalAirflow, _free_port, parse_args
from demo.processes import process_table

SLEEPER = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
)


@pytest.fixture
def stack(tmp_path: Path) -> LocalAirflow:
    """A stack whose home has a blank in its name."""
    return LocalAirflow(tmp_path / "pin lake", sleep=lambda seconds: time.sleep(min(seconds, 0.02)))


def _spawned(stack: LocalAirflow, program: str = SLEEPER) -> subprocess.Popen[bytes]:
    """A process in a session of its own, recorded as the stack's scheduler."""
    stack._write_config(port=8080)
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    started = process_table()[process.pid].started
    record = {"name": "scheduler", "pid": process.pid, "started": started}
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip() if boot.exists() else ""
    stack._stack_file.write_text(json.dumps({"port": 8080, "boot": boot_id, "processes": [record]}))
    return process


def _session(leader: int) -> set[int]:
    return {pid for pid, row in process_table().items() if row.session == leader and not row.is_zombie}


def _wait_for_child(leader: int) -> None:
    while len(_session(leader)) < 2:
        time.sleep(0.02)


def test_secrets_are_private_and_survive_a_restart(stack: LocalAirflow) -> None:
    stack._write_config(port=8080)
    files = [stack.airflow_home / "airflow.cfg", stack.password_file]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert stack.airflow_home.stat().st_mode & 0o777 == 0o700
    first = [file.read_text() for file in files]
    stack._write_config(port=8080)
    assert [file.read_text() for file in files] == first
    assert len(json.loads(first[1])["admin"]) >= 20


def test_two_stacks_share_no_secret(stack: LocalAirflow, tmp_path: Path) -> None:
    other = LocalAirflow(tmp_path / "other")
    for one in (stack, other):
        one._write_config(port=8080)
    assert stack.password_file.read_text() != other.password_file.read_text()


def test_a_shell_set_up_for_another_airflow_does_not_leak_in(stack: LocalAirflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", "/elsewhere")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://cluster:7077")
    environment = stack.environment()
    assert "AIRFLOW__CORE__DAGS_FOLDER" not in environment
    assert environment["AIRFLOW_HOME"] == str(stack.airflow_home)
    assert environment["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://cluster:7077", "where Spark runs may be overridden"


def test_a_taken_port_is_not_used() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _free_port(port) not in (0, port)
    assert _free_port(port) == port


def test_stop_ends_children_and_orphans(stack: LocalAirflow) -> None:
    parent = _spawned(stack)
    _wait_for_child(parent.pid)
    parent.kill()
    parent.wait()
    assert _session(parent.pid), "the child outlived its parent"
    stack.stop()
    assert not _session(parent.pid)
    assert not stack.is_running()


def test_stop_works_from_another_object_and_twice(stack: LocalAirflow) -> None:
    process = _spawned(stack)
    other = LocalAirflow(stack.home)
    assert other.is_running()
    assert other.processes() == {"scheduler": True}
    other.stop()
    other.stop()
    assert process.wait(timeout=5) != 0
    assert not _session(process.pid)


def test_a_process_that_ignores_sigterm_is_killed(stack: LocalAirflow) -> None:
    ready = stack.home / "ready"
    program = (
        f"import signal, time, pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    process = _spawned(stack, program)
    while not ready.exists():
        time.sleep(0.02)
    stack._stop_processes(patience_s=0.2)
    assert process.wait(timeout=5) == -9


def test_a_stale_record_touches_nobody(stack: LocalAirflow) -> None:
    stranger = _spawned(stack)
    record = json.loads(stack._stack_file.read_text())
    record["processes"][0]["started"] = "1"
    stack._stack_file.write_text(json.dumps(record))
    try:
        assert not stack.is_running()
        stack.stop()
        assert stranger.poll() is None
    finally:
        os.killpg(stranger.pid, 9)
        stranger.wait()


def test_the_command_line() -> None:
    args = parse_args(["--home", "x", "run", "--", "airflow", "backfill", "create", "--dag-id", "nightly_pins"])
    assert args.command == ["airflow", "backfill", "create", "--dag-id", "nightly_pins"]
    assert set(COMPONENTS) == {"api-server", "dag-processor", "scheduler"}
