"""What is committed: whole locks, no secret, no registry's host, and no code that runs what a file says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import audit

REPO = Path(__file__).resolve().parents[2]
ROOMS = ("assistant", "dags", "demo", "embedding", "jobs", "tools")

SECRETS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of GitHub or GitLab": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60}|glpat-[\w-]{20})",
    "a token of Slack": r"\bxox[abprs]-[\w-]{10}",
    "a key of an endpoint of OpenAI's kind": r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32}",
    "a key of Google": r"\bAIza[\w-]{35}",
    "a token of a registry": r"\b(?:pypi-AgE|npm_[A-Za-z0-9]{36}|_authToken\s*=)",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a registry's host": r"files\.pythonhosted\.org|//pypi\.org/|registry\.npmjs\.org|--(?:extra-)?index-url",
}
CALLS = {
    "torch.load": "weights_only=True",
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "joblib.load": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "os.system": None,
    "os.popen": None,
    "eval": None,
    "exec": None,
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
}
"""Calls that run what they are given, and the argument with which they may be used; None where there is no such."""


def committed() -> list[Path]:
    """The files that git follows, but for this one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = [REPO / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in found if path.is_file() and path != Path(__file__).resolve()]


def secrets(text: str) -> Iterator[str]:
    return (name for name, pattern in SECRETS.items() if re.search(pattern, text))


def test_nothing_committed_looks_like_a_secret() -> None:
    files = committed()
    assert len(files) > 100
    found = [(str(path.relative_to(REPO)), name) for path in files for name in secrets(path.read_text(errors="replace"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "key = AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp_" + "a" * 36,
        "sk-proj-" + "a1" * 20,
        "https://files.pythonhosted" + ".org/packages",
        "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0" + ".c2lnbmF0dXJlLXg",
    ],
)
def test_a_secret_would_be_found(text: str) -> None:
    assert list(secrets(f"x\n{text}\n"))


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def dangers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = {f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords}
        name = name_of(node)
        if name in CALLS and CALLS[name] not in given:
            yield f"line {node.lineno}: {name} (only with {CALLS[name]})"
        if given & {"shell=True", "trust_remote_code=True", "allow_pickle=True", "weights_only=False"}:
            yield f"line {node.lineno}: {name} with {', '.join(sorted(given))}"


def test_no_file_is_unpickled_and_no_text_is_run() -> None:
    sources = [path for path in committed() if path.suffix == ".py" and path.relative_to(REPO).parts[0] in ROOMS]
    assert len(sources) > 150
    assert [(str(path.relative_to(REPO)), danger) for path in sources for danger in dangers(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "import pickle; pickle.loads(b'')",
        "import numpy as np; np.load('x')",
        "import subprocess; subprocess.run('x', shell=True)",
    ],
)
def test_what_unpickles_would_be_found(source: str) -> None:
    assert list(dangers(source))


def test_every_lock_is_whole_and_has_what_is_asked_for() -> None:
    pins = {lock.name: {name for name, _ in audit.read_lock(lock)} for lock in audit.locks()}
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    asked = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    asked_by_checks = {canonicalize_name(Requirement(text).name) for text in project["optional-dependencies"]["dev"]}
    assert asked <= pins["requirements.lock"]
    assert asked | asked_by_checks <= pins["requirements-dev.lock"]
    _, faults = audit.read_exempt(audit.IGNORE, date.today())
    assert not [fault for fault in faults if "lacks" in fault]


@pytest.mark.parametrize("folder", ["dags", "jobs"])
def test_no_program_hides_a_module_that_others_import(folder: str) -> None:
    """spark-submit puts jobs/ before everything else on a program's path, and Airflow does so with dags/."""
    names = {path.stem for path in (REPO / folder).glob("*.py")} - {"__init__"}
    installed = {name.partition(".")[0] for name in packages_distributions()} - {folder}
    assert names and not names & (sys.stdlib_module_names | installed)
