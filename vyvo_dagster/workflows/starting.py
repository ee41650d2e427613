"""Starting a run: the same for the api, the stream, triggers and Dagster's launchpad."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from uuid_utils.compat import uuid7

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.run import first_steps
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.domain.workflow.validation import check_run_inputs
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowVersion
from vyvo_dagster.telemetry import tracing

__all__ = ["start_run"]


async def start_run(
    store: Store, version: WorkflowVersion, inputs: Mapping[str, Any], kind: TriggerKind, *,
    key: str | None = None, priority: Priority | None = None, dagster_run_id: str | None = None,
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
        steps=first_steps(definition, run_id, uuid7, now), dagster_run_id=dagster_run_id,
        traceparent=tracing.traceparent() or tracing.record("start workflow run", None, now, now),
    )  # fmt: skip
