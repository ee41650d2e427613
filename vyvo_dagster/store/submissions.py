"""Jobs, their stream entries and the idempotency keys that they come with, written by one
statement for all that are submitted at a time.

The statement goes to psycopg directly: it is the hottest of all, and half of what it cost was
the toolkit's. The rows travel as one JSON parameter, which is cheaper to make than an array for
each column and lets an input be sent as the text that it was checked as.
"""

import json
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import DEFAULT_TIMEOUT, JobState, Priority
from vyvo_dagster.store.errors import translated
from vyvo_dagster.store.models import SERVABLE
from vyvo_dagster.store.raw import raw_of

__all__ = [
    "Claim",
    "ClaimHeld",
    "Depths",
    "NewJob",
    "SubmissionLine",
    "SubmissionRepository",
    "Submitted",
]

Depths = Mapping[tuple[str, str, Priority, str], int]
"""How many jobs wait, by model id, version, class and tenant; empty queues are left out."""


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
    workflow_step_id: UUID | None = None
    """The step that it is an attempt of; set with `workflow_step_attempt`."""
    workflow_step_attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """An idempotency key that a job is written with, and the answer that its repeats get."""

    job_id: UUID
    tenant: str
    key: str
    route: str
    request_sha256: bytes
    answer: str
    """JSON text of an object; `jobs[0].job_id` in it is the job's."""


class ClaimHeld(Exception):
    """Another transaction has held one of the keys for too long; nothing was written."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What one statement wrote."""

    entries: Mapping[str, int]
    """Outbox entry by job id; without the jobs whose version does not take jobs any more, and
    those whose idempotency key was claimed before."""
    over_quota: Collection[str]
    """Ids of the jobs that were not written since too many of their key wait."""
    at: int
    """Creation of the jobs, in ms since the epoch, by the database's clock."""


# Entries are held for their writer, who announces them itself; the relay takes what it left behind.
# A quota is counted and not locked: two groups at a time may together go over it by one group.
# A key is claimed only with its job, so that one which fails leaves nothing behind; a claim waits
# for that of a concurrent repeat, and keys are claimed in order so that two groups do not deadlock.
# Its row is looked up by a subquery that cannot become a join, since a plan made while the table
# was small would read all of it when it is large.
# A version is checked where the row is made: a cache may not have heard yet that it was retired.
_SUBMIT: Final[LiteralString] = """
with given as (
  select * from jsonb_to_recordset(%(jobs)s::jsonb) as g (id uuid, tenant text, model_id text,
    version_id uuid, version text, priority text, input jsonb, max_attempts int, ttl float8,
    traceparent text, stream text, key_id uuid, max_queued int, webhook jsonb, timeout int,
    step_id uuid, step_attempt int)
), asked as (
  select * from jsonb_to_recordset(%(claims)s::jsonb) as c (id uuid, tenant text, key text,
    route text, request_sha256 text, answer jsonb)
), repeated as (
  select a.id from asked a where
    (select true from idempotency_keys k where k.tenant = a.tenant and k.key = a.key limit 1)
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
    where not exists (select from repeated r where r.id = g.id)
  ) counted where room is null or place <= room
), fit as (
  select g.* from given g join model_versions v on v.id = g.version_id join allowed a on a.id = g.id
  where v.state = any(%(servable)s::text[])
), claimed as (
  insert into idempotency_keys (tenant, key, route, request_sha256, answer)
  select c.tenant, c.key, c.route, decode(c.request_sha256, 'hex'), c.answer
  from asked c join fit on fit.id = c.id
  order by c.tenant, c.key
  on conflict do nothing
  returning (answer -> 'jobs' -> 0 ->> 'job_id')::uuid as id
), made as (
  insert into jobs (id, tenant, model_id, version_id, version, priority, input, max_attempts,
    expires_at, traceparent, key_id, webhook, timeout_seconds, state, workflow_step_id,
    workflow_step_attempt)
  select g.id, g.tenant, g.model_id, g.version_id, g.version, g.priority, g.input, g.max_attempts,
    now() + make_interval(secs => g.ttl), g.traceparent, g.key_id, g.webhook,
    g.timeout, %(queued)s, g.step_id, g.step_attempt
  from fit g
  where exists (select from claimed c where c.id = g.id)
    or not exists (select from asked a where a.id = g.id)
  returning id
), announced as (
  insert into outbox (stream, held_until, fields)
  select g.stream, now() + interval '2 seconds', jsonb_build_object('id', g.id::text, 'at', (extract(epoch from now()) * 1000)::bigint::text)
  from given g join made on made.id = g.id
  order by g.id
  returning id, fields ->> 'id' as job
)
select
  (select jsonb_object_agg(job, id) from announced),
  (select jsonb_agg(g.id) from given g where not exists (select from allowed a where a.id = g.id)
    and not exists (select from repeated r where r.id = g.id)),
  (extract(epoch from now()) * 1000)::bigint
"""

