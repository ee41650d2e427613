"""The run launcher: hands runs of workflows to the engine by their rows, all others to Celery."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from uuid import UUID

from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import RESUME_RETRY_TAG
from typing_extensions import override

from vyvo_dagster.domain.workflow.state import RUN, TriggerKind
from vyvo_dagster.errors import InvalidInput, NotFound
from vyvo_dagster.execution.launcher import LeasedCeleryRunLauncher
from vyvo_dagster.execution.workflows.jobs import INPUTS_RESOURCE
from vyvo_dagster.execution.workflows.names import RUN_TAG, VERSION_TAG
from vyvo_dagster.settings import Settings
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.workflows.starting import retry_run, start_run
from vyvo_dagster.workflows.stopping import stop_run

__all__ = ["WorkflowRunLauncher"]

T = TypeVar("T")

_SECONDS: Final = 20.0


class WorkflowRunLauncher(LeasedCeleryRunLauncher):
    """As LeasedCeleryRunLauncher, whose configuration it takes, for all but the runs of workflows.

    Those become rows, which the engine drives; what the UI shows of them is what it reports. The
    registry's database is the one that `VYVO_POSTGRES_DSN` names.
    """

    @override
    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        version_id = run.tags.get(VERSION_TAG)
        if version_id is None:
            super().launch_run(context)
            return
        inputs = _inputs(run)
        from_failure = run.tags.get(RESUME_RETRY_TAG) == "true"
        if not from_failure and self._is_part(run):
            raise InvalidInput(
                "steps of a workflow cannot be chosen: run it whole, or again from its failure"
            )

        async def start(store: Store) -> UUID:
            version = await store.workflows.version_by_id(UUID(version_id))
            if version is None:
                raise NotFound(f"no workflow version {version_id}")
            parent = await _parent(store, run)
            if from_failure:
                if parent is None:
                    raise NotFound("the run that failed is not known to the workflow engine")
                made, _ = await retry_run(store, parent, dagster_run_id=run.run_id)
            else:
                made, _ = await start_run(
                    store, version, inputs, TriggerKind.DAGSTER, dagster_run_id=run.run_id,
                    retry_of=None if parent is None else parent.id,
                )  # fmt: skip
            return made.id

        started = _in_transaction(start)
        self._instance.add_run_tags(run.run_id, {RUN_TAG: str(started)})

    def _is_part(self, run: DagsterRun) -> bool:
        """Whether only some of the job's steps were asked for."""
        if run.op_selection or run.execution_plan_snapshot_id is None:
            return bool(run.op_selection)
        plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        return {step.key for step in plan.steps} != set(plan.step_keys_to_execute)

    @override
    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or VERSION_TAG not in run.tags:
            return super().terminate(run_id)

        async def cancel(store: Store) -> bool:
            found = await store.workflow_runs.of_dagster(run_id)
            found = found and await store.workflow_runs.get(found.id, None, lock=True)
            if found is None or found.state in RUN.terminal:
                return False
            await stop_run(store, found)
            return True

        asked = _in_transaction(cancel)
        if asked:
            self._instance.report_run_canceling(run)
        return asked

    @override
    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        if VERSION_TAG in run.tags:
            # Engines watch over each other by the leases of their runs.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return super().check_run_worker_health(run)


async def _parent(store: Store, run: DagsterRun) -> WorkflowRun | None:
    """The run of the same workflow that this one does again, locked; None for a first one."""
    if run.parent_run_id is None:
        return None
    found = await store.workflow_runs.of_dagster(run.parent_run_id)
    return found and await store.workflow_runs.get(found.id, None, lock=True)


def _inputs(run: DagsterRun) -> dict[str, Any]:
    config: Any = run.run_config
    for key in ("resources", INPUTS_RESOURCE, "config", "inputs"):
        config = config.get(key) or {}
    return dict(config)


def _in_transaction(work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Do `work` in a transaction, from code that may itself be called on an event loop."""

    async def main() -> T:
        database = Database(Settings().postgres_dsn, pool_size=0)
        try:
            async with asyncio.timeout(_SECONDS), database.transaction() as store:
                return await work(store)
        finally:
            await database.close()

    with ThreadPoolExecutor(1, thread_name_prefix="workflow-launch") as thread:
        return thread.submit(asyncio.run, main()).result()
