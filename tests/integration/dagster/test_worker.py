"""The launcher and a real Celery worker: runs begin, end, are terminated, and outlive a worker."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from celery.app.control import Control
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.launcher import WorkerStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster_graphql.test.utils import execute_dagster_graphql

from tests.code_locations import loaded_location
from vyvo_dagster.execution.lease import Lease, read_lease
from vyvo_dagster.execution.names import CODE_LOCATION, CODE_LOCATION_MODULE
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import Redis, connect_sync

# One after the other: they share the engines, or keep both cores busy.
pytestmark = pytest.mark.xdist_group("hosts")

ROOT = Path(__file__).resolve().parents[3]
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": CODE_LOCATION}
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation($id: String!, $policy: TerminateRunPolicy) {
  terminateRun(runId: $id, terminatePolicy: $policy) { __typename } }"""


@dataclass
class Stack:
    """A Dagster instance of dagster.yaml with the code location loaded, and a worker."""

    instance: DagsterInstance
    context: WorkspaceProcessContext
    worker: "subprocess.Popen[bytes]"
    redis: Redis

    def graphql(self, document: str, **variables: Any) -> Any:
        result = execute_dagster_graphql(self.context.create_request_context(), document, variables)
        assert not result.errors, result.errors
        return result.data

    def terminate(self, run_id: str, policy: str = "SAFE_TERMINATE") -> None:
        answer = self.graphql(TERMINATE, id=run_id, policy=policy)
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer

    def launch_training(self, epochs: int) -> str:
        config = {"ops": {"digits_diffusion_training": {"config": {"epochs": epochs}}}}
        selector = {"jobName": "train_digits_diffusion", **REPOSITORY}
        answer = self.graphql(LAUNCH, params={"selector": selector, "runConfigData": config})
        assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        return answer["launchRun"]["run"]["runId"]

    def status(self, run_id: str) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def steps(self, run_id: str) -> list[str | None]:
        """The steps that were begun."""
        return [
            e.step_key
            for e in self.instance.all_logs(run_id)
            if e.dagster_event_type is DagsterEventType.STEP_START
        ]

    def begun(self, run_id: str) -> None:
        """Wait until the step itself is under way."""
        until(lambda: bool(self.steps(run_id)))
        time.sleep(0.5)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(
    postgres_dsn: str,
    empty_postgres_dsn: str,
    redis_url: str,
    s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("dagster")
    shutil.copy(ROOT / "dagster.yaml", home)
    env = {
        "DAGSTER_HOME": str(home),
        "VYVO_DAGSTER_POSTGRES_URL": empty_postgres_dsn.replace(
            "postgresql://", "postgresql+psycopg2://"
        ),
        "VYVO_POSTGRES_DSN": postgres_dsn,
        "VYVO_REDIS_URL": redis_url,
        "VYVO_DATA_DIR": str(home / "data"),
        "VYVO_S3_ENDPOINT": s3_settings.endpoint,
        "VYVO_S3_ACCESS_KEY": s3_settings.access_key,
        "VYVO_S3_SECRET_KEY": s3_settings.secret_key.get_secret_value(),
        "VYVO_S3_BUCKET_PREFIX": s3_settings.bucket_prefix,
    }
    redis = connect_sync(redis_url)
    with pytest.MonkeyPatch.context() as environ, (home / "worker.log").open("wb") as log:
        for name, value in env.items():
            environ.setenv(name, value)
        argv = [sys.executable, "-m", "celery", "-A", "vyvo_dagster.execution.celery_app"]
        argv += ["worker", "--pool", "prefork", "--concurrency", "1", "-Q", "dagster"]
        argv += ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
        worker = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        target = ModuleTarget(CODE_LOCATION_MODULE, None, str(ROOT), CODE_LOCATION)
        try:
            with (
                DagsterInstance.get() as instance,
                loaded_location(instance, target) as context,
            ):
                until(lambda: b" ready." in (home / "worker.log").read_bytes())
                yield Stack(instance, context, worker, redis)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)
            redis.close()


def test_a_run_is_executed_by_the_worker(stack: Stack) -> None:
    run_id = stack.launch_training(epochs=1)
    until(lambda: stack.status(run_id).value in {"SUCCESS", "FAILURE"})
    assert stack.status(run_id) is DagsterRunStatus.SUCCESS
    until(lambda: read_lease(stack.redis, run_id) is Lease.LOST)


def test_a_terminated_run_is_canceled_and_the_worker_takes_the_next(stack: Stack) -> None:
    run_id = stack.launch_training(epochs=10_000)
    stack.begun(run_id)
    assert read_lease(stack.redis, run_id) is Lease.RUNNING
    waiting = stack.launch_training(epochs=10_000)
    assert read_lease(stack.redis, waiting) is Lease.QUEUED

    # Dagster marks a run that has not begun; the worker must not begin it afterwards.
    stack.terminate(waiting, "MARK_AS_CANCELED_IMMEDIATELY")
    assert stack.status(waiting) is DagsterRunStatus.CANCELED
    stack.terminate(run_id)
    until(lambda: stack.status(run_id) is DagsterRunStatus.CANCELED)

    after = stack.launch_training(epochs=1)
    until(lambda: stack.status(after) is DagsterRunStatus.SUCCESS)
    assert stack.status(waiting) is DagsterRunStatus.CANCELED
    assert not stack.steps(waiting)


def test_a_terminated_run_ends_where_its_worker_does_not_hear_of_it(stack: Stack) -> None:
    run_id = stack.launch_training(epochs=10_000)
    stack.begun(run_id)
    # A worker that is connecting anew misses the broadcast.
    with patch.object(Control, "revoke"):
        stack.terminate(run_id)
    until(lambda: stack.status(run_id) is DagsterRunStatus.CANCELED)
    until(lambda: read_lease(stack.redis, run_id) is Lease.LOST)
    assert not stack.redis.exists(keys.run_ending(run_id))


def test_a_run_whose_lease_is_gone_is_found_unhealthy(stack: Stack) -> None:
    run_id = stack.launch_training(epochs=10_000)
    stack.begun(run_id)
    run = stack.instance.get_run_by_id(run_id)
    assert run is not None
    launcher: Any = stack.instance.run_launcher
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    stack.redis.delete(keys.run_lease(run_id))
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
    stack.terminate(run_id)
    until(lambda: stack.status(run_id) is DagsterRunStatus.CANCELED)


def test_a_stopped_worker_gives_its_run_back(stack: Stack) -> None:
    run_id = stack.launch_training(epochs=10_000)
    stack.begun(run_id)
    before = time.monotonic()
    stack.worker.terminate()
    stack.worker.wait(15)
    assert time.monotonic() - before < 10
    run = stack.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is DagsterRunStatus.FAILURE
    # By these tags the daemon launches the retry.
    assert run.tags["dagster/failure_reason"] == "UNEXPECTED_TERMINATION"
    assert run.tags["dagster/will_retry"] == "true"
    with pytest.raises(ProcessLookupError):
        os.killpg(stack.worker.pid, 0)
