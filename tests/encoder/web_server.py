"""A web server that keeps to nothing: each path misbehaves in its own way. Real sockets, one thread a connection."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PICTURE = bytes(range(256)) * 400
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
BOMB = gzip.compress(bytes(50 * 2**20))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/bucket/"):  # as S3 names an object
            path = path.removeprefix("/bucket")
        with self.server.lock:
            self.server.asked[path] += 1
            self.server.headers = dict(self.headers.items())
            self.server.last_path = self.path
            times = self.server.asked[path]
        with suppress(OSError):  # a client that has had enough hangs up
            _, kind, *rest = path.split("/")
            getattr(self, f"give_{kind}", self.give_404)(rest, times)

    def answer(self, status: int, body: bytes = b"", size: str | None = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if size is not None:
            self.send_header("Content-Length", size or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def give_picture(self, rest: list[str], times: int) -> None:
        self.answer(200, PICTURE)

    def give_404(self, rest: list[str], times: int) -> None:
        self.answer(404, b"none here")

    def give_status(self, rest: list[str], times: int) -> None:
        self.answer(int(rest[0]), b"" if rest[0] == "304" else b"no")  # which has no body

    def give_second(self, rest: list[str], times: int) -> None:
        """A failure first, named by the path; then the picture."""
        if times > 1:
            self.answer(200, PICTURE)
        elif rest[0] == "hangup":
            self.close_connection = True
        elif rest[0] == "truncated":
            self.give_truncated(rest, times)
        else:
            self.answer(int(rest[0]), b"busy", **({"Retry_After": rest[1]} if rest[1:] else {}))

    def give_truncated(self, rest: list[str], times: int) -> None:
        self.answer(200, PICTURE[:1000], size=str(len(PICTURE)))
        self.close_connection = True

    def give_longer(self, rest: list[str], times: int) -> None:
        """More than was announced: an answer that nobody asked for, at once or after a while."""
        body = PICTURE[:1000]
        if rest[0] == "now":
            self.answer(200, body + OTHER, size=str(len(body)))
        else:
            self.answer(200, body)
            time.sleep(0.05)
            self.wfile.write(OTHER)
        self.server.told_more.set()

    def give_size(self, rest: list[str], times: int) -> None:
        """Announces a size, and sends nothing."""
        self.answer(200, b"", size=rest[0])
        self.server.stop.wait(20)

    def give_endless(self, rest: list[str], times: int) -> None:
        self.answer(200, size=None, Transfer_Encoding="chunked")
        while not self.server.stop.is_set():
            self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    def give_drip(self, rest: list[str], times: int) -> None:
        """A byte at a time: no silence, and no end. Of the body, or of the headers."""
        if rest[0] == "body":
            self.answer(200, size=str(10**6))
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.stop.is_set():
            self.wfile.write(b"x")
            time.sleep(0.05)

    def give_silence(self, rest: list[str], times: int) -> None:
        self.server.stop.wait(20)

    def give_gzip(self, rest: list[str], times: int) -> None:
        self.answer(200, BOMB if rest[0] == "bomb" else gzip.compress(PICTURE), Content_Encoding="gzip")

    def give_to(self, rest: list[str], times: int) -> None:
        """Redirects to what the query holds."""
        self.answer(int(rest[0]), Location=self.path.partition("?")[2] or "/picture", Set_Cookie="who=me")

    def give_loop(self, rest: list[str], times: int) -> None:
        self.answer(307, Location=self.path)

    def give_hops(self, rest: list[str], times: int) -> None:
        left = int(rest[0])
        self.answer(302, Location=f"/hops/{left - 1}" if left > 1 else "/picture")

    def give_garbage(self, rest: list[str], times: int) -> None:
        self.wfile.write(b"\x00\xffnothing like http\r\n\r\n" * 10)
        self.close_connection = True

    def give_empty(self, rest: list[str], times: int) -> None:
        self.answer(200)

    def log_message(self, *args: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    """Remembers how often each path was asked for, over how many connections, and the last request's headers and path.

    told_more is set when give_longer has written everything.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.asked: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.last_path = ""
        self.connections = 0
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.told_more = threading.Event()
        self.scheme = "http"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # of a handshake that the client broke off

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_address[1]}/{path}"


@contextmanager
def running(certificate: Path | None = None) -> Iterator[WebServer]:
    server = WebServer()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
