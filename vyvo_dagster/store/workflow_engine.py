"""What the engine and Dagster read of many workflows at once, beside `workflow_runs`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JOB, JobState
from vyvo_dagster.domain.workflow.state import ACTIVE, RUN
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import jobs
from vyvo_dagster.store.workflow_records import WorkflowVersion
from vyvo_dagster.store.workflow_tables import (
    workflow_runs,
    workflow_steps,
    workflow_versions,
    workflows,
)

__all__ = ["JobOutcome", "WorkflowEngineRepository"]

_R = workflow_runs.c
_S = workflow_steps.c
_IDS: Final = ARRAY(PG_UUID(as_uuid=True))


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """Of a step's job, what its step becomes by."""

    id: UUID
    state: JobState
    output: Any
    error_code: str | None
    error_message: str | None
    started_at: datetime | None
    completed_at: datetime | None


class WorkflowEngineRepository:
    """SQL over jobs of steps and over versions."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def outcomes(self, job_ids: Sequence[UUID]) -> list[JobOutcome]:
        """How jobs of steps are."""
        c = jobs.c
        query = sa.select(
            c.id, c.state, c.output, c.error_code, c.error_message, c.started_at, c.completed_at
        ).where(c.id == sa.any_(sa.cast(list(job_ids), _IDS)))
        return [
            JobOutcome(
                row.id, JobState(row.state), row.output, row.error_code, row.error_message,
                row.started_at, row.completed_at,
            )
            for row in await self._connection.execute(query)
        ]  # fmt: skip

    async def unseen(self, engine_id: UUID, limit: int) -> list[tuple[UUID, UUID]]:
        """(run, job) of steps of the engine whose job has ended while the row says that it has not."""
        query = (
            sa.select(_S.run_id, _S.job_id)
            .join(workflow_runs, _R.id == _S.run_id)
            .join(jobs, jobs.c.id == _S.job_id)
            .where(
                _R.engine_id == engine_id,
                _R.state.not_in(RUN.terminal),
                _S.state.in_(ACTIVE),
                jobs.c.state.in_(JOB.terminal),
            )
            .limit(limit)
        )
        return [(row.run_id, row.job_id) for row in await self._connection.execute(query)]

    async def newest_versions(self, limit: int) -> list[WorkflowVersion]:
        """The `limit` newest versions of each workflow, the newest first."""
        versions, c = workflow_versions, workflow_versions.c
        query = (
            sa.select(versions, workflows.c.tenant, workflows.c.name)
            .join(workflows, workflows.c.id == c.workflow_id)
            .where(c.version > workflows.c.latest_version - limit)
            .order_by(c.workflow_id, c.version.desc())
        )
        rows = (await self._connection.execute(query)).mappings()
        return [record(WorkflowVersion, row) for row in rows]

    async def any_open(self) -> bool:
        """Whether a run of anyone has not ended."""
        query = sa.select(sa.exists().where(_R.state.not_in(RUN.terminal)))
        return bool((await self._connection.execute(query)).scalar_one())

    async def to_cancel(self, engine_id: UUID) -> list[UUID]:
        """The engine's runs that are to be canceled."""
        query = sa.select(_R.id).where(
            _R.engine_id == engine_id,
            _R.state.not_in(RUN.terminal),
            _R.cancel_requested_at.is_not(None),
        )
        return list((await self._connection.execute(query)).scalars())
