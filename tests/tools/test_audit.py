"""`make audit`: pip-audit asked about real locks, a server that answers as OSV does, OSV's dump, and exceptions that end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
HASH = "--hash=sha256:" + "0" * 64
ADVISORY = {
    "id": "PYSEC-2099-1",
    "aliases": ["CVE-2099-1"],
    "summary": "it does what it should not",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "Some_Package"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.10"}]}],
        }
    ],
}


class _Osv(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        affected = asked["package"]["name"] == "some-package" and asked["version"] == "1.9"
        body = json.dumps({"vulns": [ADVISORY]} if affected else {}).replace("Some_Package", "some-package").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keeps the tests' output clean."""


@pytest.fixture(scope="module")
def osv() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()


def audit(folder: Path, *words: str, lock: str, ignore: str = "") -> tuple[int, str]:
    (folder / "a.lock").write_text(lock)
    (folder / "ignore.toml").write_text(ignore)
    command = [sys.executable, str(REPO / "tools" / "audit.py"), "--lock", str(folder / "a.lock")]
    command += ["--ignore", str(folder / "ignore.toml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def exception(days: int) -> str:
    until = (datetime.now(UTC) + timedelta(days=days)).date()
    return f'[[ignore]]\nid = "CVE-2099-1"\nreason = "not used here"\nexpires = {until}\n'


def test_a_service_is_asked_about_every_pin_and_an_exception_holds_until_its_day(osv: str, tmp_path: Path) -> None:
    lines = ["other==2.0 ; python_version < '3.12'", "other==3.0", "some-package==1.9"]
    lock = "".join(f"{line} \\\n    {HASH}\n    # via x\n" for line in lines)
    ask = ("--service", "osv", "--osv-url", osv)
    status, said = audit(tmp_path, *ask, lock=lock)
    assert status == 1 and "FAILED: some-package 1.9: PYSEC-2099-1, CVE-2099-1; fixed in 1.10" in said
    one = f"some-package==1.9 {HASH}\n"
    status, said = audit(tmp_path, *ask, lock=one, ignore=exception(1))
    assert status == 0 and "accepted until" in said and "1 packages audited" in said
    status, said = audit(tmp_path, *ask, lock=one, ignore=exception(0))
    assert status == 1 and "the exception for CVE-2099-1 ended on" in said


def test_a_service_that_is_not_reached_is_no_pass(tmp_path: Path) -> None:
    ask = ("--service", "osv", "--osv-url", "http://127.0.0.1:1/v1/query")
    status, said = audit(tmp_path, *ask, lock=f"some-package==1.9 {HASH}\n")
    assert status == 4 and "NOT AUDITED: none of 1 packages" in said
    status, said = audit(tmp_path, *ask, lock=f"some-package==1.9 {HASH}\n", ignore=exception(0))
    assert status == 1, "an exception that has ended fails without any service"


@pytest.mark.parametrize(("version", "found"), [("1.9", True), ("1.10", False), ("0.1rc1", True)])
def test_osv_s_dump_is_read_without_a_network(tmp_path: Path, version: str, found: bool) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("PYSEC-2099-1.json", json.dumps(ADVISORY))
        archive.writestr(
            "PYSEC-2099-2.json", json.dumps({**ADVISORY, "id": "PYSEC-2099-2", "withdrawn": "2099-01-01T00:00:00Z"})
        )
    status, said = audit(tmp_path, "--advisories", str(tmp_path / "all.zip"), lock=f"some.package=={version} {HASH}\n")
    assert (status, "CVE-2099-1" in said, "PYSEC-2099-2" in said) == (int(found), found, False)


@pytest.mark.parametrize("lock", ["some-package==1.9\n", f"some-package>=1.9 {HASH}\n", f"git+https://host/x {HASH}\n", ""])
def test_a_lock_that_is_not_whole_is_refused(tmp_path: Path, lock: str) -> None:
    assert audit(tmp_path, lock=lock)[0] == 2