_DEPTHS: Final[LiteralString] = """
select model_id, version, priority, tenant, count(*) from jobs
where state = 'queued' and model_id = any(%(models)s::text[])
group by model_id, version, priority, tenant
"""


async def _depths(connection: psycopg.AsyncConnection[Any], models: Iterable[str]) -> Depths:
    cursor = await connection.execute(_DEPTHS, {"models": list(models)}, prepare=True)
    return {
        (model, version, Priority(p), tenant): count
        for model, version, p, tenant, count in await cursor.fetchall()
    }


async def _submit(
    connection: psycopg.AsyncConnection[Any], jobs: Sequence[NewJob], claims: Iterable[Claim],
    done: Iterable[int],
) -> Submitted:  # fmt: skip
    values = {
        "jobs": f"[{','.join(map(_row, jobs))}]",
        "claims": f"[{','.join(map(_claim, claims))}]",
        "done": f"{{{','.join(map(str, done))}}}",
        "queued": JobState.QUEUED.value,
        "servable": _SERVABLE,
    }
    cursor = await connection.execute(_SUBMIT, values, prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    entries, over_quota, at = row
    return Submitted(entries or {}, over_quota or (), at)


# A key that someone holds must not hold up all that share the statement.
_LOCK_TIMEOUT: Final[LiteralString] = "set lock_timeout = '250ms'"
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
            **(
                {"step_id": str(job.workflow_step_id), "step_attempt": job.workflow_step_attempt}
                if job.workflow_step_id is not None
                else {}
            ),
        }
    )  # fmt: skip
    return f'{head[:-1]},"input":{job.input}}}'


def _claim(claim: Claim) -> str:
    head = json.dumps(
        {
            "id": str(claim.job_id), "tenant": claim.tenant, "key": claim.key,
            "route": claim.route, "request_sha256": claim.request_sha256.hex(),
        }
    )  # fmt: skip
    return f'{head[:-1]},"answer":{claim.answer}}}'


class SubmissionRepository:
    """Submissions as a part of a caller's transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def depths(self, models: Iterable[str]) -> Depths:
        """How many jobs of `models` wait."""
        return await _depths(await raw_of(self._connection), models)

    async def submit(self, jobs: Sequence[NewJob], done: Iterable[int] = ()) -> Submitted:
        """Queue jobs, and drop the outbox entries `done`."""
        return await _submit(await raw_of(self._connection), jobs, (), done)


class SubmissionLine:
    """A connection of its own on which each statement is a transaction: one round trip.

    Opened when it is needed, closed after an error. One caller at a time.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def depths(self, models: Iterable[str]) -> Depths:
        """How many jobs of `models` wait.

        Raises:
            Unavailable: the database is away.
        """
        async with self._opened() as connection:
            return await _depths(connection, models)

    async def submit(
        self, jobs: Sequence[NewJob], claims: Iterable[Claim], done: Iterable[int]
    ) -> Submitted:
        """Queue jobs with their claims, and drop the outbox entries `done`.

        Raises:
            Unavailable: the database is away; the jobs may have been written all the same.
            InvalidInput: a value that no column can hold; nothing was written.
            ClaimHeld: one of the claims waits for another transaction; nothing was written.
        """
        async with self._opened() as connection:
            try:
                return await _submit(connection, jobs, claims, done)
            except psycopg.errors.LockNotAvailable as error:
                raise ClaimHeld from error

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        whole = False
        try:
            with translated():
                connection = self._connection
                if connection is None:
                    connection = self._connection = await psycopg.AsyncConnection.connect(
                        self._dsn, autocommit=True, connect_timeout=5
                    )
                    await connection.execute(_LOCK_TIMEOUT)
                yield connection
            whole = True
        finally:
            # After an error, or a caller that gave up, the connection's state is not known.
            if not whole:
                await self.close()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
