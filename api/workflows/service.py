"""Workflows: checked, pushed, read."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from uuid_utils.compat import uuid7

from api.auth import Principal, require
from api.context import Context
from api.fields import check_json
from api.workflows.schemas import (
    Pushed,
    Validation,
    WorkflowDetail,
    graph_of,
    problem_views,
    trigger_view,
    workflow_view,
)
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.domain.workflow.cron import next_time
from vyvo_dagster.domain.workflow.definition import (
    Definition,
    ModelRef,
    TriggerDefinition,
    digest,
    parse,
)
from vyvo_dagster.domain.workflow.problem import Catalog, ModelSchemas
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.domain.workflow.validation import check, checked, model_refs
from vyvo_dagster.errors import Forbidden, InvalidInput, NotFound
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.models import SERVABLE
from vyvo_dagster.store.workflow_records import Workflow, WorkflowVersion

__all__ = ["detail", "find", "push", "set_paused", "tenant_of", "validate", "version_of"]


def tenant_of(principal: Principal, tenant: str | None) -> str:
    """Whose workflows are meant: the key's own, or, for an admin, those of `tenant`."""
    if tenant is None or tenant == principal.tenant:
        return principal.tenant
    if principal.sees is not None:
        raise Forbidden("only an admin's key may name another tenant")
    return tenant


async def find(store: Store, tenant: str, name: str, *, lock: bool = False) -> Workflow:
    """A workflow, else NotFound."""
    found = await store.workflows.get(tenant, name, lock=lock)
    if found is None:
        raise NotFound(f"no workflow {name[:64]!r}")
    return found


async def version_of(store: Store, workflow: Workflow, version: int | None) -> WorkflowVersion:
    """A version of a workflow, the latest for None; else NotFound."""
    found = await store.workflows.version(workflow.id, version or workflow.latest_version)
    if found is None:
        raise NotFound(f"workflow {workflow.name} has no version {version}")
    return found


async def validate(context: Context, document: Mapping[str, Any]) -> Validation:
    """Every fault of a definition; nothing is written."""
    async with context.database.transaction() as store:
        catalog = await _catalog(store, document)
    problems = check(document, catalog)
    return Validation(
        valid=not problems, problems=problem_views(problems),
        steps=[] if problems else graph_of(parse(document)),
    )  # fmt: skip


async def push(
    context: Context, principal: Principal, document: Mapping[str, Any], name: str | None = None
) -> Pushed:
    """Make a definition the latest version of its workflow, unless it is that already.

    Args:
        name: what it has to be called, where the path says so.

    Raises:
        InvalidWorkflow: with `problems`.
        Forbidden: it runs a container, and the key lacks `models:write`.
    """
    check_json(document, "the definition")
    async with context.database.transaction() as store:
        definition = checked(document, await _catalog(store, document))
        if any(step.container is not None for step in definition.order):
            # An image of one's own on a host is what a version of a model is, too.
            require(principal, Scope.MODELS_WRITE)
        if name is not None and definition.name != name:
            raise InvalidInput(f"the definition is of {definition.name}, the path of {name[:64]}")
        version, created = await store.workflows.push(
            id=uuid7(), version_id=uuid7(), tenant=principal.tenant, name=definition.name,
            description=definition.description, definition=document, sha256=digest(document),
            created_by=principal.prefix,
        )  # fmt: skip
        if created:
            await store.workflows.set_triggers(version.workflow_id, _trigger_rows(definition))
            await store.keys.audit(
                id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix,
                action="push_workflow", subject=definition.name,
                detail={"version": version.version, "sha256": version.sha256},
            )  # fmt: skip
    return Pushed(
        name=version.name, version=version.version, version_id=version.id, sha256=version.sha256,
        created=created,
    )  # fmt: skip


def _trigger_rows(definition: Definition) -> list[Mapping[str, Any]]:
    now = datetime.now(UTC)
    return [
        {
            "id": uuid7(), "name": each.name, "kind": each.kind, "spec": dict(each.spec),
            "inputs": dict(each.inputs), "enabled": each.enabled, "next_at": _next(each, now),
        }
        for each in definition.triggers
    ]  # fmt: skip


def _next(trigger: TriggerDefinition, now: datetime) -> datetime | None:
    if trigger.kind is not TriggerKind.CRON:
        return None
    return next_time(str(trigger.spec["cron"]), str(trigger.spec["timezone"]), now)


async def _catalog(store: Store, document: Any) -> Catalog:
    """What the registry says of the models that a document names."""
    return {ref: await _schemas(store, ref) for ref in model_refs(document)}


async def _schemas(store: Store, ref: ModelRef) -> ModelSchemas | str:
    if ref.version is None:
        found = await store.models.serving(ref.model_id)
        if found is None:
            known = await store.models.get(ref.model_id) is not None
            return "has no version that is ready" if known else "is not registered"
    else:
        found = await store.models.version(ref.model_id, ref.version)
        if found is None:
            return "is not registered"
        if found.state not in SERVABLE:
            return f"is {found.state}; only a ready version takes jobs"
    return ModelSchemas(found.input_schema, found.output_schema)


async def detail(context: Context, tenant: str, name: str) -> WorkflowDetail:
    """A workflow with its latest definition."""
    async with context.database.transaction() as store:
        workflow = await find(store, tenant, name)
        version = await version_of(store, workflow, None)
        triggers = await store.workflows.triggers(workflow.id)
    return WorkflowDetail(
        **workflow_view(workflow).model_dump(), definition=dict(version.definition),
        steps=graph_of(parse(version.definition)), triggers=[trigger_view(t) for t in triggers],
    )  # fmt: skip


async def set_paused(
    context: Context, principal: Principal, tenant: str, name: str, paused: bool
) -> WorkflowDetail:
    """Let a workflow's triggers rest, or fire again."""
    async with context.database.transaction() as store:
        workflow = await find(store, tenant, name, lock=True)
        await store.workflows.set_paused(workflow.id, paused)
        await store.keys.audit(
            id=uuid7(), tenant=tenant, key_prefix=principal.prefix,
            action="pause_workflow" if paused else "resume_workflow", subject=name, detail={},
        )  # fmt: skip
    return await detail(context, tenant, name)
