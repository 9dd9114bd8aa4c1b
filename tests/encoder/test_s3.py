"""Pictures from S3, as moto's server speaks it: a real server, reached as the AWS tools are told to reach one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from embedding.contracts import Reason
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits, ImageRejected

from . import web_server

QUICK: dict[str, Any] = {"schemes": frozenset({"s3", "s3a"}), "backoff_s": 0.01, "attempts": 3}
PICTURE = bytes(range(256)) * 4000
KEYS = ("a.png", "folder/b c%20.png", "grün/?versionId=1", "/leading//double/", "../up", "a+b&c=d#e")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def bucket(environment: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="pins")
    for key in KEYS:
        client.put_object(Bucket="pins", Key=key, Body=PICTURE + key.encode())
    client.put_object(Bucket="pins", Key="empty", Body=b"")
    yield "pins"
    server.stop()


def reason(uri: str, limits: ImageLimits) -> Reason:
    with pytest.raises(ImageRejected) as caught:
        fetch_image(uri, limits)
    assert 0 < len(caught.value.detail) <= 500
    return caught.value.reason


def test_objects(bucket: str) -> None:
    limits = ImageLimits(**QUICK, total_timeout_s=50)
    with ThreadPoolExecutor(32) as pool:
        uris = [f"{scheme}://{bucket}/{key}" for key in KEYS for scheme in ("s3", "s3a", "S3")] * 4
        assert (
            list(pool.map(lambda uri: fetch_image(uri, limits), uris))
            == [PICTURE + key.encode() for key in KEYS for _ in range(3)] * 4
        )
    small = ImageLimits(**QUICK, total_timeout_s=50, max_bytes=len(PICTURE))
    assert reason("s3://pins/a.png", small) == Reason.TOO_MANY_BYTES
    assert reason("s3://pins/empty", limits) == Reason.EMPTY_IMAGE
    assert reason("s3://pins/none.png", limits) == reason("s3://no-such-bucket/a.png", limits) == Reason.MISSING_IMAGE
    assert reason("s3://pins/folder", limits) == Reason.MISSING_IMAGE
    for uri in (
        "s3://..//a",
        "s3://a..b/a",
        "s3://pins:80/a",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/x/a",
        "s3://p/a",
        f"s3://{'a' * 300}/a",
    ):
        assert reason(uri, limits) == Reason.INVALID_URI, uri


def test_a_store_that_fails(environment: pytest.MonkeyPatch) -> None:
    with web_server.running() as server:
        environment.setenv("AWS_ENDPOINT_URL", server.url("")[:-1])
        # Other timeouts than above: a client keeps the endpoint that it was made with.
        limits = ImageLimits(**QUICK, read_timeout_s=1.5, max_bytes=len(web_server.PICTURE))
        assert fetch_image("s3://bucket/picture", limits) == web_server.PICTURE
        for key, expected, times in (
            ("second/503", None, 2),
            ("second/500", None, 2),
            ("second/429", None, 2),
            ("second/hangup", None, 2),
            ("second/truncated", None, 2),
            ("status/503", Reason.FETCH_FAILED, 3),
            ("status/403", Reason.FETCH_FAILED, 1),
            ("status/404", Reason.MISSING_IMAGE, 1),
            ("truncated", Reason.FETCH_FAILED, 3),
            ("silence", Reason.FETCH_FAILED, 3),
            ("garbage", Reason.FETCH_FAILED, 3),
            ("endless", Reason.TOO_MANY_BYTES, 1),
            ("size/999999999", Reason.TOO_MANY_BYTES, 1),
        ):
            uri, path = f"s3://bucket/{key}", f"/{key}"
            if expected is None:
                assert fetch_image(uri, limits) == web_server.PICTURE, key
            else:
                assert reason(uri, limits) == expected, key
            assert server.asked[path] == times, key
        dripping = ImageLimits(**QUICK, read_timeout_s=1.5, total_timeout_s=0.6)
        assert reason("s3://bucket/drip/body", dripping) == Reason.FETCH_FAILED


def test_without_credentials_a_picture_is_refused(environment: pytest.MonkeyPatch) -> None:
    with web_server.running() as server:
        environment.setenv("AWS_ENDPOINT_URL", server.url("")[:-1])
        environment.delenv("AWS_ACCESS_KEY_ID")
        environment.delenv("AWS_SECRET_ACCESS_KEY")
        assert reason("s3://bucket/picture", ImageLimits(**QUICK, read_timeout_s=1.25)) == Reason.FETCH_FAILED
        assert not server.asked
