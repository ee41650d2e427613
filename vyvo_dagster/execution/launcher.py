"""dagster-celery's run launcher, made to notice workers and messages that are gone.

`dagster.yaml` names it; the webserver and the daemon load it.
"""

from typing import Any

from dagster import DagsterInvariantViolationError
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    WorkerStatus,
)
from dagster._core.origin import JobPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import pack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME, TASK_RESUME_JOB_NAME
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from redis.exceptions import RedisError
from typing_extensions import override

from vyvo_dagster.execution.broker import CELERY_CONFIG
from vyvo_dagster.execution.lease import Lease, ask_to_end, note_queued, read_lease
from vyvo_dagster.streams.client import Redis, connect_sync

__all__ = ["LeasedCeleryRunLauncher"]


class LeasedCeleryRunLauncher(CeleryRunLauncher):
    """Starts runs as tasks of warm Celery workers, over Redis.

    Takes the configuration of CeleryRunLauncher; `broker` must be a Redis URL, and is the results
    backend too.
    """

    @override
    def app_args(self) -> dict[str, Any]:
        args = super().app_args()
        return {
            **args,
            "backend": self.broker,
            "config_source": {**(args["config_source"] or {}), **CELERY_CONFIG},
        }

    @override
    def launch_run(self, context: LaunchRunContext) -> None:
        """Send the run to a worker.

        By the task's name: dagster-celery would register the task anew with every launch, of which
        Celery warns.
        """
        arguments = ExecuteRunArgs(
            job_origin=_origin(context.dagster_run),
            run_id=context.dagster_run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        self._send(context.dagster_run, TASK_EXECUTE_JOB_NAME, "execute_job", arguments)

    @override
    def resume_run(self, context: ResumeRunContext) -> None:
        """Send a run whose worker is gone to another, which looks after what it had started.

        dagster-celery's own names its argument as none of its tasks does, so that every resumed
        run fails.
        """
        arguments = ResumeRunArgs(
            job_origin=_origin(context.dagster_run),
            run_id=context.dagster_run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        self._send(context.dagster_run, TASK_RESUME_JOB_NAME, "resume_job", arguments)

    def _send(
        self, run: DagsterRun, task: str, what: str, arguments: ExecuteRunArgs | ResumeRunArgs
    ) -> None:
        note_queued(self._redis, run.run_id)
        signature: Any = self.celery.signature(
            task, kwargs={f"{what}_args_packed": pack_value(arguments)}, immutable=True
        )
        self._launch_celery_task_run(run=run, task_signature=signature, routing_key=task)

    @override
    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        # Before the signal: it tells the interrupted run that it was asked to end, and did not lose
        # its worker.
        self._instance.report_run_canceling(run)
        ask_to_end(self._redis, run_id)
        self.celery.control.revoke(run.tags[DAGSTER_CELERY_TASK_ID_TAG], terminate=True)
        return True

    @override
    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        try:
            lease = read_lease(self._redis, run.run_id)
        except RedisError:
            # A run is not failed because Redis is away for a moment.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if lease is Lease.LOST:
            return CheckRunHealthResult(
                WorkerStatus.FAILED, "The worker that executed the run is gone."
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    @property
    def _redis(self) -> Redis:
        if not hasattr(self, "_connection"):
            self._connection = connect_sync(self.broker or "redis://127.0.0.1:6379/0")
        return self._connection


def _origin(run: DagsterRun) -> JobPythonOrigin:
    origin = run.job_code_origin
    if origin is None:
        raise DagsterInvariantViolationError(f"run {run.run_id} does not say where its code is")
    return origin
