"""The record of trainings in a real MLflow on SQLite: accepted, refused, judged again; aliases; the mirror of the pointer."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding.encoder import tracking
from embedding.encoder.config import embedding_version, load_config
from embedding.encoder.store import open_encoder, stored_versions
from embedding.encoder.tracking import (
    CANDIDATE,
    LIVE,
    TrackingError,
    aliases,
    mirror_live,
    read_training,
    register,
    set_alias,
    tracking_uri,
    training_uri,
)
from embedding.index.factory import SearchSetting
from embedding.index.release import LivePointer, Manifest, read_pointer
from embedding.tables import storage
from embedding.tables.lake import Lake
from jobs import mirror_registry, register_encoder
from tests.encoder.test_config import write
from tests.small_release import point_at

SHIPPED = "pinclip-base-0123456789ab"
MATES = "board_mate_recall_at_10"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """One for all tests, because MLflow takes seconds to make its tables; each test has runs of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PINLAKE_MLFLOW_URI", raising=False)
        yield Lake(str(tmp_path_factory.mktemp("home") / "a lake"))


def leave_training(lake: Lake, run_id: str, *, recall: float | None = 0.5, lines: int = 3, **facts: Any) -> str:
    """What a training and, with `recall`, its judge leave: the live encoder's recall is 0.4. Returns the version."""
    folder = Path(training_uri(lake, run_id))

    def rename(raw: dict[str, Any]) -> None:
        raw["weights"][0]["file"] = "weights.safetensors"

    config = write(folder, rename).rename(folder / "config.json")
    (folder / "a.safetensors").unlink()
    (folder / "weights.safetensors").write_bytes(f"weights of {run_id}".encode())
    version = str(embedding_version(load_config(config)))
    training = {
        "encoder": "tiny",
        "embedding_version": version,
        "training_set": "2026-11-20-0123456789ab",
        "recipe": {"learning_rate": 5e-4, "dims": [8, 4], "losses": {"neighbour": 1.0}},
        "seed": 7,
        "seconds": 60.0,
        "steps": 10 * lines,
        "final_loss": 1.25,
        "figures": {"recall@10": 0.5, "stopped_early": False},
    }
    (folder / "training.json").write_text(json.dumps(training | facts))
    progress = [{"step": 10 * i, "epoch": i / lines, "loss": 3.0 - i / lines, "images_per_s": 100} for i in range(lines)]
    (folder / "progress.jsonl").write_text('{"step": 0, "lo\n' + "".join(json.dumps(line) + "\n" for line in progress))
    if recall is not None:
        leave_judgement(lake, run_id, recall)
    return version


def leave_judgement(lake: Lake, run_id: str, recall: float, **more: Any) -> None:
    rows = [("candidate", recall), ("live", 0.4)]
    judgement = {
        "better": recall > 0.4,
        "sentences": [f"board-mates: {recall:.0%} against 40%"],
        "rows": [{"encoder": who, "metric": MATES, "value": v, "low": v - 0.01, "high": v + 0.01} for who, v in rows],
        "difference": {"metric": MATES, "relative": recall / 0.4 - 1, "low": -0.01, "high": None},
        **more,
    }
    Path(training_uri(lake, run_id), "judgement.json").write_text(json.dumps(judgement))


def register_run(lake: Lake, run_id: str, *flags: str) -> int:
    return register_encoder.main(["--home", lake.home, "--run-id", run_id, *flags])


def client_of(lake: Lake) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(lake), tracking_uri(lake))


def runs_of(lake: Lake, version: str) -> list[Any]:
    client = client_of(lake)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.embedding_version = '{version}'"))


def versions_of(lake: Lake, version: str) -> list[Any]:
    return list(client_of(lake).search_model_versions(f"tags.embedding_version = '{version}'"))


def serve(lake: Lake, version: str) -> None:
    """A release of that version goes live."""
    point_at(lake, LivePointer(release_id=f"2026-11-20-{version[-12:]}", embedding_version=version))


def test_an_accepted_encoder_is_recorded_stored_and_registered(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pinlake")
    version = leave_training(lake, "scheduled__2026-11-22T04:00:00+00:00")
    assert register_run(lake, "scheduled__2026-11-22T04:00:00+00:00") == 0
    (run,) = runs_of(lake, version)
    assert (run.info.run_name, run.info.status) == ("scheduled__2026-11-22T04:00:00+00:00", "FINISHED")
    assert run.info.end_time - run.info.start_time == 60_000
    assert run.data.params["recipe.losses.neighbour"] == "1.0" and run.data.params["seed"] == "7"
    assert run.data.metrics[f"candidate/{MATES}"] == 0.5 and run.data.metrics[f"live/{MATES}"] == 0.4
    assert run.data.metrics["training/recall_10"] == 0.5, "MLflow refuses the @"
    assert f"difference/{MATES}/high" not in run.data.metrics, "no number"
    curve = client_of(lake).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(0, 3.0), (10, pytest.approx(8 / 3)), (20, pytest.approx(7 / 3))]
    assert run.data.tags["verdict"] == "accepted" and "50% against 40%" in run.data.tags["mlflow.note.content"]
    assert {Path(file).name for file, _ in storage.list_files(f"{lake.home}/mlartifacts")} == {
        *("config.json", "training.json", "progress.jsonl", "judgement.json", "judged.csv")
    }
    assert f"candidate,{MATES},0.5,0.49,0.51\n" in (Path(run.info.artifact_uri) / "judged.csv").read_text()
    (registered,) = versions_of(lake, version)
    assert registered.run_id == run.info.run_id
    assert registered.source == open_encoder(lake, version).config.source.parent.as_posix()
    assert registered.tags["training_set"] == "2026-11-20-0123456789ab" and "dims" in registered.tags["recipe"]
    assert aliases(lake) == {CANDIDATE: version}
    assert f'encoder_migration --conf \'{{"to": "{version}"}}\'' in caplog.text


