"""Runs: started, read, canceled, retried."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from api.artifacts.schemas import presigned
from api.auth import Principal
from api.context import Context
from api.fields import check_json
from api.workflows.run_schemas import RunDetail, RunView, run_detail, run_view
from api.workflows.schemas import RunRequest
from api.workflows.service import find, version_of
from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.events import RunEventKind, run_event, step_event
from vyvo_dagster.domain.workflow.run import first_steps
from vyvo_dagster.domain.workflow.state import RUN, RunState, TriggerKind
from vyvo_dagster.domain.workflow.validation import check_run_inputs
from vyvo_dagster.errors import Conflict, NotFound
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.telemetry import tracing
from vyvo_dagster.workflows.measuring import measure
from vyvo_dagster.workflows.starting import retry_run
from vyvo_dagster.workflows.stopping import stop_run

__all__ = ["cancel", "detail", "find_run", "retry", "start"]


async def start(
    context: Context, tenant: str, name: str, body: RunRequest, key: str | None
) -> tuple[RunView, bool]:
    """Queue a run, or find the one that `key` has started; and whether it is new.

    Raises:
        InvalidInput: the inputs do not fit, with `errors`.
        Conflict: the key has started a run with other inputs.
    """
    check_json(body.inputs, "inputs")
    run_id, now = uuid7(), datetime.now(UTC)
    trigger_key = None if key is None else f"api:{key}"
    async with context.database.transaction() as store:
        workflow = await find(store, tenant, name)
        if trigger_key is not None:
            known = await store.workflow_runs.of_trigger(workflow.id, trigger_key)
            if known is not None:
                return await _repeated(context, store, known, body), False
        version = await version_of(store, workflow, body.version)
        definition = parse(version.definition)
        run, made = await store.workflow_runs.create(
            id=run_id, workflow_id=workflow.id, version_id=version.id, tenant=tenant,
            inputs=check_run_inputs(definition, body.inputs), trigger_kind=TriggerKind.API,
            trigger_key=trigger_key, priority=body.priority,
            steps=first_steps(definition, run_id, uuid7, now), traceparent=tracing.traceparent(),
        )  # fmt: skip
        if not made:
            return await _repeated(context, store, run, body), False
    await _tell_queued(context, run)
    return run_view(run, _ui(context)), True


async def _repeated(
    context: Context, store: Store, known: WorkflowRun, body: RunRequest
) -> RunView:
    """The run that a key has started; the version it was asked for then is the one it has."""
    version = await store.workflows.version_by_id(known.version_id)
    assert version is not None
    wanted = {
        **{n: s["default"] for n, s in parse(version.definition).inputs.items() if "default" in s},
        **body.inputs,
    }
    same = (wanted, body.priority, body.version or known.version)
    if same != (known.inputs, known.priority, known.version):
        raise Conflict("this Idempotency-Key was used for another request; send a new key")
    return run_view(known, _ui(context))


async def find_run(
    store: Store, principal: Principal, id: UUID, *, lock: bool = False
) -> WorkflowRun:
    """A run that the key may see, else NotFound."""
    found = await store.workflow_runs.get(id, principal.sees, lock=lock)
    if found is None:
        raise NotFound("no such workflow run")
    return found


async def detail(context: Context, principal: Principal, id: UUID) -> RunDetail:
    """A run with its steps."""
    async with context.database.transaction() as store:
        run = await find_run(store, principal, id)
        return await _detail(context, store, run)


async def cancel(context: Context, principal: Principal, id: UUID) -> RunDetail:
    """Ask that a run ends: what waits does not start, jobs under way are canceled. A repeat changes nothing.

    Raises:
        Conflict: it has ended otherwise.
    """
    async with context.database.transaction() as store:
        run = await find_run(store, principal, id, lock=True)
        if run.state in RUN.terminal and run.state is not RunState.CANCELED:
            raise Conflict(f"the run has {run.state}")
        steps, end = ([], None) if run.cancel_requested_at else await stop_run(store, run)
        shown = await _detail(context, store, await find_run(store, principal, id))
    if end is not None:
        measure(run, steps, end, datetime.now(UTC))
        data = run_event(
            workflow=run.name, version=run.version, state=end.state, error_code=end.error_code,
            error_message=end.error_message,
        )  # fmt: skip
        events = [(run.id, RunEventKind.STEP, step_event(step)) for step in steps]
        await context.announcer.events([*events, (run.id, RunEventKind.COMPLETED, data)])
    return shown


async def retry(
    context: Context, principal: Principal, id: UUID, key: str | None
) -> tuple[RunView, bool]:
    """Queue a run that does again what has failed in an earlier one, and keeps what has succeeded.

    Raises:
        Conflict: it has succeeded or is under way, or a retry of it is.
    """
    trigger_key = None if key is None else f"retry:{id}:{key}"
    async with context.database.transaction() as store:
        old = await find_run(store, principal, id, lock=True)
        run, made = await retry_run(store, old, key=trigger_key)
    if made:
        await _tell_queued(context, run)
    return run_view(run, _ui(context)), made


async def _detail(context: Context, store: Store, run: WorkflowRun) -> RunDetail:
    steps = (await store.workflow_runs.steps_of([run.id]))[run.id]
    seconds = context.settings.presign_seconds
    return run_detail(
        run, steps.values(), _ui(context), lambda url: presigned(context.objects, url, seconds),
        datetime.now(UTC),
    )  # fmt: skip


def _ui(context: Context) -> str | None:
    return context.dagster_ui


async def _tell_queued(context: Context, run: WorkflowRun) -> None:
    data: Mapping[str, Any] = run_event(
        workflow=run.name, version=run.version, state=RunState.QUEUED
    )
    await context.announcer.events([(run.id, RunEventKind.QUEUED, data)])
