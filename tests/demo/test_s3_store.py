"""The store that comes with the demo, as a process: every client of pinlake's reads and writes it, and a kill loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
import s3fs
from botocore.config import Config
from botocore.exceptions import ClientError
from deltalake import DeltaTable, write_deltalake

from embedding.tables import storage

KEY = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-store"}


class Server:
    """The process; a folder that outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = "0"
        self.start()

    def start(self) -> None:
        secrets = {
            "PINLAKE_STORE_ACCESS_KEY": KEY["AWS_ACCESS_KEY_ID"],
            "PINLAKE_STORE_SECRET_KEY": KEY["AWS_SECRET_ACCESS_KEY"],
        }
        command = [
            sys.executable,
            "-m",
            "demo.s3_store",
            "--folder",
            str(self._folder),
            "--bucket",
            "lake",
            "--port",
            self.port,
        ]
        self._process = subprocess.Popen(command, env={**os.environ, **secrets}, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.said = self._process.stdout.readline()
        self.url = self.said.split()[-1]
        self.port = self.url.rpartition(":")[2]

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path / "store")
    settings = {**KEY, "AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ALLOW_HTTP": "true", "AWS_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.kill()


def client(server: Server, secret: str = KEY["AWS_SECRET_ACCESS_KEY"]) -> Any:
    # One try each: what is asserted is the store's first answer.
    once = Config(retries={"total_max_attempts": 1})
    key = KEY["AWS_ACCESS_KEY_ID"]
    return boto3.client("s3", endpoint_url=server.url, aws_access_key_id=key, aws_secret_access_key=secret, config=once)


def test_what_was_acknowledged_is_there_after_a_kill(server: Server) -> None:
    table = "s3://lake/tables/a b"
    write_deltalake(table, pa.table({"n": list(range(1_000))}))
    write_deltalake(table, pa.table({"n": [1_000]}), mode="append")
    large = os.urandom(12 << 20)  # in parts
    with storage.filesystem_of("s3://lake/x")[0].open_output_stream("lake/large/ü+%", compression=None) as stream:
        stream.write(large)
    s3fs.S3FileSystem().pipe("lake/small", b"small")
    storage.replace_unchanged("s3://lake/LIVE", b"1", None)
    _, tag = storage.read_tagged("s3://lake/LIVE")
    s3 = client(server)
    s3.put_object(Bucket="lake", Key="gone", Body=b"")
    s3.delete_objects(Bucket="lake", Delete={"Objects": [{"Key": "gone"}]})
    part = s3.create_multipart_upload(Bucket="lake", Key="unfinished")["UploadId"]
    s3.upload_part(Bucket="lake", Key="unfinished", UploadId=part, PartNumber=1, Body=b"x")
    before = s3.list_objects_v2(Bucket="lake")["Contents"]

    server.kill()
    server.start()
    after = s3.list_objects_v2(Bucket="lake")["Contents"]
    assert [(o["Key"], o["Size"], o["ETag"]) for o in after] == [(o["Key"], o["Size"], o["ETag"]) for o in before]
    assert f"{len(after)} objects" in server.said
    assert DeltaTable(table).version() == 1
    assert DeltaTable(table).to_pyarrow_table().num_rows == 1_001
    assert storage.read_bytes("s3://lake/large/ü+%") == large
    assert s3fs.S3FileSystem().cat("lake/small") == b"small"
    assert storage.read_tagged("s3://lake/LIVE") == (b"1", tag)
    storage.replace_unchanged("s3://lake/LIVE", b"2", tag)
    with pytest.raises(storage.ChangedMeanwhileError):
        storage.replace_unchanged("s3://lake/LIVE", b"3", tag)


def test_of_many_conditional_puts_at_once_one_wins(server: Server) -> None:
    won: list[int] = []

    def put(number: int) -> None:
        try:
            client(server).put_object(Bucket="lake", Key="mutex", Body=str(number).encode(), IfNoneMatch="*")
            won.append(number)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "PreconditionFailed"

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes("s3://lake/mutex") == str(won[0]).encode()


def test_without_the_key_nothing_is_read_or_written(server: Server) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(server, secret="another-secret-of-it").put_object(Bucket="lake", Key="x", Body=b"")
    anonymous = s3fs.S3FileSystem(anon=True)
    with pytest.raises(PermissionError):
        anonymous.ls("lake")
    assert "Contents" not in client(server).list_objects_v2(Bucket="lake")


@pytest.mark.parametrize("secret", ["", "short"])
def test_there_is_no_key_by_default(secret: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PINLAKE_STORE_ACCESS_KEY": "a-key", "PINLAKE_STORE_SECRET_KEY": secret}
    command = [sys.executable, "-m", "demo.s3_store", "--folder", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "PINLAKE_STORE_SECRET_KEY" in ended.stderr
