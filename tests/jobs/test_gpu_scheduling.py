"""GPUs of a cluster, without a GPU: Spark's own standalone processes, whose worker's discovery script invents two addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.drill_processes import Cluster, standalone
from benchmarks.spark import ProgramFailedError, submit
from demo.days import DEMO_DAYS
from embedding.contracts import PIN_EMBEDDINGS, export_day_folder
from embedding.encoder.config import embedding_version, load_config
from embedding.tables.lake import Lake
from embedding.tables.scan import read_rows
from jobs import embed_pins, land_exports
from jobs.session import spark_session
from tests.conftest import Exports
from tests.jobs.platform_days import write_day
from tests.test_log_lines import told

DS, PINS = DEMO_DAYS[0], 8
ASKED = {"spark.pinlake.encode.gpus": "1"}
DISCOVERED = json.dumps({"name": "gpu", "addresses": ["0", "1"]})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """A worker with two GPUs, and the folder where its executors leave their logs."""
    folder = tmp_path_factory.mktemp("cluster")
    script = folder / "discover.sh"
    script.write_text(f"#!/bin/sh\necho '{DISCOVERED}'\n")
    script.chmod(0o755)
    gpus = {"spark.worker.resource.gpu.amount": "2", "spark.worker.resource.gpu.discoveryScript": str(script)}
    with standalone(folder, gpus) as running:
        yield running, folder / "work"


@pytest.fixture(scope="module")
def landed(exports: Exports, spark_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake in which a day of a few pins has landed."""
    folder = tmp_path_factory.mktemp("gpus")
    pins = pq.read_table(export_day_folder(str(exports.folder), DS) + "/pins").slice(0, PINS).to_pylist()
    write_day(folder / "exports", DS, {"pins": pins})
    lake = Lake(str(folder / "landed"))
    land_exports.main([*about(lake), "--exports", str(folder / "exports")])
    return lake


def about(lake: Lake) -> list[str]:
    return ["--home", lake.home, "--ds", DS, "--run-id", "by-hand"]


def test_gpus_that_no_executor_has_are_refused_and_not_waited_for(cluster: tuple[Cluster, Path], tmp_path: Path) -> None:
    running, _ = cluster
    with pytest.raises(ProgramFailedError, match="the executors were started without GPUs") as refused:
        submit("jobs/embed_pins.py", *about(Lake(str(tmp_path))), master=running.master, conf={**running.conf, **ASKED})
    assert "exit status 2" in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_local_mode_says_that_the_cpu_encodes(
    spark_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context = spark_session("gpus").sparkContext
    asking = context.getConf().setAll(list(ASKED.items()))
    monkeypatch.setattr(context, "getConf", lambda: asking)
    embed_pins.main(about(Lake(str(tmp_path))))
    assert re.search(r"spark.pinlake.encode.gpus is set, but local\S* schedules no GPUs: the CPU encodes", caplog.text)


def test_each_task_encodes_on_its_own_gpu(cluster: tuple[Cluster, Path], landed: Lake) -> None:
    running, work = cluster
    conf = {
        **running.conf,
        "spark.executor.cores": "2",
        "spark.executor.resource.gpu.amount": "2",
        # There is no CUDA here: the addresses are those of a CPU.
        "spark.executorEnv.PINLAKE_GPU_DEVICE": "cpu",
    }
    driver = submit("jobs/embed_pins.py", *about(landed), master=running.master, conf={**conf, **ASKED})
    said = "\n".join(log.read_text(errors="replace") for log in work.rglob("stderr"))
    assert set(re.findall(r"encodes on (\S+) with (\d) cores", said)) == {("cpu:0", "1"), ("cpu:1", "1")}
    version = str(embedding_version(load_config("pinclip-base")))
    for log in (said, driver.output):
        assert {line[1:4] for line in told(log)} == {(DS, "by-hand", version)}, "in executors and in the driver"
    assert read_rows(landed.open(PIN_EMBEDDINGS), ["pin_id"]).num_rows == PINS
