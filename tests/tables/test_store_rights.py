"""The policies of docs/security.md, enforced by moto: who may write does, who may read cannot."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from moto.server import ThreadedMotoServer

from demo.secrets_in import find_secrets
from embedding.encoder.fetch import fetch_image
from embedding.encoder.limits import ImageLimits
from embedding.index.reader import open_live
from embedding.index.release import Check, live_release_id, manifest_sha256, publish, write_check
from embedding.tables import storage
from embedding.tables.lake import Lake
from tests.small_release import build_release, unit_vectors

REPO = Path(__file__).resolve().parents[2]
IDS = np.arange(300, dtype=np.int64)
HOME = "s3://lake/pinlake"
LIVE = f"{HOME}/releases/pins/LIVE"
SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}

pytestmark = pytest.mark.timeout(120)


def policies() -> dict[str, str]:
    text = (REPO / "docs" / "security.md").read_text()
    found = dict(re.findall(r"<!-- policy: ([\w ]+) -->\n```json\n(.*?)```", text, re.DOTALL))
    # S3 asks for ListBucket where a bucket is looked at; moto for a right of its own.
    return {name: policy.replace('"s3:ListBucket"', '["s3:ListBucket", "s3:HeadBucket"]') for name, policy in found.items()}


@dataclass(frozen=True)
class Store:
    """A store in which each policy is a user's. `become` lets this process be one of them."""

    url: str
    keys: dict[str, tuple[str, str]]
    patch: pytest.MonkeyPatch

    def become(self, user: str, secret: str | None = None) -> None:
        key = self.keys[user]
        self.patch.setenv("AWS_ACCESS_KEY_ID", key[0])
        self.patch.setenv("AWS_SECRET_ACCESS_KEY", secret or key[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two checked releases that nobody has published, an export, and the users."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    local = Lake(str(tmp_path_factory.mktemp("lake")))
    with pytest.MonkeyPatch.context() as patch:
        root = {"AWS_ACCESS_KEY_ID": "root-key", "AWS_SECRET_ACCESS_KEY": "root-secret", "AWS_ENDPOINT_URL": url}
        for name, value in {**SETTINGS, **root}.items():
            patch.setenv(name, value)
        s3, iam = boto3.client("s3"), boto3.client("iam")
        for bucket in ("lake", "exports", "others"):
            s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket="exports", Key="ds=2026-11-18/_SUCCESS", Body=b"")
        s3.put_object(Bucket="others", Key="payroll", Body=b"1")
        keys = {}
        for name, policy in policies().items():
            user = name.replace(" ", "-")
            iam.create_user(UserName=user)
            iam.put_user_policy(UserName=user, PolicyName="the", PolicyDocument=policy)
            key = iam.create_access_key(UserName=user)["AccessKey"]
            keys[name] = (key["AccessKeyId"], key["SecretAccessKey"])
        for number, name in enumerate(("r1", "r2"), start=1):
            versions: dict[str, Any] = {"pins_version": number, "pin_embeddings_version": number}
            build_release(
                local, name, unit_vectors(300, 16), IDS, embedding_version="test-0123456789ab", factory="SQ8", **versions
            )
            write_check(local, name, Check(manifest_sha256(local, name), [], 1.0, 10, "2026-11-18T00:00:00"))
        asks_for_keys(url, True)
        found = Store(url, keys, patch)
        found.become("nightly writer")
        for name in ("r1", "r2"):
            storage.copy_folder(str(Path(local.releases_uri) / name), f"{HOME}/releases/pins/{name}")
        yield found
        asks_for_keys(url, False)
    server.stop()


def asks_for_keys(url: str, does: bool) -> None:
    """moto looks at signatures and policies from here on, or not any more."""
    count, headers = b"0" if does else b"inf", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", count, headers)).read()


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(Exception, match=r"(?i)access.?denied|forbidden|403|permission|not authorized"):
        act()


def test_the_writer_s_policy_is_enough_for_tables_and_releases(store: Store) -> None:
    store.become("nightly writer")
    lake = Lake(HOME)
    write_deltalake(f"{HOME}/tables/a_table", pa.table({"a": [1, 2]}))
    write_deltalake(f"{HOME}/tables/a_table", pa.table({"a": [3]}), mode="overwrite")
    assert DeltaTable(f"{HOME}/tables/a_table").to_pyarrow_table().num_rows == 1
    storage.write_atomic(f"{lake.run_uri('2026-11-18', 'a run')}/land.json", b"{}")
    assert publish(lake, "r1", "run") == "r1 is live"
    assert publish(lake, "r2", "run") == "r2 is live, before it r1", "with If-Match"
    # One by one: moto knows no policy for a call that deletes several.
    storage.delete_quietly(f"{lake.run_uri('2026-11-18', 'a run')}/land.json")
    assert not storage.exists(f"{lake.run_uri('2026-11-18', 'a run')}/land.json")
    assert storage.exists("s3://exports/ds=2026-11-18/_SUCCESS")
    refused(lambda: storage.write_atomic("s3://exports/ds=2026-11-18/_SUCCESS", b"x"))
    refused(lambda: storage.read_bytes("s3://others/payroll"))


def test_who_reads_can_change_neither_live_nor_a_table(store: Store) -> None:
    store.become("nightly writer")
    write_deltalake(f"{HOME}/tables/b_table", pa.table({"a": [1, 2]}))
    publish(Lake(HOME), "r2", "run")
    store.become("assistant")
    lake = Lake(HOME)
    release = open_live(lake)
    assert (release.search(unit_vectors(300, 16)[:5], 1)[1][:, 0] == IDS[:5]).all()
    assert DeltaTable(f"{HOME}/tables/b_table").to_pyarrow_table().num_rows == 2
    refused(lambda: storage.replace_unchanged(LIVE, b"{}", storage.read_tagged(LIVE)[1]))
    refused(lambda: storage.write_atomic(LIVE, b"{}"))
    refused(lambda: write_deltalake(f"{HOME}/tables/b_table", pa.table({"a": [3]}), mode="append"))
    assert live_release_id(lake) == "r2"
    store.become("data engineer")
    assert DeltaTable(f"{HOME}/tables/b_table").to_pyarrow_table().num_rows == 2
    refused(lambda: storage.read_bytes(LIVE))
    refused(lambda: write_deltalake(f"{HOME}/tables/b_table", pa.table({"a": [3]}), mode="append"))


def test_errors_of_a_wrong_key_show_neither_the_key_s_secret_nor_a_signature(store: Store, tmp_path: Path) -> None:
    wrong = "wrong-secret-4f1c9aa0d2e84d6b"
    store.become("nightly writer", wrong)
    said = []
    limits = ImageLimits(schemes=frozenset({"s3"}), attempts=1, read_timeout_s=3.5)
    for act in (
        lambda: storage.read_bytes(LIVE),
        lambda: storage.read_tagged(LIVE),
        lambda: DeltaTable(f"{HOME}/tables/b_table"),
        lambda: write_deltalake(f"{HOME}/tables/c_table", pa.table({"a": [1]})),
        lambda: fetch_image("s3://exports/ds=2026-11-18/_SUCCESS", limits),
    ):
        with pytest.raises(Exception) as caught:
            act()
        said.append(f"{caught.value!r} {caught.value}")
    (tmp_path / "said").write_text("\n".join(said))
    assert len(said) == 5 and find_secrets([tmp_path], {"secret": wrong}) == []
    assert "Signature=" not in "".join(said)
