"""Secrets planted in the environment and in addresses; programs that run and fail with them; and what they leave behind."""

from __future__ import annotations

import gzip
import os
import secrets
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from demo.airflow import LAPTOP_SPARK_CONF
from demo.secrets_in import find_secrets, forms
from embedding.contracts import QUARANTINE
from embedding.encoder.batches import SETTLED, hash_batches
from embedding.encoder.limits import ImageLimits
from embedding.redaction import has_credentials, hidden, shown_address
from embedding.tables.lake import Lake
from tests.jobs.platform_days import Row, pin, write_day

REPO = Path(__file__).resolve().parents[1]
DS = "2026-11-18"
NAMES = ("store", "session", "spark", "mlflow", "alert", "token", "endpoint", "fernet", "database", "address", "signature")
PLANTED = {name: f"{secrets.token_urlsafe(18)}/+{secrets.token_hex(4)}" for name in NAMES}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AN-ACCESS-KEY-ID",
    "AWS_SECRET_ACCESS_KEY": PLANTED["store"],
    "AWS_SESSION_TOKEN": PLANTED["session"],
    "_SPARK_AUTH_SECRET": PLANTED["spark"],
    "PINLAKE_MLFLOW_URI": f"postgresql://mlflow:{quote(PLANTED['mlflow'], safe='')}@127.0.0.1:1/mlflow",
    "PINLAKE_ASSISTANT_TOKEN": PLANTED["token"],
    "PINLAKE_CONTEXT_API_KEY": PLANTED["endpoint"],
    "AIRFLOW_CONN_PINLAKE_ALERTS": f"generic://x:{quote(PLANTED['alert'], safe='')}@host/",
    "AIRFLOW__CORE__FERNET_KEY": PLANTED["fernet"],
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql://airflow:{quote(PLANTED['database'], safe='')}@127.0.0.1:1/airflow",
}

pytestmark = pytest.mark.timeout(180)


def pins_with_secrets() -> list[Row]:
    """Pins whose addresses carry a password, a key or a signature, in all the ways that are refused."""
    word, signature = quote(PLANTED["address"], safe=""), quote(PLANTED["signature"], safe="")
    addresses = [
        f"https://me:{word}@127.0.0.1/a.png",
        f"ftp://me:{word}@host.test/a.png",
        f"s3://key:{word}@bucket/a.png",
        f"gs://{word}@bucket/a.png",
        f"abfss://account:{word}@account.dfs.core.windows.net/a.png",
        f"file://me:{word}@host/a.png",
        f"https://me:{word}@[bad/a.png",
        f"https://127.0.0.1/a.png?X-Amz-Credential=x&X-Amz-Signature={signature}",
        f"http://127.0.0.1/a.png?sv=1&sig={signature}&width=10",
        f"/no/such/file?token={signature}",
    ]
    return [pin(DS, number, 1, 1, "a pin", image_uri=text) for number, text in enumerate(addresses, start=1)]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    key = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **key).create_bucket(Bucket="lake")
    yield url
    server.stop()


def run(folder: Path, store: str, *command: str) -> int:
    """Runs a command with every secret in its environment; what it says goes to a file of `folder`."""
    aws = {"AWS_ENDPOINT_URL": store, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    aws |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    spark = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(REPO)}
    environment = {**os.environ, **aws, **spark, **ENVIRONMENT}
    with (folder / f"{len(list(folder.iterdir()))}.log").open("wb") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=150)
    return done.returncode


def test_a_program_that_ends_well_and_one_that_fails_leave_no_secret_in_logs_and_events(store: str, tmp_path: Path) -> None:
    left, exports = tmp_path / "left", tmp_path / "exports"
    left.mkdir()
    write_day(exports, DS, {"pins": [pin(DS, 1, 1, 1, "a pin"), *pins_with_secrets()]})
    (left / "events").mkdir()
    events = {"spark.eventLog.enabled": "true", "spark.eventLog.compress": "false"}
    events |= {"spark.eventLog.dir": (left / "events").as_uri()}
    conf = [word for item in {**LAPTOP_SPARK_CONF, **events}.items() for word in ("--conf", "=".join(item))]
    spark_submit = (str(Path(sys.executable).with_name("spark-submit")), "--master", "local[1]", *conf)
    land = str(REPO / "jobs" / "land_exports.py")
    fails = "from jobs.session import run_program; from embedding.tables.storage import write_atomic\n"
    fails += "run_program(lambda: write_atomic('s3://no-such-bucket/x', b'1'))"
    asked = ("--run-id", "run", "--ds", DS, "--exports", str(exports))
    assert run(left, store, *spark_submit, land, "--home", "s3://lake/home", *asked) == 0
    assert run(left, store, sys.executable, "-c", fails) == 1
    logs = "".join(path.read_text() for path in left.glob("*.log"))
    assert "no-such-bucket" in logs and "Traceback" in logs
    written = [path for path in (left / "events").rglob("*") if path.is_file() and path.name.startswith(("events_", "local-"))]
    assert written and any("spark.executorEnv.AWS_SECRET_ACCESS_KEY" in path.read_text(errors="replace") for path in written)
    assert find_secrets([left], {**PLANTED, "key id": "AN-ACCESS-KEY-ID"}) == []


