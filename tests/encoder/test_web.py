"""Pictures from the web: what a server may do, and where a fetch may not go. The servers are real, and on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from embedding.contracts import Reason
from embedding.encoder import attempts
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits, ImageRejected, SettingError
from embedding.encoder.public_address import PrivateHosts

from . import web_server
from .web_server import PICTURE, WebServer

WEB = frozenset({"http", "https"})
QUICK: dict[str, Any] = {"schemes": WEB, "backoff_s": 0.01, "connect_timeout_s": 2.0, "read_timeout_s": 2.0, "attempts": 3}
GUARDED = ImageLimits(**QUICK)
LOCAL = ImageLimits(**QUICK, private_hosts=("127.0.0.1",))

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server.running() as server:
        yield server


def rejection(uri: str, limits: ImageLimits) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        fetch_image(uri, limits)
    assert 0 < len(caught.value.detail) <= 500
    return caught.value


def reason(uri: str, limits: ImageLimits = LOCAL) -> Reason:
    return rejection(uri, limits).reason


def test_bytes_come_as_they_are_and_nothing_of_ours_goes_along(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    assert fetch_image(server.url("picture/a%2Fb/%7Eme?sign=%2B%2F+&n"), LOCAL) == PICTURE
    assert server.last_path == "/picture/a%2Fb/%7Eme?sign=%2B%2F+&n"  # a signature would be over this very spelling
    assert fetch_image(server.url("picture/grün bild?ü#part"), LOCAL) == PICTURE
    assert server.last_path == "/picture/gr%C3%BCn%20bild?%C3%BC"
    assert fetch_image(server.url("to/302?/picture"), LOCAL) == PICTURE
    assert fetch_image(server.url("picture"), LOCAL) == PICTURE
    assert not {"Cookie", "Authorization", "Proxy-Authorization"} & set(server.headers)
    assert server.headers["Accept-Encoding"] == "identity"
    assert fetch_image(server.url("gzip/small"), LOCAL) == PICTURE  # compressed against our wish
    assert reason(server.url("empty")) == Reason.EMPTY_IMAGE


def test_what_may_pass_is_tried_again_and_nothing_else(server: WebServer) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    for path in ("second/503", "second/500", "second/429", "second/429/1", f"second/503/{soon}", "second/408", "second/503/-x"):
        assert fetch_image(server.url(path.replace(" ", "%20")), LOCAL) == PICTURE, path
    for path in ("second/hangup", "second/truncated"):
        assert fetch_image(server.url(path), LOCAL) == PICTURE, path
    assert set(server.asked.values()) == {2}
    for status, times, expected in (
        (404, 1, Reason.MISSING_IMAGE),
        (410, 1, Reason.MISSING_IMAGE),
        (401, 1, Reason.FETCH_FAILED),
        (403, 1, Reason.FETCH_FAILED),
        (206, 1, Reason.FETCH_FAILED),
        (304, 1, Reason.FETCH_FAILED),
        (503, 3, Reason.FETCH_FAILED),
        (429, 3, Reason.FETCH_FAILED),
    ):
        refusal = rejection(server.url(f"status/{status}"), LOCAL)
        assert (refusal.reason, server.asked[f"/status/{status}"]) == (expected, times)
        assert str(status) in refusal.detail
    # A wait that goes beyond the time for the picture is not begun.
    short = ImageLimits(**QUICK, private_hosts=("127.0.0.1",), total_timeout_s=3)
    assert reason(server.url("second/429/3600/a"), short) == Reason.FETCH_FAILED
    assert server.asked["/second/429/3600/a"] == 1


def test_a_server_that_fails_for_every_picture_is_left_alone_for_a_while(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(attempts.HOST_FAILURES - 1):
        assert reason(server.url("status/503")) == Reason.FETCH_FAILED
    assert reason(server.url("status/404")) == Reason.MISSING_IMAGE, "it answers: the count starts anew"
    for _ in range(attempts.HOST_FAILURES):
        assert reason(server.url("status/503")) == Reason.FETCH_FAILED
    asked = sum(server.asked.values())
    refusal = rejection(server.url("picture"), LOCAL)
    assert refusal.reason == Reason.FETCH_FAILED and "is left alone for a while" in refusal.detail
    assert sum(server.asked.values()) == asked
    with web_server.running() as other:
        assert fetch_image(other.url("picture"), LOCAL) == PICTURE
    monkeypatch.setattr(attempts, "_clock", lambda: time.monotonic() + attempts.HOST_PAUSE_S)
    assert fetch_image(server.url("picture"), LOCAL) == PICTURE


def test_bodies_that_are_not_what_they_say(server: WebServer) -> None:
    limits = ImageLimits(**QUICK | {"read_timeout_s": 0.5}, private_hosts=("127.0.0.1",), max_bytes=len(PICTURE))
    assert fetch_image(server.url("picture"), limits) == PICTURE
    for path, expected, times in (
        ("truncated", Reason.FETCH_FAILED, 3),
        ("garbage", Reason.FETCH_FAILED, 3),
        ("silence", Reason.FETCH_FAILED, 3),
        ("size/1000", Reason.FETCH_FAILED, 3),
        ("size/none", Reason.FETCH_FAILED, 3),
        (f"size/{len(PICTURE) + 1}", Reason.TOO_MANY_BYTES, 1),
        ("endless", Reason.TOO_MANY_BYTES, 1),
        ("gzip/bomb", Reason.TOO_MANY_BYTES, 1),
    ):
        assert (reason(server.url(path), limits), server.asked[f"/{path}"]) == (expected, times), path


@pytest.mark.parametrize("when", ["now", "later"])
def test_an_answer_that_nobody_asked_for_is_no_ones(server: WebServer, when: str) -> None:
    for _ in range(5):
        assert fetch_image(server.url(f"longer/{when}"), LOCAL) == PICTURE[:1000]
        assert server.told_more.wait(5)
        assert fetch_image(server.url("picture"), LOCAL) == PICTURE
        server.told_more.clear()


def test_connections_are_used_again(server: WebServer) -> None:
    for _ in range(5):
        assert fetch_image(server.url("picture"), LOCAL) == PICTURE
    assert server.connections == 1


def test_a_server_that_drips_is_left_when_the_time_is_up(server: WebServer) -> None:
    limits = ImageLimits(**QUICK, private_hosts=("127.0.0.1",), total_timeout_s=0.6)
    for path in ("drip/body", "drip/headers"):
        refusal = rejection(server.url(path), limits)
        assert (refusal.reason, server.asked[f"/{path}"]) == (Reason.FETCH_FAILED, 1)
        assert "not read within 0.6 s" in refusal.detail
    # A port that takes no connection: its queue is full.
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        address = full.getsockname()
        queue = [socket.socket() for _ in range(4)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(address)
        slow = ImageLimits(**QUICK | {"connect_timeout_s": 0.2}, private_hosts=("127.0.0.1",))
        assert "timeout" in rejection(f"http://127.0.0.1:{address[1]}/", slow).detail.lower()
        for waiting in queue:
            waiting.close()


def test_redirects(server: WebServer) -> None:
    for status in (301, 302, 303, 307, 308):
        assert fetch_image(server.url(f"to/{status}?/picture"), LOCAL) == PICTURE
    assert fetch_image(server.url(f"to/302?{server.url('to/301/a?../../../picture')}"), LOCAL) == PICTURE
    assert fetch_image(server.url("hops/5"), LOCAL) == PICTURE
    assert "over 5 redirects" in rejection(server.url("hops/6"), LOCAL).detail
    assert "over 5 redirects" in rejection(server.url("loop"), LOCAL).detail
    # A name that an operator allows leads no further than itself.
    named = ImageLimits(**QUICK, private_hosts=("localhost",))
    assert fetch_image(server.url("to/302?/picture", "localhost"), named) == PICTURE
    here = f"127.0.0.1:{server.server_address[1]}"
    for target, expected in (
        (f"http://{here}/secret", Reason.FORBIDDEN_ADDRESS),
        (f"//{here}/secret", Reason.FORBIDDEN_ADDRESS),
        ("http://169.254.169.254/latest/meta-data/", Reason.FORBIDDEN_ADDRESS),
        ("http://[::ffff:10.0.0.1]/", Reason.FORBIDDEN_ADDRESS),
        (f"http://me:word@localhost:{server.server_address[1]}/secret", Reason.INVALID_URI),
        ("file:///etc/passwd", Reason.INVALID_URI),
        ("ftp://localhost/secret", Reason.FETCH_FAILED),
    ):
        assert reason(server.url(f"to/302?{target}", "localhost"), named) == expected, target
    assert not server.asked["/secret"]


# fmt: off
NOT_PUBLIC = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:a9fe:a9fe", "0:0:0:0:0:ffff:c0a8:101",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1",
    "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
]
PUBLIC = [
    "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "193.0.0.1",
    "223.255.255.255", "2606:4700::1111", "2a00:1450::1", "::ffff:1.1.1.1", "64:ff9b::101:101",
]
# fmt: on


def test_only_the_public_internet_is_public() -> None:
    nobody = PrivateHosts()
    assert [number for number in NOT_PUBLIC if nobody.may_connect(number)] == []
    assert [number for number in PUBLIC if not nobody.may_connect(number)] == []
    for no_number in ("", "localhost", "127.1", "0x7f.0.0.1", "017700000001", "2606:4700::1111%lo", "fe80::1%25lo", "1.1.1.1 "):
        assert not nobody.may_connect(no_number)
    some = PrivateHosts.parse(("10.0.0.0/8", "fd00::/8", "192.168.1.7", "CDN.internal."))
    assert all(map(some.may_connect, ("10.9.9.9", "::ffff:10.1.1.1", "64:ff9b::10.1.1.1", "fd12::1", "192.168.1.7", "1.1.1.1")))
    assert not any(map(some.may_connect, ("11.0.0.1%x", "127.0.0.1", "192.168.1.8", "fe80::1", "::ffff:127.0.0.1")))
    assert some.has_name("cdn.INTERNAL")
    assert not some.has_name("a.cdn.internal")
    assert not some.has_name("")


def test_a_socket_goes_to_no_private_address_however_it_is_written(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.server_address[1]
    monkeypatch.setenv("http_proxy", server.url(""))  # would be asked instead, and sees all
    for number in NOT_PUBLIC:
        host = f"[{number}]" if ":" in number else number
        assert reason(f"http://{host}:{port}/secret", GUARDED) == Reason.FORBIDDEN_ADDRESS, host
    assert reason(f"http://[fe80::1%25lo]:{port}/secret", GUARDED) in (Reason.FORBIDDEN_ADDRESS, Reason.INVALID_URI)
    for host in ("localhost", "LOCALHOST", "0x7f.0.0.1", "0x7f000001", "１２７.0.0.1", "⑫7.0.0.1"):
        assert reason(f"http://{host}:{port}/secret", GUARDED) == Reason.FORBIDDEN_ADDRESS, host
    for host in ("2130706433", "017700000001", "127.1", "0177.0.0.1", "0", "[::1"):
        assert reason(f"http://{host}:{port}/secret", GUARDED) == Reason.INVALID_URI, host
    refused = (Reason.INVALID_URI, Reason.FORBIDDEN_ADDRESS, Reason.FETCH_FAILED)  # resolvers differ on these
    assert all(reason(f"http://{host}:{port}/secret", GUARDED) in refused for host in ("localhost.", "127.0.0.1."))
    assert server.asked.total() == 0
    assert "127.0.0.1" in rejection(server.url("secret"), GUARDED).detail
    assert "PINLAKE_IMAGE_PRIVATE_HOSTS" in rejection(server.url("secret"), GUARDED).detail


def test_what_a_name_leads_to_is_judged_at_the_socket(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes its mind: only the address that is really connected to counts."""
    port = server.server_address[1]
    answers: dict[str, list[list[str]]] = {
        "mapped.test": [["::ffff:127.0.0.1"]],
        "both.test": [["127.0.0.1", "::1"]],
        "turning.test": [["8.8.8.8"], ["127.0.0.1"]],  # as someone who looked first would have seen it
    }
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in answers:
            return real(host, *args, **kwargs)
        numbers = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        kinds = [(socket.AF_INET6, (n, port, 0, 0)) if ":" in n else (socket.AF_INET, (n, port)) for n in numbers]
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in kinds]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert socket.getaddrinfo("turning.test", port)[0][4][0] == "8.8.8.8"
    for name in answers:
        assert reason(f"http://{name}:{port}/secret", GUARDED) == Reason.FORBIDDEN_ADDRESS, name
    assert server.asked.total() == 0
    # A connection that one setting allowed is not there for another to use.
    named = ImageLimits(**QUICK, private_hosts=("both.test",))
    assert fetch_image(f"http://both.test:{port}/picture", named) == PICTURE
    assert reason(f"http://both.test:{port}/secret", GUARDED) == Reason.FORBIDDEN_ADDRESS


