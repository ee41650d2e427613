"""dagster-celery's run launcher, made to notice workers and messages that are gone.

`dagster.yaml` names it; the webserver and the daemon load it.
"""

from typing import Any

from dagster import DagsterInvariantViolationError
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import pack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from redis.exceptions import RedisError
from typing_extensions import override

from vyvo_dagster.execution.broker import CELERY_CONFIG
from vyvo_dagster.execution.lease import Lease, note_queued, read_lease
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
        run = context.dagster_run
        origin = run.job_code_origin
        if origin is None:
            raise DagsterInvariantViolationError(f"run {run.run_id} does not say where its code is")
        arguments = ExecuteRunArgs(
            job_origin=origin,
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        note_queued(self._redis, run.run_id)
        signature: Any = self.celery.signature(
            TASK_EXECUTE_JOB_NAME,
            kwargs={"execute_job_args_packed": pack_value(arguments)},
            immutable=True,
        )
        self._launch_celery_task_run(
            run=run, task_signature=signature, routing_key=TASK_EXECUTE_JOB_NAME
        )

    @override
    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        # Before the signal: it tells the interrupted run that it was asked to end, and did not lose
        # its worker.
        self._instance.report_run_canceling(run)
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
