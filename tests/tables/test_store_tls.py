"""A store behind a certificate of an authority that nobody knows: which variables name that authority to each client."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REPO = Path(__file__).resolve().parents[2]
SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "PYTHONPATH": str(REPO),
}

pytestmark = pytest.mark.timeout(120)


@contextmanager
def https_store(folder: Path) -> Iterator[tuple[str, Path]]:
    """moto's server behind a certificate of an authority that nobody knows, and the authority's own."""
    now, names = (
        datetime.now(UTC),
        [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("a CA", "localhost")],
    )
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    certificates = []
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        made = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        made = made.serial_number(number + 1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(number == 0, None), critical=True)
        if number:
            of = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            made = made.add_extension(x509.SubjectAlternativeName(of), critical=False)
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        certificates.append(made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    no_password = serialization.NoEncryption()
    private = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    for file, data in (("ca.pem", certificates[0]), ("certificate.pem", certificates[1]), ("key.pem", private)):
        (folder / file).write_bytes(data)
    context = (str(folder / "certificate.pem"), str(folder / "key.pem"))
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True, ssl_context=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://localhost:{server.server_port}", folder / "ca.pem"
    finally:
        server.shutdown()


CLIENTS = """
import json, sys, pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits
from embedding.tables import storage

limits = ImageLimits(schemes=frozenset({"s3"}), attempts=1)
acts = {
    "pyarrow": lambda: storage.read_bytes("s3://tls/x"),
    "obstore": lambda: storage.read_tagged("s3://tls/x"),
    "deltalake": lambda: write_deltalake("s3://tls/" + sys.argv[1], pa.table({"a": [1]})),
    "s3fs": lambda: fetch_image("s3://tls/x", limits),
}
reached = {}
for name, act in acts.items():
    try:
        act()
        reached[name] = True
    except Exception as error:
        reached[name] = False
print(json.dumps(reached))
"""


def test_a_store_with_an_authority_of_its_own_is_reached_with_both_variables_and_refused_without(tmp_path: Path) -> None:
    with https_store(tmp_path) as (url, authority):
        boto: Any = {
            "verify": str(authority),
            "aws_access_key_id": "a",
            "aws_secret_access_key": "b",
            "region_name": "us-east-1",
        }
        client = boto3.client("s3", endpoint_url=url, **boto)
        client.create_bucket(Bucket="tls")
        client.put_object(Bucket="tls", Key="x", Body=b"hello")
        quiet = {name: value for name, value in os.environ.items() if not re.search("AWS_|_CA_BUNDLE|SSL_CERT", name)}
        quiet |= {**SETTINGS, "AWS_ENDPOINT_URL": url}

        def reached(name: str, **variables: str) -> dict[str, bool]:
            command = [sys.executable, "-c", CLIENTS, name]
            done = subprocess.run(command, env=quiet | variables, capture_output=True, text=True, check=True, timeout=90)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        both = {"AWS_CA_BUNDLE": str(authority), "SSL_CERT_FILE": str(authority)}
        assert set(reached("with", **both).values()) == {True}
        assert set(reached("without").values()) == {False}