def test_addresses_that_are_none() -> None:
    for uri in (
        "http:",
        "http://",
        "http:///a",
        "http:a",
        "http://h:0/",
        "http://h:99999/",
        "http://h:abc/",
        "http://h/a\r\nX-Header: b",
        "http://h\t/",
        "http://a b/",
        "http://h\\@127.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://a..b/",
        f"http://{'a' * 64}.test/",
    ):
        assert reason(uri) == Reason.INVALID_URI, uri
    refusal = rejection("https://me:word@host.test/a", LOCAL)
    assert refusal.reason == Reason.INVALID_URI
    assert "word" not in refusal.detail
    assert "no attempt" not in rejection("http://no-such-host.invalid/", LOCAL).detail


def test_settings() -> None:
    limits = ImageLimits.from_environment(
        {"PINLAKE_IMAGE_SCHEMES": "https", "PINLAKE_IMAGE_PRIVATE_HOSTS": " 10.0.0.0/8, cdn.internal ,"}
    )
    assert limits.private_hosts == ("10.0.0.0/8", "cdn.internal")
    assert reason("http://1.1.1.1/", limits) == Reason.UNSUPPORTED_SCHEME
    for wrong in ("10.0.0.1/8", "10.0.0", "10.0.0.256", "a b", "*.internal", "http://cdn.internal", "cdn.internal:80"):
        with pytest.raises(SettingError, match="PINLAKE_IMAGE_PRIVATE_HOSTS: neither a network"):
            ImageLimits.from_environment({"PINLAKE_IMAGE_PRIVATE_HOSTS": wrong})
    with pytest.raises(ValueError, match="timeouts must be over 0"):
        ImageLimits(total_timeout_s=0)


