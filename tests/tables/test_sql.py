"""`pinlake sql`: its answers against the tables read row by row, what it refuses, and the questions of docs/tables.md."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from demo.days import DEMO_DAYS
from embedding.cli import main
from embedding.contracts import BOARDS, PIN_EMBEDDINGS, PINS, SAVES, USER_INTERESTS, TableContract
from embedding.index.release import live_version
from embedding.tables import storage
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from embedding.tables.sql import MACROS, VIEWS, ask, batches, open_sql
from embedding.taste.recommend import read_interests
from tests.conftest import REPO

QUESTIONS = re.findall(r"^\$ pinlake (sql .*?(?<!\\)$)", (REPO / "docs" / "tables.md").read_text(), re.M | re.S)

Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def answer(lake_with_interests: Lake, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Rows of the command's answer."""

    def run(question: str, *options: str, home: str = lake_with_interests.home) -> list[dict[str, Any]]:
        assert main(["--home", home, "sql", question, "--format", "json", *options]) == 0, capsys.readouterr().err
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def refused(lake: Lake, capsys: pytest.CaptureFixture[str], question: str, *options: str) -> str:
    """What the command says of a question that it does not answer."""
    assert main(["--home", lake.home, "sql", question, *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("pinlake: ") and "Traceback" not in said.err
    return said.err


def latest(lake: Lake, contract: TableContract, until: str = "9999") -> list[dict[str, Any]]:
    key = [name for name in contract.key if name != "ds"]
    rows = sorted(read_rows(lake.open(contract)).to_pylist(), key=lambda row: row["ds"])
    state = {tuple(row[name] for name in key): row for row in rows if row["ds"] <= until}
    return [row for row in state.values() if not row["deleted"]]


def test_what_is_current_is_what_the_rows_say(lake_with_interests: Lake, answer: Ask) -> None:
    lake = lake_with_interests
    for view, contract in (("current_pins", PINS), ("current_boards", BOARDS), ("current_saves", SAVES)):
        key = ", ".join(name for name in contract.key if name != "ds")
        found = answer(f"SELECT {key} FROM {view}")
        wanted = [{name: row[name] for name in contract.key if name != "ds"} for row in latest(lake, contract)]
        assert len(wanted) > 1 and sorted(found, key=str) == sorted(wanted, key=str), view
    past = answer(f"SELECT pin_id, title FROM pins_on('{DEMO_DAYS[0]}')")
    assert {row["pin_id"] for row in past} == {row["pin_id"] for row in latest(lake, PINS, DEMO_DAYS[0])}
    # A column of which the log has no least and greatest value.
    titles = [row["title"] for row in read_rows(lake.open(PINS)).to_pylist()]
    title = next(filter(None, titles)).replace("'", "''")
    assert answer(f"SELECT count(*) AS n FROM pins WHERE title = '{title}'") == [{"n": titles.count(title.replace("''", "'"))}]
    assert answer("SELECT count(*) AS n FROM pins WHERE title IS NULL") == [{"n": titles.count(None)}]


def test_vectors_neighbours_and_interests_are_those_of_the_live_encoder(lake_with_interests: Lake, answer: Ask) -> None:
    lake, version = lake_with_interests, str(live_version(lake_with_interests))
    rows = {(row["pin_id"], row["ds"]): row["embedding"] for row in read_rows(lake.open(PIN_EMBEDDINGS)).to_pylist()}
    vectors = {
        row["pin_id"]: rows[row["pin_id"], row["ds"]] for row in latest(lake, PINS) if (row["pin_id"], row["ds"]) in rows
    }
    found = {row["pin_id"]: row["embedding"] for row in answer("SELECT * FROM current_vectors")}
    assert found == vectors
    ids, matrix_ND = np.array(list(vectors)), np.array(list(vectors.values()), np.float32)
    cosines = matrix_ND @ matrix_ND[0]
    near = answer(f"SELECT * FROM neighbours({ids[0]}, 5)")
    np.testing.assert_allclose([row["cosine"] for row in near], np.sort(cosines[1:])[:-6:-1], atol=1e-5)
    pair = f"FROM current_vectors a, current_vectors b WHERE a.pin_id = {ids[0]} AND b.pin_id = {ids[1]}"
    (between,) = answer(f"SELECT cosine(a.embedding, b.embedding) AS cosine {pair}")
    assert between["cosine"] == pytest.approx(cosines[1], abs=1e-5)
    user = read_rows(lake.open(USER_INTERESTS), ["user_id"])["user_id"][0].as_py()
    theirs = answer(f"SELECT medoid_pin FROM current_interests WHERE user_id = {user} ORDER BY importance DESC, cluster")
    assert [row["medoid_pin"] for row in theirs] == [i.medoid_pin for i in read_interests(lake, version, user)]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_documented_question_is_answered(
    question: str,
    lake_with_interests: Lake,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = shlex.split(question.replace("\\\n", " "))
    assert main(["--home", lake_with_interests.home, *asked]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 2 or any(tmp_path.iterdir())


def test_there_are_documented_questions() -> None:
    page = (REPO / "docs" / "tables.md").read_text()
    assert len(QUESTIONS) >= 4
    assert all(f"`{name}" in page for name in VIEWS | MACROS)


HOSTILE = [
    "COPY (SELECT 1) TO '{folder}/out.csv'",
    "COPY pins TO '{folder}/out.parquet'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/out.csv'",
    "EXPORT DATABASE '{folder}/all'",
    "ATTACH '{folder}/new.db'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM read_parquet('s3://somewhere/x.parquet')",
    "SELECT * FROM read_csv('https://127.0.0.1:1/x.csv')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{folder}/out.csv''')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CREATE TABLE mine AS SELECT 1",
    "CREATE OR REPLACE VIEW pins AS SELECT 1",
    "DROP VIEW pins",
    "DELETE FROM pins",
    "INSERT INTO pins SELECT * FROM pins",
    "WITH gone AS (DELETE FROM pins RETURNING *) SELECT * FROM gone",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "USE temp",
    "SELECT 1; DROP VIEW pins",
    "SELECT getenv('HOME')",
    "SELECT * FROM lake",  # no variable of the program
]


@pytest.mark.parametrize("question", HOSTILE)
def test_nothing_is_written_and_no_file_is_read(
    question: str, lake_with_interests: Lake, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(Path(lake_with_interests.home).rglob("*"))
    lake = lake_with_interests
    assert "root:" not in refused(lake, capsys, question.format(folder=tmp_path))
    # Not by the command's own look at the statement alone: the connection itself allows it as little.
    with open_sql(lake) as connection, contextlib.suppress(duckdb.Error):
        assert "root:" not in str(connection.execute(question.format(folder=tmp_path)).fetchall())
    assert list(tmp_path.iterdir()) == [] and sorted(Path(lake.home).rglob("*")) == before


def test_what_is_wrong_is_said(lake_with_interests: Lake, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lake = lake_with_interests
    assert "there is no table pin. There are pins, boards," in refused(lake, capsys, "SELECT * FROM pin")
    assert "LINE 1: SELECT * FORM pins" in refused(lake, capsys, "SELECT * FORM pins")
    assert "titel" in refused(lake, capsys, "SELECT titel FROM pins")
    assert "there is no question" in refused(lake, capsys, " -- ")
    assert "Could not convert string" in refused(lake, capsys, "SELECT CAST(ds AS int) FROM pins")
    assert "there is no version 999 of pins" in refused(lake, capsys, "SELECT * FROM pins", "--as-of", "pins=999")
    assert "give a time" in refused(lake, capsys, "SELECT 1", "--as-of", "yesterday")
    assert "this lake has no table pins yet" in refused(lake, capsys, "SELECT * FROM pins", "--as-of", "2020-01-01")
    assert "--memory lots" in refused(lake, capsys, "SELECT 1", "--memory", "lots")
    assert "--out takes a --format" in refused(lake, capsys, "SELECT 1", "--out", str(tmp_path / "x"))
    assert "No such file" in refused(lake, capsys, "SELECT 1", "--format", "csv", "--out", str(tmp_path / "no" / "x"))
    assert "there are no tables under" in refused(Lake(str(tmp_path)), capsys, "SELECT 1")
    assert "failed to allocate" in refused(lake, capsys, "SELECT list(i) FROM range(100000000) t(i)", "--memory", "100MB")
    assert list(tmp_path.iterdir()) == []


def test_answers_in_each_format(
    lake_with_interests: Lake, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_with_interests
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT pin_id, tags, created_at FROM pins ORDER BY pin_id, ds"))
    assert main(["--home", lake.home, "sql", "-", "--format", "csv"]) == 0
    rows = sorted(read_rows(lake.open(PINS)).to_pylist(), key=lambda row: (row["pin_id"], row["ds"]))
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(int(row["pin_id"]), json.loads(row["tags"] or "null")) for row in found] == [
        (r["pin_id"], r["tags"]) for r in rows
    ]

    question, file = tmp_path / "question.sql", tmp_path / "vectors.parquet"
    question.write_text("SELECT pin_id, embedding FROM current_vectors; -- all of them\n")
    assert main(["--home", lake.home, "sql", "--file", str(question), "--format", "parquet", "--out", str(file)]) == 0
    with open_sql(lake) as connection:
        assert [(pq.read_table(file).num_rows,)] == connection.sql("SELECT count(*) FROM current_vectors").fetchall()
    assert len(pq.read_table(file)["embedding"][0]) == 256

    assert main(["--home", lake.home, "sql", "SELECT '\x1b[2J' || repeat('x', 100) AS s, [1.5, 2, 3, 4, 5] AS l FROM range(9)",
                 "--limit", "3"]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "?[2Jx" in said.out and "x…" in said.out and "[1.5, 2, 3, 4, … 5 values]" in said.out
    assert len(said.out.splitlines()) == 5 and "the first 3 rows" in said.err


def test_tables_as_they_once_were(lake_with_interests: Lake, answer: Ask) -> None:
    lake = lake_with_interests
    days = "SELECT DISTINCT ds FROM pins ORDER BY ds"
    assert [row["ds"] for row in answer(days)] == list(DEMO_DAYS)
    commits = sorted(lake.open(PINS).history(), key=lambda commit: commit["version"])
    first = next(c for c in commits if "WRITE" in c["operation"])
    assert answer(days, "--as-of", f"pins={first['version']}") == [{"ds": DEMO_DAYS[0]}]
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(first["timestamp"] / 1000)) + f".{first['timestamp'] % 1000:03d}"
    assert answer(days, "--as-of", at) == [{"ds": DEMO_DAYS[0]}]


def test_a_long_answer_is_a_stream(lake_with_interests: Lake) -> None:
    with open_sql(lake_with_interests, "SELECT 1") as connection:
        answer = ask(connection, "SELECT i, repeat('x', 1000) AS s FROM range(1000000000000) t(i)")
        assert sum(batch.num_rows for batch, _ in zip(batches(answer), range(3), strict=False)) > 0
    command = [sys.executable, "-m", "embedding.cli", "--home", lake_with_interests.home, "sql", "--format", "csv"]
    with subprocess.Popen(
        [*command, "SELECT * FROM range(1000000000000)"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        assert [run.stdout.readline() for _ in range(3)] == [b"range\n", b"0\n", b"1\n"]
        run.stdout.close()  # as `head` does
        assert run.wait(30) == 0 and run.stderr.read() == b""


@pytest.fixture
def bucket(lake_with_interests: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The lake in a store that speaks S3, a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for name, value in {
                "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            }.items():  # fmt: skip
                monkeypatch.setenv(name, value)
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket="lake")
            for folder in ("tables/pins", "tables/pin_embeddings"):
                storage.copy_folder(f"{lake_with_interests.home}/{folder}", f"s3://lake/home/{folder}")
            pointer = Path(lake_with_interests.releases_uri, "LIVE").read_bytes()
            storage.write_atomic("s3://lake/home/releases/pins/LIVE", pointer)
            yield "s3://lake/home"
        finally:
            process.terminate()


def test_a_lake_in_an_object_store(bucket: str, lake_with_interests: Lake, answer: Ask) -> None:
    question = "SELECT pin_id, title, v.embedding FROM current_pins JOIN current_vectors AS v USING (pin_id) ORDER BY pin_id"
    assert answer(question, home=bucket) == answer(question) != []
