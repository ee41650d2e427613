"""Jobs and their stream entries, written by one statement for all that are submitted at a time.

The statement goes to psycopg directly: it is the hottest of all, and half of what it cost was
the toolkit's. The rows travel as one JSON parameter, which is cheaper to make than an array for
each column and lets an input be sent as the text that it was checked as.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import DEFAULT_TIMEOUT, JobState, Priority
from vyvo_dagster.store.errors import translated
from vyvo_dagster.store.models import SERVABLE

__all__ = ["NewJob", "SubmissionLine", "SubmissionRepository", "Submitted"]

Depths = Mapping[tuple[str, Priority], int]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to queue, and the stream that its entry goes to. `input` is JSON text."""

    id: UUID
    tenant: str
    model_id: str
    version_id: UUID
    version: str
    priority: Priority
    input: str
    max_attempts: int
    ttl_seconds: float
    traceparent: str | None
    stream: str
    key_id: UUID | None = None
    """The API key, where it has a quota."""
    max_queued: int | None = None
    """Its quota: how many of its jobs may wait."""
    webhook: Mapping[str, Any] | None = None
    timeout_seconds: int = DEFAULT_TIMEOUT


@dataclass(frozen=True, slots=True)
class Submitted:
    """What one statement wrote."""

    entries: Mapping[str, int]
    """Outbox entry by job id; without the jobs whose version does not take jobs any more."""
    over_quota: Collection[str]
    """Ids of the jobs that were not written since too many of their key wait."""
    depths: Depths
    """How many jobs waited before, of the models asked for; empty queues are left out."""
    at: int
    """Creation of the jobs, in ms since the epoch, by the database's clock."""


# Entries are held for their writer, who announces them itself; the relay takes what it left behind.
# A quota is counted and not locked: two groups at a time may together go over it by one group.
# A version is checked where the row is made: a cache may not have heard yet that it was retired.
_SUBMIT: Final[LiteralString] = """
with given as (
  select * from jsonb_to_recordset(%(jobs)s::jsonb) as g (id uuid, tenant text, model_id text,
    version_id uuid, version text, priority text, input jsonb, max_attempts int, ttl float8,
    traceparent text, stream text, key_id uuid, max_queued int, webhook jsonb, timeout int)
), dropped as (
  delete from outbox where id = any(%(done)s::bigint[])
), waiting as (
  select key_id, (select count(*) from jobs j where j.key_id = k.key_id and j.state = 'queued') n
  from (select distinct key_id from given where key_id is not null) k
), allowed as (
  select id from (
    select g.id, g.max_queued - w.n as room,
      row_number() over (partition by g.key_id order by g.id) as place
    from given g left join waiting w on w.key_id = g.key_id
  ) counted where room is null or place <= room
), made as (
  insert into jobs (id, tenant, model_id, version_id, version, priority, input, max_attempts,
    expires_at, traceparent, key_id, webhook, timeout_seconds, state)
  select g.id, g.tenant, g.model_id, g.version_id, g.version, g.priority, g.input, g.max_attempts,
    now() + make_interval(secs => g.ttl), g.traceparent, g.key_id, g.webhook,
    g.timeout, %(queued)s
  from given g join model_versions v on v.id = g.version_id join allowed a on a.id = g.id
  where v.state = any(%(servable)s::text[])
  returning id
), announced as (
  insert into outbox (stream, held_until, fields)
  select g.stream, now() + interval '2 seconds', jsonb_build_object('id', g.id::text, 'at', (extract(epoch from now()) * 1000)::bigint::text)
  from given g join made on made.id = g.id
  order by g.id
  returning id, fields ->> 'id' as job
), depths as (
  select model_id, priority, count(*) as waiting from jobs
  where state = 'queued' and model_id = any(%(models)s::text[])
  group by model_id, priority
)
select
  (select jsonb_object_agg(job, id) from announced),
  (select jsonb_agg(g.id) from given g where not exists (select from allowed a where a.id = g.id)),
  (select jsonb_agg(jsonb_build_array(model_id, priority, waiting)) from depths),
  (extract(epoch from now()) * 1000)::bigint
"""


async def _submit(
    connection: psycopg.AsyncConnection[Any], jobs: Sequence[NewJob], models: Iterable[str],
    done: Iterable[int],
) -> Submitted:  # fmt: skip
    values = {
        "jobs": f"[{','.join(map(_row, jobs))}]",
        "done": f"{{{','.join(map(str, done))}}}",
        "models": list(models),
        "queued": JobState.QUEUED.value,
        "servable": _SERVABLE,
    }
    cursor = await connection.execute(_SUBMIT, values, prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    entries, over_quota, depths, at = row
    return Submitted(
        entries or {},
        over_quota or (),
        {(model, Priority(p)): count for model, p, count in depths or ()},
        at,
    )


_SERVABLE: Final = f"{{{','.join(s.value for s in SERVABLE)}}}"


def _row(job: NewJob) -> str:
    head = json.dumps(
        {
            "id": str(job.id), "tenant": job.tenant, "model_id": job.model_id,
            "version_id": str(job.version_id), "version": job.version,
            "priority": job.priority.value, "max_attempts": job.max_attempts,
            "ttl": job.ttl_seconds, "traceparent": job.traceparent, "stream": job.stream,
            "key_id": None if job.key_id is None else str(job.key_id),
            "max_queued": job.max_queued,
            "webhook": job.webhook,
            "timeout": job.timeout_seconds,
        }
    )  # fmt: skip
    return f'{head[:-1]},"input":{job.input}}}'


class SubmissionRepository:
    """Submissions as a part of a caller's transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def submit(self, jobs: Sequence[NewJob], models: Iterable[str]) -> Submitted:
        """Queue jobs, and count what waits of `models`."""
        raw = (await self._connection.get_raw_connection()).driver_connection
        assert isinstance(raw, psycopg.AsyncConnection)
        return await _submit(raw, jobs, models, ())


class SubmissionLine:
    """A connection of its own on which each statement is a transaction: one round trip.

    Opened when it is needed, closed after an error. One caller at a time.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def submit(
        self, jobs: Sequence[NewJob], models: Iterable[str], done: Iterable[int]
    ) -> Submitted:
        """Queue jobs, count what waits of `models`, and drop the outbox entries `done`.

        Raises:
            Unavailable: the database is away; the jobs may have been written all the same.
            InvalidInput: a value that no column can hold; nothing was written.
        """
        whole = False
        try:
            with translated():
                connection = self._connection
                if connection is None:
                    connection = self._connection = await psycopg.AsyncConnection.connect(
                        self._dsn, autocommit=True, connect_timeout=5
                    )
                submitted = await _submit(connection, jobs, models, done)
            whole = True
            return submitted
        finally:
            # After an error, or a caller that gave up, the connection's state is not known.
            if not whole:
                await self.close()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
