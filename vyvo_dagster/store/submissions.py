"""Jobs and their stream entries, written by one statement for all that are submitted at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.store.models import SERVABLE

__all__ = ["NewJob", "SubmissionRepository"]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to queue, and the stream that its entry goes to."""

    id: UUID
    tenant: str
    model_id: str
    version_id: UUID
    version: str
    priority: Priority
    input: Mapping[str, Any]
    max_attempts: int
    expires_at: datetime
    traceparent: str | None
    stream: str


# A version is checked where the row is made: a cache may not have heard yet that it was retired.
_SUBMIT = sa.text("""
with given as (
  select * from unnest(
    cast(:id as uuid[]), cast(:tenant as text[]), cast(:model_id as text[]),
    cast(:version_id as uuid[]), cast(:version as text[]), cast(:priority as text[]),
    cast(:input as text[]), cast(:max_attempts as int[]), cast(:expires_at as timestamptz[]),
    cast(:traceparent as text[]), cast(:stream as text[])
  ) with ordinality as g (id, tenant, model_id, version_id, version, priority, input,
    max_attempts, expires_at, traceparent, stream, n)
), made as (
  insert into jobs (id, tenant, model_id, version_id, version, priority, input, max_attempts,
    expires_at, traceparent, state)
  select g.id, g.tenant, g.model_id, g.version_id, g.version, g.priority, cast(g.input as jsonb),
    g.max_attempts, g.expires_at, g.traceparent, :queued
  from given g join model_versions v on v.id = g.version_id
  where v.state = any(cast(:servable as text[]))
  order by g.n
  returning id
), announced as (
  insert into outbox (stream, fields)
  select g.stream, jsonb_build_object('id', cast(g.id as text),
    'at', cast(cast(extract(epoch from now()) * 1000 as bigint) as text))
  from given g join made on made.id = g.id
  order by g.n
  returning id, fields
)
select cast(fields ->> 'id' as uuid), id from announced
""")

_DEPTHS = sa.text("""
select model_id, priority, count(*) from jobs
where state = 'queued' and model_id = any(cast(:models as text[]))
group by model_id, priority
""")


class SubmissionRepository:
    """SQL of the gateway's hot path."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def submit(self, jobs: Sequence[NewJob]) -> dict[UUID, int]:
        """Queue jobs; those that were, each with the id of its outbox entry.

        Missing in the answer is a job whose version does not take jobs any more.
        """
        rows = await self._connection.execute(
            _SUBMIT,
            {
                "id": [j.id for j in jobs],
                "tenant": [j.tenant for j in jobs],
                "model_id": [j.model_id for j in jobs],
                "version_id": [j.version_id for j in jobs],
                "version": [j.version for j in jobs],
                "priority": [j.priority.value for j in jobs],
                "input": [json.dumps(j.input) for j in jobs],
                "max_attempts": [j.max_attempts for j in jobs],
                "expires_at": [j.expires_at for j in jobs],
                "traceparent": [j.traceparent for j in jobs],
                "stream": [j.stream for j in jobs],
                "queued": JobState.QUEUED.value,
                "servable": [s.value for s in SERVABLE],
            },
        )
        return {job: int(entry) for job, entry in rows}

    async def depths(self, model_ids: Sequence[str]) -> dict[tuple[str, Priority], int]:
        """How many jobs wait, by model and priority class; a queue that is empty is left out."""
        rows = await self._connection.execute(_DEPTHS, {"models": list(model_ids)})
        return {(model, Priority(priority)): int(count) for model, priority, count in rows}
