"""A code location of jobs whose ops run on several hosts; the same file is in the hosts' image."""

import os
import re
import signal
import time
from pathlib import Path

from dagster import (
    Definitions,
    EnvVar,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    RetryPolicy,
    job,
    op,
)

from ops import run_in_runner
from resources import DockerHostsResource, JsonValues, ObjectsResource, StoreResource
from resources.docker_hosts import hosts_executor
from vyvo_dagster.execution.names import gpu_pool
from vyvo_dagster.settings import HostsSettings, S3Settings

# The test waits for what ops say; none of them outlives it.
LONG = 600.0
DONE = Out(Nothing)


def where(context: OpExecutionContext) -> None:
    """Say which container this is, as its own mounts name it, and which process."""
    found = re.search(r"/containers/([0-9a-f]{64})/", Path("/proc/self/mountinfo").read_text())
    context.log.info("container=%s pid=%d", found[1] if found else None, os.getpid())


@op(tags={"vyvo/host": "default"}, out=DONE)
def on_default(context: OpExecutionContext) -> None:
    where(context)


@op(tags={"vyvo/host": "host2"}, out=DONE)
def on_host2(context: OpExecutionContext) -> None:
    where(context)


@op(tags={"vyvo/pool": "three"}, out=DONE)
def on_pool_three(context: OpExecutionContext) -> None:
    where(context)


@op(ins={"after": In(Nothing)}, out=DONE)
def untagged(context: OpExecutionContext) -> None:
    where(context)


@op(tags={"vyvo/process": "own"}, out=DONE)
def own_process(context: OpExecutionContext) -> None:
    where(context)


@job
def three_hosts() -> None:
    untagged([on_default(), on_host2(), on_pool_three()])
    own_process()


@op(tags={"vyvo/host": "late"}, out=DONE)
def on_late(context: OpExecutionContext) -> None:
    where(context)


@job
def waiting() -> None:
    on_late()


@op(tags={"vyvo/host": "lossy"}, out=DONE)
def on_lossy(context: OpExecutionContext) -> None:
    where(context)


@job
def lossy() -> None:
    on_lossy()


@op(tags={"vyvo/host": "host2"}, out=DONE)
def long_on_host2(context: OpExecutionContext) -> None:
    where(context)
    time.sleep(LONG)


@op(tags={"vyvo/host": "host3"}, out=DONE)
def deaf_on_host3(context: OpExecutionContext) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    where(context)
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        time.sleep(0.1)


@op(tags={"vyvo/host": "host2"}, out=DONE)
def told_on_host2(context: OpExecutionContext) -> None:
    """Ends when the node's weights cache has a file of the run's name."""
    where(context)
    deadline = time.monotonic() + LONG
    while not Path("/weights", context.run_id).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@op(out=DONE)
def long_here_unless_told(context: OpExecutionContext) -> None:
    where(context)
    deadline = time.monotonic() + LONG
    while not Path(os.environ["VYVO_HOSTS_WEIGHTS_DIR"], context.run_id).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@job
def resumable() -> None:
    told_on_host2()
    long_here_unless_told()


@op(out=DONE)
def long_here(context: OpExecutionContext) -> None:
    where(context)
    time.sleep(LONG)


@op(tags={"vyvo/process": "own"}, out=DONE)
def long_beside(context: OpExecutionContext) -> None:
    where(context)
    time.sleep(LONG)


@job
def long() -> None:
    long_on_host2()
    deaf_on_host3()
    long_beside()


@job
def long_with_one_here() -> None:
    long_on_host2()
    long_here()


@op(tags={"vyvo/host": "default", "vyvo/memory": "384MiB", "vyvo/cpus": "0.5"}, out=DONE)
def limited(context: OpExecutionContext) -> None:
    cgroup = Path("/sys/fs/cgroup")
    v2, v1 = cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"
    context.log.info("memory=%s", (v2 if v2.exists() else v1).read_text().strip())
    context.log.info("weights=%s", Path("/weights/model.bin").read_text())
    try:
        Path("/weights/other").write_text("x")
    except OSError as error:
        context.log.info("write=%d", error.errno)


@op(tags={"vyvo/host": "default", "vyvo/memory": "384MiB"}, ins={"after": In(Nothing)}, out=DONE)
def too_large() -> None:
    held = b"x" * (1 << 30)
    del held


@job
def limits() -> None:
    too_large(limited())


@op(
    tags={"vyvo/host": "default"},
    out=DONE,
    retry_policy=RetryPolicy(max_retries=1, delay=0),
)
def fails_once(context: OpExecutionContext) -> None:
    where(context)
    if context.retry_number == 0:
        raise ValueError("the first time")


@op(tags={"vyvo/host": "default", "vyvo/gpu": "1GB"}, out=DONE)
def badly_tagged() -> None: ...


@job
def attempts() -> None:
    fails_once()
    badly_tagged()


@op(tags={"vyvo/gpu": "h100"}, out=DONE)
def on_a_gpu() -> None: ...


@job
def gpu() -> None:
    on_a_gpu()


@op(tags={"vyvo/host": "host2"}, out=Out(io_manager_key="json_values"))
def gives() -> dict[str, object]:
    return {"from": os.getpid(), "pi": [3, 1.4, None, "é"]}


@op(tags={"vyvo/host": "default"}, out=Out(io_manager_key="json_values"))
def hands_on(context: OpExecutionContext, value: dict[str, object]) -> dict[str, object]:
    where(context)
    return {**value, "by": "default"}


@op(out=DONE)
def takes(context: OpExecutionContext, value: dict[str, object]) -> None:
    where(context)
    context.log.info("took %s", value)


@job
def values() -> None:
    takes(hands_on(gives()))


def hold(context: OpExecutionContext) -> None:
    context.log.info("gpu=%s from=%f", os.environ["NVIDIA_VISIBLE_DEVICES"], time.time())
    time.sleep(3.0)
    context.log.info("until=%f", time.time())


@op(tags={"vyvo/host": "gpuhost", "vyvo/gpu": "h100"}, out=DONE)
def holds_a_gpu(context: OpExecutionContext) -> None:
    hold(context)


@job
def gpus() -> None:
    for number in range(3):
        holds_a_gpu.alias(f"hold_{number}")()


@op(
    tags={"vyvo/host": "gpuhost", "vyvo/gpu": "1"},
    pool=gpu_pool(host="gpuhost"),
    out=DONE,
)
def holds_a_slot(context: OpExecutionContext) -> None:
    hold(context)


@job
def pooled() -> None:
    for number in range(3):
        holds_a_slot.alias(f"hold_{number}")()


_store = StoreResource(dsn=EnvVar("VYVO_POSTGRES_DSN"))

_s3 = S3Settings()
_objects = ObjectsResource(
    endpoint=_s3.endpoint,
    access_key=_s3.access_key,
    secret_key=_s3.secret_key.get_secret_value(),
    region=_s3.region,
    bucket_prefix=_s3.bucket_prefix,
)

defs = Definitions(
    jobs=[
        three_hosts,
        waiting,
        lossy,
        long,
        long_with_one_here,
        resumable,
        limits,
        attempts,
        gpu,
        gpus,
        pooled,
        values,
        run_in_runner,
    ],
    executor=hosts_executor(HostsSettings()),
    resources={
        "store": _store,
        "json_values": JsonValues(objects=_objects),
        "docker_hosts": DockerHostsResource.of(_store, HostsSettings()),
    },
)
