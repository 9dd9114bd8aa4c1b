"""What an encoding task may use, and how a cluster is asked for it: a GPU by a stage-level resource profile, or CPU cores.

Only the stage that encodes asks for GPUs: reading, hashing, staging and checking run on ordinary executors, which cost a
tenth. Asked for with Spark properties (spark-defaults.conf, --conf, PINLAKE_SPARK_CONF):

| property | meaning | default |
|---|---|---|
| spark.pinlake.encode.gpus | GPUs a task: 1, or 0 for the CPU | 0 |
| spark.pinlake.encode.discoveryScript | finds an executor's GPUs; only with dynamic allocation | the cluster's own |
| spark.pinlake.encode.cores | cores of a GPU executor, which feed its GPU; only with dynamic allocation | 8 |
| spark.pinlake.encode.memory | memory of its JVM; only with dynamic allocation | 4g |

With dynamic allocation (standalone, YARN, Kubernetes) executors with a GPU are started for the stage and given back after it.
Without it the executors must have been started with GPUs (spark.executor.resource.gpu.amount), and the stage's tasks ask for
one each. In `local[...]` there is no GPU scheduling: the CPU encodes, and the log says so. (Spark's documentation,
"Stage Level Scheduling Overview" and "Custom Resource Scheduling and Configuration Overview";
docs/decisions/0009-encoding-at-the-speed-of-the-hardware.md.)
"""

from __future__ import annotations

import os

from pyspark import TaskContext
from pyspark.resource import ExecutorResourceRequests, ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from jobs.session import log

PROPERTIES = "spark.pinlake.encode"
GPU_DEVICE_VARIABLE = "PINLAKE_GPU_DEVICE"
"""In an executor's environment: the kind of device that an address of Spark's resource `gpu` names. "cuda", unless somebody
tries a cluster's scheduling out on a machine without: "cpu"."""


class ResourcesError(ValueError):
    """The properties ask for what this cluster cannot give. The message says which to change."""


def encode_profile(spark: SparkSession) -> ResourceProfile | None:
    """The resources that the encoding stage asks for; None where it runs on the CPUs of the executors that are there.

    Raises ResourcesError where GPUs are asked for that no executor was started with, instead of waiting for them for ever.
    """
    setting = spark.sparkContext.getConf().get
    gpus = setting(f"{PROPERTIES}.gpus", "0")
    if gpus == "0":
        return None
    if gpus != "1":
        raise ResourcesError(f"{PROPERTIES}.gpus is {gpus!r}: a task encodes on one GPU, or (0) on the CPU")
    master = str(spark.sparkContext.master)
    if master.startswith("local") and not master.startswith("local-cluster"):
        log.warning("%s.gpus is set, but %s schedules no GPUs: the CPU encodes", PROPERTIES, master)
        return None
    builder = ResourceProfileBuilder()
    if setting("spark.dynamicAllocation.enabled", "false") == "true":
        cores, script = int(setting(f"{PROPERTIES}.cores", "8") or 8), setting(f"{PROPERTIES}.discoveryScript", "") or ""
        executor = ExecutorResourceRequests().cores(cores).memory(setting(f"{PROPERTIES}.memory", "4g") or "4g")
        builder = builder.require(executor.resource("gpu", 1, script))
        return builder.require(TaskResourceRequests().cpus(cores).resource("gpu", 1)).build
    if setting("spark.executor.resource.gpu.amount", "0") == "0":
        raise ResourcesError(
            f"{PROPERTIES}.gpus is 1, but the executors were started without GPUs: set spark.executor.resource.gpu.amount "
            "(and a discoveryScript), or spark.dynamicAllocation.enabled so that the stage starts its own"
        )
    if master.startswith("spark://") and not setting("spark.executor.cores", ""):
        raise ResourcesError(
            f"{PROPERTIES}.gpus is 1, but an executor of {master} takes whatever cores its worker has: set "
            "spark.executor.cores, so that a task can ask for its GPU's share of them"
        )
    cpus = int(setting("spark.executor.cores", "1") or 1) // int(setting("spark.executor.resource.gpu.amount", "1") or 1)
    return builder.require(TaskResourceRequests().cpus(max(1, cpus)).resource("gpu", 1)).build


def task_cores() -> int:
    """How many cores this task may keep busy: those that Spark gave it."""
    context = TaskContext.get()
    return int(context.cpus()) if context else 1


def task_device() -> str:
    """Where this task encodes: the GPU whose address Spark gave it ("cuda:1"), or "cpu".

    By address, and not by CUDA_VISIBLE_DEVICES: Spark reuses a Python worker for the next task, maybe on another GPU, and what
    a process sees cannot change once CUDA is up.
    """
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    return f"{os.environ.get(GPU_DEVICE_VARIABLE, 'cuda')}:{gpu.addresses[0]}" if gpu else "cpu"