def test_what_addresses_carry_is_in_no_row_but_the_pin_s_own(tmp_path: Path) -> None:
    from jobs.embed_day import stage_outcomes  # brings Spark

    lake = Lake(str(tmp_path / "lake"))
    rows = [
        {"pin_id": r["pin_id"], "source_sha256": "0" * 64, "image_uri": r["image_uri"], "text": "t"}
        for r in pins_with_secrets()
    ]
    schemes = frozenset({"http", "https", "s3", "gs", "abfss", "file"})
    hashed = list(hash_batches([pa.RecordBatch.from_pylist(rows)], ImageLimits(schemes=schemes, attempts=1)))
    refused = pa.concat_tables([pa.Table.from_batches([batch]) for batch in hashed])
    assert refused.column("reason").null_count == 0, "each is refused"
    run = {"run_id": "run", "encoded_by": "run", "embedding": None, "has_image": True, "has_text": True}
    outcomes = pa.RecordBatch.from_pylist([row | run for row in refused.to_pylist()], schema=SETTLED)
    staged = list(stage_outcomes(lake, DS, "pinclip-base-0123456789ab", iter([outcomes])))
    assert sum(file.num_rows for file in staged) == len(rows)
    assert {file.table for file in staged} == {QUARANTINE.name}
    assert find_secrets([tmp_path], PLANTED) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:p@ss@h.test/a?b=1", "GET https://***@h.test/a?b=1"),
        ("'s3://key:secret@bucket'", "'s3://***@bucket'"),
        ("abfss://box@account.dfs.core.windows.net/a", "abfss://box@account.dfs.core.windows.net/a"),
        ("abfs://account:key@account.dfs.core.windows.net/a", "abfs://***@account.dfs.core.windows.net/a"),
        ("file:///a@b/c?design=3", "file:///a@b/c?design=3"),
        ("https://h/a?sig=ab%2Fc&se=1#x", "https://h/a?sig=***&se=1#x"),
        ("x?AWSAccessKeyId=abc&Signature=d", "x?AWSAccessKeyId=***&Signature=***"),
        ("mail me@host.test", "mail me@host.test"),
    ],
)
def test_what_an_address_carries_is_hidden(text: str, shown: str) -> None:
    assert shown_address(text) == shown == shown_address(shown)


def test_addresses_with_a_key_are_known() -> None:
    assert all(map(has_credentials, ("s3://k:s@b/h", "https://t@h", "abfss://a:k@x")))
    assert not any(map(has_credentials, ("abfss://box@x", "/a@b", "s3://b/a@c")))
    with pytest.raises(ValueError, match="may not carry credentials") as refused:
        Lake("s3://key:secret@bucket/home")
    assert "key:secret" not in str(refused.value)


def test_an_error_that_nobody_catches_is_printed_without_the_environment_s_secrets(tmp_path: Path) -> None:
    program = (
        "import os; from embedding.redaction import hide_in_tracebacks; hide_in_tracebacks()\n"
        "raise OSError(f\"refused: {dict(os.environ)} https://me:{os.environ['MY_PASSWORD']}@host\")"
    )
    environment = {**os.environ, **ENVIRONMENT, "MY_PASSWORD": PLANTED["address"], "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    (tmp_path / "said").write_text(done.stdout + done.stderr)
    assert done.returncode == 1 and "OSError: refused" in done.stderr and "https://***@host" in done.stderr
    assert find_secrets([tmp_path], PLANTED) == []
    assert hidden("true", {"A_TOKEN": "true"}) == "true", "too short to be told from a word"


def test_secrets_are_found_in_every_form(tmp_path: Path) -> None:
    secret = "hunter2/+" + secrets.token_urlsafe(12)
    shapes = [secret, quote(secret, safe=""), *(b64encode(f"{'u' * n}:{secret}".encode()).decode() for n in range(4))]
    for number, shape in enumerate(shapes):
        (tmp_path / f"{number}.log").write_text(f"first\nx {shape} y\n")
    (tmp_path / "a.log.gz").write_bytes(gzip.compress(f"first\n{secret}\n".encode()))
    pq.write_table(pa.table({"a": ["x", secret]}), tmp_path / "a.parquet")
    found = find_secrets([tmp_path], {"it": secret})
    assert len(found) == len(shapes) + 2 and {number for _, number, _ in found} == {2}
    with pytest.raises(ValueError, match="under 8"):
        forms("short")
