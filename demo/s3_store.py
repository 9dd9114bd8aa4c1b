"""An S3-compatible store for one machine, to try pinlake out against: moto's server, with keys that it checks and a disk.

    PINLAKE_STORE_ACCESS_KEY=... PINLAKE_STORE_SECRET_KEY=... python -m demo.s3_store --folder /data --bucket lake

moto's server alone keeps everything in memory and asks nobody for a key. Here an answer to a write comes after its object is
on the disk, so a killed server comes back with all that it had acknowledged; what it loses are uploads in parts that were not
completed. Writes go one after the other, so of two conditional puts (`If-None-Match`, `If-Match`) one wins. Each request is
checked against its signature (AWS Signature Version 4; requests signed in their address are refused).

What it is not: a store for production. All objects pass through one Python process, those below 16 MB stay in its memory, and
there is one key. `GET /_health` answers without a key.

No package of PyPI, npm or Debian that could be had here has a store with conditional puts: rclone's `serve s3` overwrites in
spite of them.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import S3Backend, s3_backends
from werkzeug.serving import make_server

ACCOUNT, PARTITION, REGION = "123456789012", "aws", "us-east-1"
OBJECT = ".object"
WRITES = frozenset({"PUT", "POST", "DELETE"})

StartResponse = Callable[..., Any]


def backend() -> S3Backend:
    """What moto keeps in memory."""
    found: S3Backend = s3_backends[ACCOUNT][PARTITION]
    return found


class Disk:
    """The store's objects in a folder: a file each, whose first line is JSON and whose rest is the object's bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def make_bucket(self, bucket: str) -> None:
        """A bucket, in memory and on the disk; one that is there stays as it is."""
        if bucket not in backend().buckets:
            backend().create_bucket(bucket, REGION)
        (self._folder / bucket).mkdir(exist_ok=True)

    def load(self) -> int:
        """Everything on the disk into memory; returns the number of objects."""
        count = 0
        for folder in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            self.make_bucket(folder.name)
            for path in folder.rglob(f"*{OBJECT}"):
                with path.open("rb") as file:
                    facts = json.loads(file.readline())
                    key = backend().put_object(folder.name, facts["key"], file.read(), etag=facts["etag"])
                key.last_modified = datetime.fromtimestamp(facts["modified"], UTC).replace(tzinfo=None)
                key.set_metadata(facts["metadata"])
                count += 1
        return count

    def follow(self, bucket: str, name: str | None) -> None:
        """Makes the disk what memory is, for an object, or for a bucket itself."""
        folder = self._folder / bucket
        if bucket not in backend().buckets:
            folder.rmdir()
            return
        folder.mkdir(exist_ok=True)
        if name is None:
            return
        path = self._path(bucket, name)
        key = backend().get_object(bucket, name)
        if key is None:
            path.unlink(missing_ok=True)
            return
        facts = {
            "key": name,
            "etag": key.etag.strip('"'),
            "modified": key.last_modified.replace(tzinfo=UTC).timestamp(),
            "metadata": dict(key.metadata),
        }
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(json.dumps(facts).encode() + b"\n" + key.value)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _path(self, bucket: str, name: str) -> Path:
        # A key may hold what no file's name may, and be longer.
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / bucket / digest[:2] / f"{digest}{OBJECT}"