def test_doing_it_again_adds_nothing(lake: Lake) -> None:
    version = leave_training(lake, "again")
    for _ in range(2):
        assert register_run(lake, "again") == 0
    (run,), (_,) = runs_of(lake, version), versions_of(lake, version)
    for metric in ("loss", f"candidate/{MATES}", "training/seconds"):
        assert len(client_of(lake).get_metric_history(run.info.run_id, metric)) == (3 if metric == "loss" else 1)


def test_an_attempt_that_was_cut_off_is_completed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    version = leave_training(lake, "cut off")
    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="disk full"):
        patch.setattr(tracking, "_artifacts", lambda _training: (_ for _ in ()).throw(OSError("disk full")))
        register_run(lake, "cut off")
    assert [run.info.status for run in runs_of(lake, version)] == ["RUNNING"] and not versions_of(lake, version)
    assert register_run(lake, "cut off") == 0
    (run,) = runs_of(lake, version)
    assert run.info.status == "FINISHED"
    assert len(client_of(lake).get_metric_history(run.info.run_id, "loss")) == 3


def test_a_rejected_encoder_is_recorded_and_goes_no_further(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    version = leave_training(lake, "worse", recall=0.3)
    before = aliases(lake)
    assert register_run(lake, "worse", "--record-only") == 0
    assert register_run(lake, "worse") == 3
    assert "30% against 40%" in caplog.text
    (run,) = runs_of(lake, version)
    assert run.data.tags["verdict"] == "rejected" and run.data.metrics[f"candidate/{MATES}"] == 0.3
    assert not versions_of(lake, version) and version not in stored_versions(lake) and aliases(lake) == before


def test_a_person_may_register_it_anyway(lake: Lake) -> None:
    version = leave_training(lake, "worse but wanted", recall=0.3)
    assert register_run(lake, "worse but wanted", "--anyway") == 0
    assert aliases(lake)[CANDIDATE] == version
    assert versions_of(lake, version)[0].tags["verdict"] == "rejected"


def test_an_unjudged_encoder_is_refused_and_a_later_judgement_completes_its_run(lake: Lake) -> None:
    version = leave_training(lake, "in a hurry", recall=None)
    assert register_run(lake, "in a hurry") == 3
    assert runs_of(lake, version)[0].data.tags["verdict"] == "unjudged"
    for recall, verdict in ((0.6, "accepted"), (0.3, "rejected")):
        leave_judgement(lake, "in a hurry", recall)
        register_run(lake, "in a hurry")
        (run,) = runs_of(lake, version)
        assert (run.data.tags["verdict"], run.data.metrics[f"candidate/{MATES}"]) == (verdict, recall)


def test_a_run_that_is_trained_anew_is_another_training(lake: Lake) -> None:
    version = leave_training(lake, "cleared", recall=0.3)
    register_run(lake, "cleared", "--record-only")
    leave_training(lake, "cleared", recall=0.3, seed=8)
    register_run(lake, "cleared", "--record-only")
    assert {run.data.params["seed"] for run in runs_of(lake, version)} == {"7", "8"}


def test_the_judgement_of_an_earlier_training_of_the_run_counts_for_nothing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    leave_training(lake, "x", recall=None)
    leave_judgement(lake, "x", 0.9, embedding_version="tiny-000000000000")
    training = read_training(lake, "x")
    assert (training.verdict, training.judgement) == ("unjudged", None) and "judgement.json" not in training.files


def test_a_long_training_is_thinned(lake: Lake) -> None:
    leave_training(lake, "long", lines=5_000)
    points = [point for point in tracking._curves(read_training(lake, "long"), 0) if point[0] == "loss"]
    assert len(points) <= tracking.MOST_POINTS + 1
    assert (points[0][3], points[-1][3]) == (0, 49_990)


def test_weights_that_were_changed_after_the_training_are_refused(lake: Lake) -> None:
    leave_training(lake, "tampered")
    Path(training_uri(lake, "tampered"), "weights.safetensors").write_bytes(b"others")
    before = stored_versions(lake), aliases(lake)
    with pytest.raises(TrackingError, match=r"makes tiny-\w+ now, the training made tiny-\w+: train it again"):
        register_run(lake, "tampered")
    assert (stored_versions(lake), aliases(lake)) == before


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("training.json", None, "has left no finished training: .*lacks training.json. Run train_encoder.py"),
        ("training.json", "{", "training.json: not JSON"),
        ("training.json", '{"embedding_version": "x\' or 1=1", "recipe": {}}', "not an embedding version"),
        ("judgement.json", "[]", "judgement.json: a JSON object is needed"),
        ("judgement.json", '{"better": "yes", "sentences": [], "rows": []}', "'better' is missing, or no bool"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    lake = Lake(str(tmp_path))
    leave_training(lake, "x")
    path = Path(training_uri(lake, "x"), file)
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(TrackingError, match=message):
        read_training(lake, "x")


def test_the_mirror_follows_cut_over_and_rollback(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pinlake")
    candidate = leave_training(lake, "to be live")
    register_run(lake, "to be live")
    serve(lake, SHIPPED)
    assert SHIPPED in mirror_live(lake)
    assert aliases(lake) == {LIVE: SHIPPED, CANDIDATE: candidate}
    serve(lake, candidate)
    pointer = read_pointer(lake)
    for _ in range(2):
        mirror_registry.main(["--home", lake.home, "--run-id", "by-hand"])
        assert aliases(lake) == {LIVE: candidate}
    assert register_run(lake, "to be live") == 0, "the task is cleared after the cut-over"
    assert "serves already" in caplog.text and aliases(lake) == {LIVE: candidate}
    assert read_pointer(lake) == pointer
    serve(lake, SHIPPED)
    mirror_live(lake)
    assert aliases(lake) == {LIVE: SHIPPED}
    assert len(versions_of(lake, SHIPPED)) == len(versions_of(lake, candidate)) == 1


def test_a_pointer_without_a_version_is_read_through_its_manifest(lake: Lake) -> None:
    release, version = "2026-11-19-0123456789ab", "pinclip-base-ba9876543210"
    manifest = Manifest(
        release, "2026-11-19", version, "pinclip-base", 1, 8, "Flat", SearchSetting(), 1.0, [], 1, 1, "run", "now", {}
    )
    storage.write_atomic(f"{lake.releases_uri}/{release}/manifest.json", manifest.to_json())
    point_at(lake, LivePointer(release))
    mirror_live(lake)
    assert aliases(lake)[LIVE] == version


def test_before_the_first_release_there_is_nothing_to_mirror(tmp_path: Path) -> None:
    assert "no release is live" in mirror_live(Lake(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_an_alias_wants_a_registered_encoder(lake: Lake) -> None:
    with pytest.raises(TrackingError, match="tiny-000000000000 is not registered"):
        set_alias(lake, CANDIDATE, "tiny-000000000000")
    with pytest.raises(TrackingError, match="not an embedding version"):
        register(lake, "tiny' or 'x")


@pytest.mark.parametrize("home", ["s3://bucket/pinlake", "gs://bucket/pinlake", "/data/100%/pinlake"])
def test_a_home_that_holds_no_database_wants_the_setting(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PINLAKE_MLFLOW_URI", raising=False)
    with pytest.raises(TrackingError, match="PINLAKE_MLFLOW_URI"):
        tracking_uri(Lake(home))
    monkeypatch.setenv("PINLAKE_MLFLOW_URI", "postgresql://host/mlflow")
    assert tracking_uri(Lake(home)) == "postgresql://host/mlflow"


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:s3cr%40t@127.0.0.1:9/mlflow?token=t0ken",
        "sqlite:////proc/x?password=s3cr%40t",
        "postgresql://me:s3cr%40t@127.0.0.1:9/x",
        "s3cr@t",
    ],
)
def test_an_mlflow_that_is_away_stops_no_cut_over_and_no_password_is_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    uri: str,
) -> None:
    import mlflow.store.db.utils

    monkeypatch.setattr(mlflow.store.db.utils, "MAX_RETRY_COUNT", 1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PINLAKE_MLFLOW_URI", uri)
    lake = Lake(str(tmp_path))
    serve(lake, SHIPPED)
    mirror_registry.main(["--home", lake.home, "--run-id", "by-hand"])
    shown = caplog.text + "".join(capfd.readouterr())
    assert "what serves is not affected" in shown
    assert not any(secret in shown for secret in ("s3cr", "t0ken"))


def test_the_process_tells_nobody_and_says_nothing(lake: Lake) -> None:
    """In a process of its own: within pytest MLflow sends nothing anyway."""
    program = """
import socket, sys, threading
def refuse(*args): raise SystemExit(f"connects to {args}")
socket.socket.connect = socket.getaddrinfo = refuse
from embedding.encoder.tracking import aliases
from embedding.tables.lake import Lake
assert "mlflow" not in sys.modules
aliases(Lake(sys.argv[1]))
from mlflow.telemetry import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
assert get_telemetry_client() is None and is_telemetry_disabled()
assert threading.active_count() == 1
"""
    ours = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV")}
    result = subprocess.run(
        [sys.executable, "-c", program, lake.home], env=ours, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
