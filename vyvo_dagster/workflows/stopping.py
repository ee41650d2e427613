"""Asking runs to end. One that no engine has taken yet ends at once, whether an engine runs or not."""

from datetime import UTC, datetime

from uuid_utils.compat import uuid7

from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.progress import advance
from vyvo_dagster.domain.workflow.run import Run, RunEnd, Step
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.workflow_records import WorkflowRun

__all__ = ["stop_run"]


async def stop_run(store: Store, run: WorkflowRun) -> tuple[list[Step], RunEnd | None]:
    """Ask a run that the caller's transaction has locked to end.

    Returns the steps that ended by it, and its end, where no engine had it: those who follow it are
    to be told. Nothing changes in a run that has ended.
    """
    if not await store.workflow_runs.request_cancel(run.id) or run.state is not RunState.QUEUED:
        return [], None
    version = await store.workflows.version_by_id(run.version_id)
    assert version is not None  # a run refers to it
    steps = (await store.workflow_runs.steps_of([run.id]))[run.id]
    asked = Run(run.id, run.inputs, run.created_at, cancel_requested=True)
    decision = advance(
        parse(version.definition), asked, steps, datetime.now(UTC), new_id=uuid7
    )  # fmt: skip
    if decision.end is None:
        return [], None
    await store.workflow_runs.upsert_steps(decision.changed)
    await store.workflow_runs.end({run.id: decision.end})
    return list(decision.changed), decision.end