def test_many_threads_at_once(server: WebServer) -> None:
    paths = [f"{path}/{i}" for i in range(32) for path in ("picture", "second/hangup", "to/302", "status/404", "truncated")]

    def fetch(path: str) -> bytes | Reason:
        try:
            return fetch_image(server.url(f"{path}?/picture"), LOCAL)
        except ImageRejected as refusal:
            return refusal.reason

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(fetch, paths)) == [PICTURE, PICTURE, PICTURE, Reason.MISSING_IMAGE, Reason.FETCH_FAILED] * 32


def _fetch_in_child(url: str) -> bytes:
    return fetch_image(url, LOCAL)


def test_a_forked_process_has_a_client_of_its_own(server: WebServer) -> None:
    """As Spark's workers are forked: the parent's connections stay the parent's."""
    assert fetch_image(server.url("picture"), LOCAL) == PICTURE
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_fetch_in_child, [server.url("picture")] * 8) == [PICTURE] * 8
    assert fetch_image(server.url("picture"), LOCAL) == PICTURE


_PROGRAM = """
import sys
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits, ImageRejected
limits = ImageLimits(schemes=frozenset({"http", "https"}), private_hosts=("127.0.0.1",), attempts=1)
for url in sys.argv[1:]:
    try:
        print(len(fetch_image(url, limits)))
    except ImageRejected as refusal:
        print(refusal)
"""


def _program(*urls: str, **environment: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", _PROGRAM, *urls],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_certificates_are_checked_and_the_end_is_quiet(server: WebServer, tmp_path: Path) -> None:
    trusted, unknown = _certificate(tmp_path / "trusted.pem"), _certificate(tmp_path / "unknown.pem")
    with web_server.running(trusted) as secure, web_server.running(unknown) as stranger:
        said = _program(
            secure.url("picture"),
            secure.url(f"to/302?{secure.url('picture')}"),
            server.url(f"to/302?{secure.url('picture')}"),
            secure.url(f"to/302?{server.url('picture')}"),
            stranger.url("picture"),
            SSL_CERT_FILE=str(trusted),
        )
        assert said[:3] == [str(len(PICTURE))] * 3
        assert said[3].startswith("fetch_failed: redirected from https to http")
        assert said[4].startswith("fetch_failed: ClientConnectorCertificateError")
        assert not stranger.asked


def _certificate(path: Path) -> Path:
    """Writes a key, and a certificate for 127.0.0.1 that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.stem)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
