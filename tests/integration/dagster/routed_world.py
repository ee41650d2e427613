"""A Dagster instance with a warm worker, a code location of routed ops, and nodes for its hosts."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    RunsFilter,
    build_sensor_context,
)
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.monitoring.run_monitoring import monitor_started_run
from dagster_graphql.test.utils import execute_dagster_graphql
from uuid_utils.compat import uuid7

from resources import DockerHostsResource, StoreResource
from sensors import host_ops
from tests.code_locations import loaded_location
from tests.integration.dagster import engines
from vyvo_dagster.execution.routing.engines import Labels
from vyvo_dagster.settings import HostsSettings, S3Settings
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect_sync

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(__file__).parent
LOCATION = "routed"
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation($id: String!) { terminateRun(runId: $id) { __typename } }"""
GIB = 1 << 30


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds:g} s"
        time.sleep(0.1)


@dataclass
class World:
    """One instance, one worker, and the hosts."""

    instance: DagsterInstance
    context: WorkspaceProcessContext
    store: StoreResource
    urls: dict[str, str]
    home: Path
    worker: "subprocess.Popen[bytes] | None" = None
    began: float = field(default_factory=time.time)

    def start_worker(self) -> None:
        argv = [sys.executable, "-m", "celery", "-A", "vyvo_dagster.execution.celery_app"]
        argv += ["worker", "--pool", "prefork", "--concurrency", "2", "-Q", "dagster"]
        argv += ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
        log = self.home / "worker.log"
        log.unlink(missing_ok=True)
        env = {**os.environ, "PYTHONPATH": str(FOLDER)}
        with log.open("wb") as out:
            self.worker = subprocess.Popen(
                argv, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True
            )
        until(lambda: b" ready." in log.read_bytes(), what="the worker")

    def kill_worker(self) -> None:
        if self.worker is not None:
            os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait(10)
            self.worker = None

    def join(self, name: str, *, gpus: int = 0, **labels: str) -> None:
        """Register a node, as its agent does."""
        has = {
            "hostname": name, "cpus": 4, "memory_bytes": 8 * GIB, "engine": "docker",
            "gpus": [
                {"index": i, "uuid": f"GPU-{name}-{i}", "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB}
                for i in range(gpus)
            ],
        }  # fmt: skip
        self.store.call(
            lambda db: db.nodes.join(
                id=uuid7(), name=name, boot_id=uuid7(), labels=labels, capabilities=has
            )
        )

    def forget(self, name: str) -> None:
        """Take a node out of the registry."""
        self.store.call(
            lambda db: db.connection.execute(
                sa.text("delete from nodes where name = :name"), {"name": name}
            )
        )

    def graphql(self, document: str, **variables: Any) -> Any:
        return execute_dagster_graphql(
            self.context.create_request_context(), document, variables
        ).data

    def launch(self, job: str, config: dict[str, Any] | None = None) -> str:
        selector = {
            "jobName": job,
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION,
        }
        answer = self.graphql(LAUNCH, params={"selector": selector, "runConfigData": config or {}})
        assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        return answer["launchRun"]["run"]["runId"]

    def terminate(self, run_id: str) -> None:
        self.graphql(TERMINATE, id=run_id)

    def tick(self) -> str:
        """One evaluation of the sensor `host_ops`; what it says."""
        hosts = DockerHostsResource.of(self.store, HostsSettings())
        with build_sensor_context(
            instance=self.instance, resources={"docker_hosts": hosts}
        ) as context:
            return host_ops.evaluate_tick(context).skip_message or ""

    def forget_lease(self, run_id: str) -> None:
        redis = connect_sync(os.environ["VYVO_REDIS_URL"])
        redis.delete(keys.run_lease(run_id))
        redis.close()

    def monitor(self, run_id: str, *, resumes: bool = False) -> None:
        """What the daemon does for a run that is under way; with `resumes` of one that resumes."""
        (record,) = self.instance.get_run_records(RunsFilter(run_ids=[run_id]))
        with self._resuming() if resumes else nullcontext(self.instance) as instance:
            monitor_started_run(
                instance,
                self.context.create_request_context(),
                record,
                logging.getLogger(__name__),
            )

    @contextmanager
    def _resuming(self) -> Iterator[DagsterInstance]:
        config = yaml.safe_load((self.home / "dagster.yaml").read_text())
        config["run_monitoring"]["max_resume_run_attempts"] = 1
        folder = self.home / "resuming"
        folder.mkdir(exist_ok=True)
        (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
        with DagsterInstance.from_config(str(folder)) as instance:
            yield instance

    def status(self, run_id: str) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def ended(self, run_id: str, seconds: float = 120.0) -> DagsterRunStatus:
        until(lambda: self.status(run_id).value in {"SUCCESS", "FAILURE", "CANCELED"}, seconds)
        return self.status(run_id)

    def said(self, run_id: str, step: str | None = None) -> list[str]:
        """Messages of the event log, of one step or all."""
        return [
            e.message for e in self.instance.all_logs(run_id) if step is None or e.step_key == step
        ]

    def told(self, run_id: str, step: str, pattern: str) -> "re.Match[str] | None":
        """What a step said, if it did yet."""
        found = (re.search(pattern, message) for message in self.said(run_id, step))
        return next((match for match in found if match), None)

    def where(self, run_id: str, step: str, seconds: float = 60.0) -> tuple[str | None, int]:
        """Container and pid that a step says it runs in; waits for it to say so."""
        until(lambda: self.told(run_id, step, "container="), seconds, f"step {step}")
        match = self.told(run_id, step, r"container=(\w+) pid=(\d+)")
        assert match is not None
        return (None if match[1] == "None" else match[1]), int(match[2])

    def launched(self, run_id: str, step: str) -> dict[str, Any]:
        """Metadata of the launch of a step's container."""
        for entry in self.instance.all_logs(run_id, of_type=DagsterEventType.STEP_WORKER_STARTING):
            if entry.step_key == step and entry.dagster_event:
                data: Any = entry.dagster_event.engine_event_data
                return {name: value.value for name, value in data.metadata.items()}
        return {}

    def containers(self, run_id: str) -> dict[str, list[str]]:
        """Host → ids of all containers of the run, in any state."""
        found = {}
        for name, url in self.urls.items():
            client = engines.client(url)
            listed = client.containers.list(
                all=True, filters={"label": f"{Labels.RUN}={run_id}"}, ignore_removed=True
            )
            found[name] = [c.id for c in listed]
            client.close()
        return {name: ids for name, ids in found.items() if ids}

    def started_on(self, container: str) -> list[str]:
        """Engines that say that they started this container."""
        found = []
        for name, url in self.urls.items():
            client = engines.client(url)
            events = client.events(
                since=int(self.began) - 1,
                until=int(time.time()) + 1,
                filters={"container": container, "event": "start"},
                decode=True,
            )
            if list(events):
                found.append(name)
            client.close()
        return found


@contextmanager
def opened(
    home: Path,
    urls: dict[str, str],
    image: str,
    postgres_dsn: str,
    dagster_dsn: str,
    redis_url: str,
    s3: S3Settings,
) -> Iterator[World]:
    shutil.copy(ROOT / "dagster.yaml", home)
    weights = home / "weights"
    weights.mkdir()
    (weights / "model.bin").write_text("weights of the node")
    env = {
        "DAGSTER_HOME": str(home),
        "VYVO_DAGSTER_POSTGRES_URL": dagster_dsn.replace("postgresql://", "postgresql+psycopg2://"),
        "VYVO_POSTGRES_DSN": postgres_dsn,
        "VYVO_REDIS_URL": redis_url,
        "VYVO_DATA_DIR": str(home / "data"),
        "VYVO_S3_ENDPOINT": s3.endpoint,
        "VYVO_S3_ACCESS_KEY": s3.access_key,
        "VYVO_S3_SECRET_KEY": s3.secret_key.get_secret_value(),
        "VYVO_S3_BUCKET_PREFIX": s3.bucket_prefix,
        "VYVO_HOSTS_ENGINES": json.dumps(
            {
                **urls,
                "late": urls["default"],
                "lossy": f"unix://{home}/lossy.sock",
                "gpuhost": f"unix://{home}/gpu.sock",
            }
        ),
        "VYVO_HOSTS_IMAGE": image,
        "VYVO_HOSTS_NETWORK": "host",
        "VYVO_HOSTS_WEIGHTS_DIR": str(weights),
    }
    store = StoreResource(dsn=postgres_dsn)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(FOLDER))
        target = ModuleTarget("routed_location", None, str(FOLDER), LOCATION)
        with (
            DagsterInstance.get() as instance,
            loaded_location(instance, target) as context,
        ):
            world = World(instance, context, store, urls, home)
            world.join("default")
            world.join("host2")
            world.join("host3", pool="three")
            try:
                world.start_worker()
                yield world
            finally:
                world.kill_worker()
                store.close()
