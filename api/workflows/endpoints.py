"""/api/workflows and /api/workflow-runs: graphs of jobs, and what became of them."""

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Body, Query
from fastapi.responses import Response

from api import sse
from api.auth import WorkflowsRead, WorkflowsRun, WorkflowsWrite
from api.context import Ctx
from api.fields import Cursor, Limit, Listing, listing
from api.idempotency import OnceDep
from api.sse import LastEventId
from api.workflows import events, runs, service
from api.workflows.run_schemas import RunDetail, RunView, run_view
from api.workflows.schemas import (
    DOCUMENT,
    PausedBody,
    Pushed,
    RunRequest,
    Validation,
    WorkflowDetail,
    WorkflowVersionView,
    WorkflowView,
    version_view,
    workflow_view,
)
from vyvo_dagster.domain.workflow.schema import DEFINITION_SCHEMA
from vyvo_dagster.domain.workflow.state import RunState, TriggerKind

__all__ = ["router", "runs_router"]

router = APIRouter(prefix="/api/workflows", tags=["workflows"])
runs_router = APIRouter(prefix="/api/workflow-runs", tags=["workflows"])

Document = Annotated[
    dict[str, Any],
    Body(description="A definition; see `GET /api/workflows/schema`.", examples=[DOCUMENT]),
]
Tenant = Annotated[
    str | None, Query(max_length=64, description="Whose; only an admin's key may name another's.")
]
Name = Annotated[str | None, Query(max_length=64, description="Only of this workflow.")]
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "SSE.", "content": {"text/event-stream": {}}}
}


@router.get("", summary="List workflows")
async def browse(
    principal: WorkflowsRead, context: Ctx, cursor: Cursor = None, limit: Limit = 50
) -> Listing[WorkflowView]:
    """Newest first. An admin's key sees all tenants'."""
    async with context.database.transaction() as store:
        found = await store.workflows.browse(principal.sees, cursor, limit)
    shown, next_cursor = listing(found, limit)
    return Listing(items=[workflow_view(w) for w in shown], next_cursor=next_cursor)


@router.post("", status_code=201, summary="Push a workflow's definition")
async def push(document: Document, principal: WorkflowsWrite, context: Ctx) -> Pushed:
    """Makes the workflow, or its next version; the content of the latest version makes none.

    A definition with faults is answered with `invalid_workflow` and `problems`, each with the step
    and the path.
    """
    return await service.push(context, principal, document)


@router.get("/schema", summary="The JSON Schema of definitions")
async def schema(_: WorkflowsRead) -> dict[str, Any]:
    """JSON Schema 2020-12."""
    return dict(DEFINITION_SCHEMA)


@router.post("/validate", summary="Check a definition")
async def validate(document: Document, _: WorkflowsRead, context: Ctx) -> Validation:
    """All its faults, against the models of this installation; nothing is written."""
    return await service.validate(context, document)


@router.get("/{name}", summary="Get a workflow")
async def get(
    name: str, principal: WorkflowsRead, context: Ctx, tenant: Tenant = None
) -> WorkflowDetail:
    """With its latest definition and its triggers."""
    return await service.detail(context, service.tenant_of(principal, tenant), name)


@router.put("/{name}", summary="Push a definition under its name")
async def put(name: str, document: Document, principal: WorkflowsWrite, context: Ctx) -> Pushed:
    """As `POST /api/workflows`; the definition's name has to be the path's."""
    return await service.push(context, principal, document, name)


@router.patch("/{name}", summary="Pause a workflow's triggers")
async def patch(
    name: str, body: PausedBody, principal: WorkflowsWrite, context: Ctx, tenant: Tenant = None
) -> WorkflowDetail:
    """Paused, its triggers start nothing; who asks for a run gets one."""
    owner = service.tenant_of(principal, tenant)
    return await service.set_paused(context, principal, owner, name, body.paused)


