"""`python -m assistant`: it says where it is, serves, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx
import pytest

from assistant.__main__ import main
from assistant.service.settings import TOKEN_VARIABLE
from embedding.tables.lake import Lake
from tests.assistant.serving import until


def test_the_command_serves_until_it_is_told_to_end(lake_with_interests: Lake) -> None:
    # A brain behind an endpoint that is asked nothing: the command is what is tried here.
    endpoint = {"PINLAKE_CONTEXT_URL": "http://127.0.0.1:9/v1", "PINLAKE_CONTEXT_MODEL": "none"}
    command = [sys.executable, "-m", "assistant", "--home", lake_with_interests.home, "--port", "0", "--brain", "context"]
    with subprocess.Popen(
        command, env=os.environ | endpoint, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().strip()
        until(lambda: httpx.get(f"{address}/health/ready").status_code == 200)
        assert httpx.get(address).text.startswith("<!doctype html>")
        turn = httpx.post(f"{address}/chat", json={"messages": [{"role": "user", "text": "a flag"}]}, timeout=60)
        assert "event: error" in turn.text and "Traceback" not in turn.text
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert "this machine alone is answered" in said


def test_an_address_for_others_wants_a_token(
    lake_with_interests: Lake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["--home", lake_with_interests.home, "--host", "0.0.0.0"]) == 2
    assert "set PINLAKE_ASSISTANT_TOKEN" in capsys.readouterr().err
