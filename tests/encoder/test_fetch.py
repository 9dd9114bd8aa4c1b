"""What an address may name, and what it may not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import fsspec
import pytest

from embedding.contracts import Reason
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits, ImageRejected

LIMITS = ImageLimits()


def reason(uri: str, limits: ImageLimits = LIMITS) -> Reason:
    with pytest.raises(ImageRejected) as caught:
        fetch_image(uri, limits)
    assert 0 < len(caught.value.detail) <= 500
    caught.value.detail.encode()  # whatever the address held, the detail fits into a table
    return caught.value.reason


def test_files_by_address_and_by_path(tmp_path: Path) -> None:
    file = tmp_path / "grün 100%.png"
    file.write_bytes(b"bytes")
    assert fetch_image(file.as_uri(), LIMITS) == b"bytes"
    assert fetch_image(str(file), LIMITS) == b"bytes"
    assert fetch_image(file.as_uri().replace("file://", "FILE://localhost"), LIMITS) == b"bytes"


def test_addresses_that_are_none(tmp_path: Path) -> None:
    for uri in (
        "",
        "a.png",
        "../a.png",
        "/a\x00b",
        "file:///a%00b",
        "file://server/a.png",
        "file:a.png",
        "/" + "x" * 300,
        "/\ud800",
    ):
        assert reason(uri) in (Reason.INVALID_URI, Reason.MISSING_IMAGE), uri
    assert reason("a.png") == reason("/a\x00b") == reason("file:///a%00b") == reason("file:///\ud800") == Reason.INVALID_URI
    assert reason(str(tmp_path / "none.png")) == reason("/etc/passwd/none.png") == Reason.MISSING_IMAGE


@pytest.mark.timeout(10)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert reason(str(tmp_path / "pipe")) == reason("file:///dev/zero") == reason(str(tmp_path)) == Reason.NOT_AN_IMAGE
    assert reason(str(tmp_path / "loop")) == Reason.FETCH_FAILED


def test_sizes(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"")
    assert reason(str(file)) == reason("/proc/self/environ") == Reason.EMPTY_IMAGE
    file.write_bytes(b"12345")
    assert fetch_image(str(file), ImageLimits(max_bytes=5)) == b"12345"
    assert reason(str(file), ImageLimits(max_bytes=4)) == Reason.TOO_MANY_BYTES
    with file.open("wb") as stream:
        stream.truncate(2**40)
    assert reason(str(file)) == Reason.TOO_MANY_BYTES


def test_roots_hold_after_links_are_resolved(tmp_path: Path) -> None:
    inside, outside = tmp_path / "pins", tmp_path / "pins-private"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
    (inside / "link.png").symlink_to(outside / "a.png")
    (tmp_path / "alias").symlink_to(inside)
    limits = ImageLimits(roots=(str(tmp_path / "alias"),))
    assert fetch_image(str(inside / "a.png"), limits) == b"x"
    escapes = (outside / "a.png", inside / "link.png", f"{inside}/../pins-private/a.png", "/etc/passwd", "/no/such/file")
    assert {reason(str(path), limits) for path in escapes} == {Reason.FETCH_FAILED}


def test_schemes_are_asked_for_and_carry_nothing_else() -> None:
    for uri in (
        "http://127.0.0.1/a",
        "https://example.com/a.png",
        "s3://bucket/a",
        "ftp://a/b",
        "data:image/png;base64,AA",
    ):
        assert reason(uri) == Reason.UNSUPPORTED_SCHEME
    with pytest.raises(ValueError, match="supported: abfs"):
        ImageLimits.from_environment({"PINLAKE_IMAGE_SCHEMES": "file,ftp"})
    s3 = ImageLimits(schemes=frozenset({"s3"}))
    for uri in (
        "s3://key:secret@bucket/a",
        "s3://bucket",
        "s3:bucket/a",
        "s3://bucket?endpoint_override=evil/a",
        "s3://key@bucket/a",
    ):
        assert reason(uri, s3) == Reason.INVALID_URI, uri


def test_no_address_chooses_the_server_that_credentials_go_to() -> None:
    limits = ImageLimits(schemes=frozenset({"abfs", "abfss", "hdfs", "gs"}))
    for uri in (
        "abfs://pins@evil.example/k",
        "abfs://pins@evil.example:443/k",
        "abfs://pins@169.254.169.254/k",
        "abfss://pins@account.dfs.core.windows.net.evil.example/k",
        "abfss://pins@account.dfs.core.windows.net:444/k",
        "abfs://account:key@account.dfs.core.windows.net/k",
        "abfs://account/k",
        "hdfs://169.254.169.254:8020/k",
        "hdfs://namenode/k",
        "gs://bucket:80/k",
        "gs://me@bucket/k",
    ):
        assert reason(uri, limits) == Reason.INVALID_URI, uri


def test_a_store_through_fsspec() -> None:
    fsspec.filesystem("memory").pipe("/pins/a b%20.png", b"12345")
    limits = ImageLimits.from_environment({"PINLAKE_IMAGE_SCHEMES": "file, Memory", "PINLAKE_IMAGE_ROOTS": "/data"})
    assert fetch_image("memory://pins/a b%20.png", limits) == b"12345"
    assert reason("memory://pins/none.png", limits) == Reason.MISSING_IMAGE
    assert reason("memory://pins/a b%20.png", ImageLimits(max_bytes=4, schemes=frozenset({"memory"}))) == Reason.TOO_MANY_BYTES
    assert limits.roots == ("/data",)


def test_a_rejection_survives_the_way_between_processes() -> None:
    again = pickle.loads(pickle.dumps(ImageRejected(Reason.EMPTY_IMAGE, "x" * 600)))
    assert (again.reason, again.detail) == (Reason.EMPTY_IMAGE, "x" * 500)
