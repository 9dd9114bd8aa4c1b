"""Releases in an object store, as moto's server speaks S3: opened, published by conditional put, rolled back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from embedding.index.cut_over import roll_back
from embedding.index.reader import open_live
from embedding.index.release import (
    Check,
    LivePointer,
    ReleaseError,
    live_release_id,
    look_at_pointer,
    manifest_sha256,
    move_pointer,
    publish,
    write_check,
)
from embedding.tables import storage
from embedding.tables.lake import Lake
from tests.small_release import build_release, unit_vectors

NAMES = [f"r{number}" for number in range(1, 5)]
IDS = np.arange(500, dtype=np.int64) * 7

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """Four checked releases, none of them published."""
    local = Lake(str(tmp_path_factory.mktemp("lake")))
    for number, name in enumerate(NAMES, start=1):
        versions: dict[str, Any] = {"pins_version": number, "pin_embeddings_version": number}
        build_release(local, name, unit_vectors(500, 32), IDS, embedding_version="test-0123456789ab", factory="SQ8", **versions)
        write_check(local, name, Check(manifest_sha256(local, name), [], 1.0, 10, "2026-11-18T00:00:00"))
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="lake")
        remote = Lake("s3://lake/home")
        for name in NAMES:
            storage.copy_folder(str(Path(local.releases_uri) / name), f"{remote.releases_uri}/{name}")
        yield remote
    server.stop()


def test_who_looked_before_another_moved_the_pointer_does_not_move_it(lake: Lake) -> None:
    assert publish(lake, "r1", "run") == "r1 is live"
    _, tag = look_at_pointer(lake)
    assert publish(lake, "r2", "another") == "r2 is live, before it r1"
    with pytest.raises(storage.ChangedMeanwhileError, match="was replaced meanwhile"):
        move_pointer(lake, LivePointer("r1"), tag)
    with pytest.raises(storage.ChangedMeanwhileError):
        move_pointer(lake, LivePointer("r1"), None)
    assert live_release_id(lake) == "r2"


def test_of_publishers_at_once_the_latest_state_wins_and_it_is_searched_and_rolled_back(lake: Lake) -> None:
    program = (
        "import sys; from embedding.index.release import ReleaseError, publish; from embedding.tables.lake import Lake\n"
        "for name in sys.argv[2:]:\n    try: publish(Lake(sys.argv[1]), name, 'run')\n    except ReleaseError: pass\n"
    )
    orders = (NAMES[2:], NAMES[:1:-1])
    running = [subprocess.Popen([sys.executable, "-c", program, lake.home, *order]) for order in orders]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert live_release_id(lake) == "r4"
    release = open_live(lake)
    assert (release.search(unit_vectors(500, 32)[:20], 1)[1][:, 0] == IDS[:20]).all()
    assert [n.title for n in release.neighbours(release.vector_of(int(IDS[3])), k=1)] == ["pin 3"]
    assert len(release.select(board=int(IDS[9]))) == 1
    assert roll_back(lake, "r2", "me") == "r2 is live again, instead of r4"
    with pytest.raises(ReleaseError, match="was rolled back from"):
        publish(lake, "r4", "a retried task")