@router.get("/{name}/versions", summary="List a workflow's versions")
async def versions(
    name: str, principal: WorkflowsRead, context: Ctx, tenant: Tenant = None,
    cursor: Annotated[int | None, Query(ge=1, description="`next_cursor` of before.")] = None,
    limit: Limit = 50,
) -> Listing[WorkflowVersionView]:  # fmt: skip
    """Newest first."""
    async with context.database.transaction() as store:
        workflow = await service.find(store, service.tenant_of(principal, tenant), name)
        found = await store.workflows.versions(workflow.id, cursor, limit)
    shown = found[:limit]
    return Listing(
        items=[version_view(v) for v in shown],
        next_cursor=str(shown[-1].version) if len(found) > limit else None,
    )


@router.get("/{name}/versions/{version}", summary="Get a version of a workflow")
async def version(
    name: str, version: int, principal: WorkflowsRead, context: Ctx, tenant: Tenant = None
) -> WorkflowVersionView:
    """One definition, as it was pushed."""
    async with context.database.transaction() as store:
        workflow = await service.find(store, service.tenant_of(principal, tenant), name)
        return version_view(await service.version_of(store, workflow, version))


@router.post("/{name}/runs", status_code=202, summary="Run a workflow")
async def start(
    name: str, body: RunRequest, principal: WorkflowsRun, context: Ctx, request: OnceDep,
    response: Response, tenant: Tenant = None,
) -> RunView:  # fmt: skip
    """Queues a run of the latest version, or of the one that is named. An `Idempotency-Key` starts
    one run of the workflow, for as long as that is kept.
    """
    owner = service.tenant_of(principal, tenant)
    run, _ = await runs.start(context, owner, name, body, request.key)
    response.headers["Location"] = f"/api/workflow-runs/{run.run_id}"
    return run


@runs_router.get("", summary="List workflow runs")
async def browse_runs(
    principal: WorkflowsRead, context: Ctx, workflow: Name = None,
    status: Annotated[RunState | None, Query(description="Only in this state.")] = None,
    trigger: Annotated[TriggerKind | None, Query(description="Only so started.")] = None,
    cursor: Cursor = None, limit: Limit = 50,
) -> Listing[RunView]:  # fmt: skip
    """Newest first, without their steps."""
    async with context.database.transaction() as store:
        found = await store.workflow_runs.browse(
            principal.sees, cursor, limit, name=workflow, state=status, trigger_kind=trigger
        )
    shown, next_cursor = listing(found, limit)
    url = context.dagster_ui
    return Listing(items=[run_view(r, url) for r in shown], next_cursor=next_cursor)


@runs_router.get("/{run_id}", summary="Get a workflow run")
async def get_run(run_id: UUID, principal: WorkflowsRead, context: Ctx) -> RunDetail:
    """With its steps, what each took and made, and its place in Dagster's UI."""
    return await runs.detail(context, principal, run_id)


@runs_router.get(
    "/{run_id}/events", summary="Follow a workflow run", response_class=Response, responses=_STREAM
)
async def follow(
    run_id: UUID, principal: WorkflowsRead, context: Ctx, last_event_id: LastEventId = None
) -> Response:
    """SSE: `run_queued`, `run_started`, `step` at every change of one, `run_completed`. The last
    1,024 are kept; `Last-Event-ID` goes on after one.
    """
    async with context.database.transaction() as store:
        run = await runs.find_run(store, principal, run_id)
    stream = events.follow(context, run, last_event_id)
    return sse.event_stream("workflow_run", sse.until(context.stopping, stream))


@runs_router.post("/{run_id}/cancel", status_code=202, summary="Cancel a workflow run")
async def cancel(run_id: UUID, principal: WorkflowsRun, context: Ctx) -> RunDetail:
    """What waits does not start; jobs under way are canceled as `POST /api/jobs/{id}/cancel` does."""
    return await runs.cancel(context, principal, run_id)


@runs_router.post("/{run_id}/retry", status_code=202, summary="Retry a workflow run")
async def retry(
    run_id: UUID, principal: WorkflowsRun, context: Ctx, request: OnceDep, response: Response
) -> RunView:
    """A new run of the same version and inputs that keeps the steps that have succeeded."""
    run, _ = await runs.retry(context, principal, run_id, request.key)
    response.headers["Location"] = f"/api/workflow-runs/{run.run_id}"
    return run
