"""Starting a run: the same for the api, the stream, triggers and Dagster's launchpad."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.run import first_steps, kept_for_retry
from vyvo_dagster.domain.workflow.state import RunState, TriggerKind
from vyvo_dagster.domain.workflow.validation import check_run_inputs
from vyvo_dagster.errors import Conflict
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowVersion
from vyvo_dagster.telemetry import tracing

__all__ = ["retry_run", "start_run"]


async def start_run(
    store: Store, version: WorkflowVersion, inputs: Mapping[str, Any], kind: TriggerKind, *,
    key: str | None = None, priority: Priority | None = None, retry_of: UUID | None = None,
    dagster_run_id: str | None = None,
) -> tuple[WorkflowRun, bool]:  # fmt: skip
    """Queue a run; or the one that the trigger key started before, and False.

    An engine is told when the caller's transaction commits.

    Raises:
        InvalidInput: the inputs are not what the workflow takes.
    """
    definition = parse(version.definition)
    given = check_run_inputs(definition, inputs)
    run_id, now = uuid7(), datetime.now(UTC)
    return await store.workflow_runs.create(
        id=run_id, workflow_id=version.workflow_id, version_id=version.id, tenant=version.tenant,
        inputs=given, trigger_kind=kind, trigger_key=key, priority=priority,
        steps=first_steps(definition, run_id, uuid7, now), retry_of=retry_of,
        dagster_run_id=dagster_run_id,
        traceparent=tracing.traceparent() or tracing.record("start workflow run", None, now, now),
    )  # fmt: skip


async def retry_run(
    store: Store, old: WorkflowRun, *, key: str | None = None, dagster_run_id: str | None = None
) -> tuple[WorkflowRun, bool]:
    """Queue a run that does again what has failed in `old`, which the caller's transaction has locked.

    What has succeeded is kept. As `start_run` else.

    Raises:
        Conflict: it has succeeded or is under way, or a retry of it is.
    """
    if key is not None:
        known = await store.workflow_runs.of_trigger(old.workflow_id, key)
        if known is not None:
            return known, False
    if old.state not in {RunState.FAILED, RunState.CANCELED}:
        raise Conflict(f"the run is {old.state}; only one that failed or was canceled is retried")
    if await store.workflow_runs.has_open_retry(old.id):
        raise Conflict("a retry of the run is under way")
    version = await store.workflows.version_by_id(old.version_id)
    assert version is not None  # a run refers to it
    steps = (await store.workflow_runs.steps_of([old.id]))[old.id]
    run_id, now = uuid7(), datetime.now(UTC)
    return await store.workflow_runs.create(
        id=run_id, workflow_id=old.workflow_id, version_id=old.version_id, tenant=old.tenant,
        inputs=old.inputs, trigger_kind=TriggerKind.RETRY, trigger_key=key, priority=old.priority,
        steps=kept_for_retry(parse(version.definition), steps, run_id, uuid7, now),
        retry_of=old.id, dagster_run_id=dagster_run_id,
        traceparent=tracing.traceparent() or tracing.record("retry workflow run", None, now, now),
    )  # fmt: skip
