"""Workflows, their versions, and what starts them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.retention import ArtifactState
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.store.models import SERVABLE
from vyvo_dagster.store.notify import WORKFLOW_CHANNEL, notify
from vyvo_dagster.store.records import ArtifactRow, ModelVersion
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import artifacts, jobs, model_versions
from vyvo_dagster.store.workflow_records import Workflow, WorkflowTrigger, WorkflowVersion
from vyvo_dagster.store.workflow_tables import (
    workflow_runs,
    workflow_steps,
    workflow_triggers,
    workflow_versions,
    workflows,
)

__all__ = ["WorkflowRepository"]

_W = workflows.c
_V = workflow_versions.c
_T = workflow_triggers.c
_VERSIONS = sa.select(workflow_versions, _W.tenant, _W.name).join(
    workflows, _W.id == _V.workflow_id
)
_TRIGGERS = sa.select(
    workflow_triggers, _W.tenant, _W.name.label("workflow"), _W.latest_version
).join(workflows, _W.id == _T.workflow_id)


class WorkflowRepository:
    """SQL over workflows, workflow_versions and workflow_triggers."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, tenant: str, name: str, *, lock: bool = False) -> Workflow | None:
        """One workflow; locked, its other pushes wait for this transaction."""
        query = sa.select(workflows).where(_W.tenant == tenant, _W.name == name)
        row = (
            (await self._connection.execute(query.with_for_update() if lock else query))
            .mappings()
            .first()
        )
        return None if row is None else record(Workflow, row)

    async def browse(self, tenant: str | None, cursor: UUID | None, limit: int) -> list[Workflow]:
        """Newest first, of `tenant` unless that is None; one more than `limit`."""
        query = sa.select(workflows)
        if tenant is not None:
            query = query.where(_W.tenant == tenant)
        rows = await self._connection.execute(page(query, _W.id, cursor, limit))
        return [record(Workflow, r) for r in rows.mappings()]

    async def push(
        self, *, id: UUID, version_id: UUID, tenant: str, name: str, description: str,
        definition: Mapping[str, Any], sha256: str, created_by: str,
    ) -> tuple[WorkflowVersion, bool]:  # fmt: skip
        """The version of a definition, and whether it is new: the latest one's content is no new version."""
        await self._connection.execute(
            insert(workflows)
            .values(
                id=id, tenant=tenant, name=name, description=description, latest_version=0
            )
            .on_conflict_do_nothing()
        )  # fmt: skip
        found = await self.get(tenant, name, lock=True)
        assert found is not None
        latest = await self.version(found.id, found.latest_version)
        if latest is not None and latest.sha256 == sha256:
            return latest, False
        number = found.latest_version + 1
        await self._connection.execute(
            sa.insert(workflow_versions).values(
                id=version_id, workflow_id=found.id, version=number, definition=dict(definition),
                sha256=sha256, created_by=created_by,
            )
        )  # fmt: skip
        await self._connection.execute(
            sa.update(workflows)
            .where(_W.id == found.id)
            .values(latest_version=number, description=description, updated_at=sa.func.now())
        )
        await notify(self._connection, WORKFLOW_CHANNEL, f"version:{version_id}")
        made = await self.version(found.id, number)
        assert made is not None
        return made, True

    async def set_paused(self, id: UUID, paused: bool) -> Workflow:
        """Let a workflow's triggers rest, or fire again."""
        row = await self._connection.execute(
            sa.update(workflows)
            .where(_W.id == id)
            .values(paused=paused, updated_at=sa.func.now())
            .returning(workflows)
        )
        return record(Workflow, row.mappings().one())

    async def version(self, workflow_id: UUID, version: int) -> WorkflowVersion | None:
        """One version by its number."""
        return await self._version(
            _VERSIONS.where(_V.workflow_id == workflow_id, _V.version == version)
        )

    async def version_by_id(self, id: UUID) -> WorkflowVersion | None:
        """One version by its id."""
        return await self._version(_VERSIONS.where(_V.id == id))

    async def versions(
        self, workflow_id: UUID, before: int | None, limit: int
    ) -> list[WorkflowVersion]:
        """Versions of a workflow below `before`, newest first; one more than `limit`."""
        query = _VERSIONS.where(_V.workflow_id == workflow_id)
        if before is not None:
            query = query.where(_V.version < before)
        rows = await self._connection.execute(query.order_by(_V.version.desc()).limit(limit + 1))
        return [record(WorkflowVersion, r) for r in rows.mappings()]

    async def all_versions(self, latest_only: bool = False) -> list[WorkflowVersion]:
        """Every version of every workflow, or the latest of each; what Dagster's jobs are made from."""
        query = _VERSIONS
        if latest_only:
            query = query.where(_V.version == _W.latest_version)
        rows = await self._connection.execute(query.order_by(_V.id))
        return [record(WorkflowVersion, r) for r in rows.mappings()]

    async def _version(self, query: sa.Select[Any]) -> WorkflowVersion | None:
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(WorkflowVersion, row)

    async def set_triggers(self, workflow_id: UUID, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make a workflow's triggers those of `rows`: id, name, kind, spec, inputs, enabled, next_at.

        One that keeps its name, kind and spec goes on from where it was.
        """
        kept = [row["name"] for row in rows]
        await self._connection.execute(
            sa.delete(workflow_triggers).where(_T.workflow_id == workflow_id, _T.name.not_in(kept))
        )
        if not rows:
            return
        statement = insert(workflow_triggers)
        new = statement.excluded
        same = sa.and_(_T.kind == new.kind, _T.spec == new.spec, _T.enabled == new.enabled)
        await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["workflow_id", "name"],
                set_={
                    "kind": new.kind, "spec": new.spec, "inputs": new.inputs,
                    "enabled": new.enabled,
                    "next_at": sa.case((same, _T.next_at), else_=new.next_at),
                    "seen_until": sa.case((same, _T.seen_until), else_=sa.func.now()),
                },
            ),
            [{"workflow_id": workflow_id, **row} for row in rows],
        )  # fmt: skip

    async def triggers(self, workflow_id: UUID) -> list[WorkflowTrigger]:
        """The triggers of a workflow, by name."""
        query = _TRIGGERS.where(_T.workflow_id == workflow_id).order_by(_T.name)
        return [
            record(WorkflowTrigger, r) for r in (await self._connection.execute(query)).mappings()
        ]

    async def due_triggers(self, now: datetime, limit: int) -> list[WorkflowTrigger]:
        """Cron triggers whose time has come, locked until the commit; none of a paused workflow."""
        query = (
            _TRIGGERS.where(
                _T.kind == TriggerKind.CRON, _T.enabled, _W.paused.is_(False), _T.next_at <= now
            )
            .order_by(_T.next_at)
            .limit(limit)
            .with_for_update(of=workflow_triggers, skip_locked=True)
        )
        return [
            record(WorkflowTrigger, r) for r in (await self._connection.execute(query)).mappings()
        ]

    async def event_triggers(self, kind: TriggerKind) -> list[WorkflowTrigger]:
        """Triggers of one kind of event, locked until the commit; none of a paused workflow."""
        query = (
            _TRIGGERS.where(_T.kind == kind, _T.enabled, _W.paused.is_(False))
            .order_by(_T.id)
            .with_for_update(of=workflow_triggers, skip_locked=True)
        )
        return [
            record(WorkflowTrigger, r) for r in (await self._connection.execute(query)).mappings()
        ]

    async def fired(
        self, id: UUID, *, next_at: datetime | None = None, seen_until: datetime | None = None,
        fired_at: datetime | None = None,
    ) -> None:  # fmt: skip
        """Note how far a trigger has come; what is None stays, but for cron's `next_at`."""
        values: dict[str, Any] = {"next_at": next_at}
        if seen_until is not None:
            values["seen_until"] = seen_until
        if fired_at is not None:
            values["last_fired_at"] = fired_at
        await self._connection.execute(
            sa.update(workflow_triggers).where(_T.id == id).values(**values)
        )

    async def new_artifacts(
        self, trigger: WorkflowTrigger, overlap: timedelta, limit: int
    ) -> list[tuple[ArtifactRow, str, str]]:
        """Artifacts of the trigger's tenant that fit it, oldest first, each with model and version.

        From `overlap` before what was looked at, since a transaction may commit late; who fires
        tells repeats by the trigger key. None that a run of the same workflow made.
        """
        made_here = (
            sa.select(sa.literal(1))
            .select_from(workflow_steps.join(workflow_runs, workflow_runs.c.id == workflow_steps.c.run_id))
            .where(
                workflow_steps.c.id == jobs.c.workflow_step_id,
                workflow_runs.c.workflow_id == trigger.workflow_id,
            )
            .exists()
        )  # fmt: skip
        since = (trigger.seen_until or trigger.created_at) - overlap
        query = (
            sa.select(artifacts, jobs.c.model_id, jobs.c.version)
            .join(jobs, jobs.c.id == artifacts.c.job_id)
            .where(
                artifacts.c.tenant == trigger.tenant,
                artifacts.c.state == ArtifactState.STORED,
                artifacts.c.created_at > sa.func.greatest(since, trigger.created_at),
                sa.or_(jobs.c.workflow_step_id.is_(None), ~made_here),
            )
        )
        if (kind := trigger.spec.get("type")) is not None:
            query = query.where(artifacts.c.type == kind)
        if (model := trigger.spec.get("model")) is not None:
            query = query.where(jobs.c.model_id == model)
        ordered = query.order_by(artifacts.c.created_at, artifacts.c.id).limit(limit)
        rows = (await self._connection.execute(ordered)).mappings()
        return [(record(ArtifactRow, r), r["model_id"], r["version"]) for r in rows]

    async def new_model_versions(
        self, trigger: WorkflowTrigger, overlap: timedelta, limit: int
    ) -> list[ModelVersion]:
        """Versions that can serve and have changed since the trigger looked, as `new_artifacts`."""
        since = (trigger.seen_until or trigger.created_at) - overlap
        changed = model_versions.c.updated_at
        query = sa.select(model_versions).where(
            model_versions.c.state.in_(SERVABLE),
            changed > sa.func.greatest(since, trigger.created_at),
        )
        if (model := trigger.spec.get("model")) is not None:
            query = query.where(model_versions.c.model_id == model)
        rows = await self._connection.execute(
            query.order_by(changed, model_versions.c.id).limit(limit)
        )
        return [record(ModelVersion, r) for r in rows.mappings()]