class Store:
    """The WSGI application: a key's check before moto's server, the disk after it."""

    def __init__(self, disk: Disk, access_key: str, secret_key: str, log: Path | None = None) -> None:
        self._disk, self._access_key, self._secret_key, self._log = disk, access_key, secret_key, log
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_write = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/_health":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"ok\n"]
        if path.startswith("/moto-api"):  # would empty the store
            return _refuse(start_response, "AccessDenied", "not offered here")
        if fault := wrong_signature(environ, self._access_key, self._secret_key):
            return _refuse(start_response, *fault)
        if environ["REQUEST_METHOD"] not in WRITES:
            return list(self._moto(environ, start_response))
        return self._write(environ, start_response)

    def _write(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        # Read before the lock is taken: a slow sender holds up nobody. A body that comes in chunks ends by itself.
        size = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        environ["wsgi.input"] = io.BytesIO(body)
        answer: list[Any] = []

        def remember(status: str, headers: Any, *error: Any) -> None:
            answer[:] = [status, headers, *error]

        with self._one_write:
            content = list(self._moto(environ, remember))
            if str(answer[0]).startswith("2"):
                for bucket, name in _written(environ, body):
                    self._disk.follow(bucket, name)
            self._record(environ, int(str(answer[0])[:3]))
        start_response(*answer)
        return content

    def _record(self, environ: Mapping[str, Any], status: int) -> None:
        if self._log is None:
            return
        asked = {"method": environ["REQUEST_METHOD"], "path": unquote(_raw_path(environ)), "status": status}
        conditions = {name: _header(environ, name) for name in ("if-none-match", "if-match") if _header(environ, name)}
        with self._log.open("a") as log:
            log.write(json.dumps(asked | conditions) + "\n")


def _written(environ: Mapping[str, Any], body: bytes) -> list[tuple[str, str | None]]:
    """The objects that a request has changed, by bucket and key; (bucket, None) where it is the bucket itself."""
    bucket, _, name = unquote(_raw_path(environ)).lstrip("/").partition("/")
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    if name:
        unfinished = "uploads" in query or ("uploadId" in query and environ["REQUEST_METHOD"] != "POST")
        return [] if unfinished else [(bucket, name)]
    if "delete" in query:
        keys = ElementTree.fromstring(body).iter()  # noqa: S314 - of somebody who has the key
        return [(bucket, element.text) for element in keys if element.tag.rpartition("}")[2] == "Key"]
    return [(bucket, None)] if bucket else []


def _raw_path(environ: Mapping[str, Any]) -> str:
    return str(environ.get("RAW_URI") or environ["REQUEST_URI"]).partition("?")[0]


def _refuse(start_response: StartResponse, code: str, message: str) -> list[bytes]:
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    return [f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()]


def wrong_signature(environ: Mapping[str, Any], access_key: str, secret_key: str) -> tuple[str, str] | None:
    """Why a request is not of somebody who has the key (S3's code, a sentence), or None where it is.

    AWS Signature Version 4 in the `Authorization` header, as the Amazon S3 API Reference describes it ("Signature Calculations
    for the Authorization Header"). The payload is taken as hashed by the client: what is checked is who asks.
    """
    scheme, _, rest = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    fields = dict(field.strip().partition("=")[::2] for field in rest.split(","))
    if scheme != "AWS4-HMAC-SHA256" or not {"Credential", "SignedHeaders", "Signature"} <= set(fields):
        return "AccessDenied", "a signature in the Authorization header is needed (AWS Signature Version 4)"
    key, _, scope = fields["Credential"].partition("/")
    if not hmac.compare_digest(key.encode(), access_key.encode()):
        return "InvalidAccessKeyId", "this access key is not known here"
    headers = {name: _header(environ, name) for name in fields["SignedHeaders"].split(";")}
    query = sorted(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    request = "\n".join(
        [
            environ["REQUEST_METHOD"],
            _raw_path(environ),
            "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query),
            *(f"{name}:{' '.join(value.split())}" for name, value in headers.items()),
            "",
            fields["SignedHeaders"],
            _header(environ, "x-amz-content-sha256"),
        ]
    )
    text = "\n".join([scheme, _header(environ, "x-amz-date"), scope, hashlib.sha256(request.encode()).hexdigest()])
    signing = f"AWS4{secret_key}".encode()
    for part in (*scope.split("/"), text):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(signing.hex(), fields["Signature"]):
        return "SignatureDoesNotMatch", "the signature is not of this key's secret"
    return None


def _header(environ: Mapping[str, Any], name: str) -> str:
    variable = name.upper().replace("-", "_")
    return str(environ.get(variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}", ""))


class QuietHandler(MotoRequestHandler):
    """Writes no line a request."""

    def log_request(self, *_args: Any) -> None:
        """Nothing."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.s3_store", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--folder", type=Path, required=True, help="where the objects are kept")
    parser.add_argument("--bucket", action="append", default=[], help="a bucket to make where it is missing; more than once")
    parser.add_argument(
        "--log",
        type=Path,
        default=os.environ.get("PINLAKE_STORE_LOG"),
        help="a line of JSON for each write: what was asked, on which condition, the status (default: $PINLAKE_STORE_LOG)",
    )
    parser.add_argument("--certificate", type=Path, help="PEM file: speak TLS; with --key")
    parser.add_argument("--key", type=Path, help="PEM file of the certificate's key")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serves until it is ended."""
    args = parse_args(argv)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        access_key, secret_key = (os.environ[f"PINLAKE_STORE_{kind}_KEY"] for kind in ("ACCESS", "SECRET"))
    except KeyError as missing:
        print(f"{missing.args[0]} is not set: the store has no key of its own", file=sys.stderr)
        return 2
    if len(secret_key) < 16:
        print("PINLAKE_STORE_SECRET_KEY is shorter than 16 characters: choose a longer one", file=sys.stderr)
        return 2
    disk = Disk(args.folder)
    count = disk.load()
    for bucket in args.bucket:
        disk.make_bucket(bucket)
    tls = (str(args.certificate), str(args.key)) if args.certificate else None
    store = Store(disk, access_key, secret_key, args.log)
    server = make_server(args.host, args.port, store, threaded=True, request_handler=QuietHandler, ssl_context=tls)
    print(f"an S3 store with {count} objects at {'https' if tls else 'http'}://{args.host}:{server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
