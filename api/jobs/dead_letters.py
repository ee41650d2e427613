"""Dead letters: what failed through no fault of its prediction, and the way back to the queue."""

import math
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.auth import Principal
from api.context import Context
from api.fields import Body, Listing
from api.idempotency import Once, once
from api.jobs import service
from api.jobs.gateway import over_quota
from api.jobs.schemas import JobAccepted
from vyvo_dagster.dispatch.requeue import announce
from vyvo_dagster.domain.job import DEFAULT_TTL, JobState, Priority
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.errors import Conflict, IllegalTransition
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import DeadEntry, Job

__all__ = ["DeadLetter", "Requeue", "browse", "requeue"]


class DeadLetter(BaseModel):
    """A job (`kind` job) or a stream entry that could not be read (`kind` entry; admins only).

    `reason` is the job's error code, such as node_lost or runner_crashed, or `unreadable`.
    """

    id: UUID
    kind: Literal["job", "entry"]
    reason: str = Field(examples=["node_lost"])
    detail: str
    at: datetime | None = Field(description="When the job failed, or the entry was set aside.")
    tenant: str | None = None
    model_id: str | None = None
    version: str | None = None
    attempts: int | None = None
    last_node_id: UUID | None = None
    stream: str | None = None
    fields: dict[str, str] | None = None


class Requeue(Body):
    """How a job goes back to the queue. Each left out: as at its submission."""

    priority: Priority | None = None
    ttl_seconds: int | None = Field(
        None, gt=0, le=7 * 86400, description="Its new life in the queue."
    )


async def browse(
    context: Context, principal: Principal, cursor: UUID | None, limit: int, model_id: str | None
) -> Listing[DeadLetter]:
    """One page over both kinds, newest first."""
    entries: list[DeadEntry] = []
    async with context.database.transaction() as store:
        jobs = await store.dead_letters.jobs(principal.sees, cursor, limit, model_id)
        nodes = await store.dead_letters.last_nodes([job.id for job in jobs]) if jobs else {}
        if principal.sees is None and model_id is None:
            entries = await store.dead_letters.entries(cursor, limit)
    letters = [_of_job(job, nodes.get(job.id)) for job in jobs] + [_of_entry(e) for e in entries]
    letters.sort(key=lambda letter: letter.id, reverse=True)
    shown = letters[:limit]
    return Listing(items=shown, next_cursor=str(shown[-1].id) if len(letters) > limit else None)


async def requeue(
    context: Context, principal: Principal, job_id: UUID, body: Requeue, request: Once
) -> JobAccepted:
    """Queue a job again that failed, expired or was canceled.

    Raises:
        NotFound: no such job.
        QuotaExceeded: as many jobs of this key wait as may wait.
        IllegalTransition: it has not ended, or has succeeded.
        Conflict: its version does not take jobs any more.
    """
    queued: list[Job] = []
    async with context.database.transaction() as store:

        async def work() -> JobAccepted:
            job = await _requeued(store, context, principal, job_id, body)
            queued.append(job)
            position = await service.position_of(store, job)
            return JobAccepted(
                job_id=job.id, status=job.state, queue_position=position,
                eta_seconds=await _eta(store, job, position), detail=None,
            )  # fmt: skip

        answer, _ = await once(store, principal.tenant, request, JobAccepted, work)
    # Told before the relay hands the entry over, so that `requeued` comes first.
    await context.announcer.changes(queued)
    context.relay.kick()
    return answer


async def _requeued(
    store: Store, context: Context, principal: Principal, job_id: UUID, body: Requeue
) -> Job:
    # Locked: what is said of it below must hold for what was tried.
    job = await service.find(store, principal, job_id, lock=True)
    version = await store.models.version(job.model_id, job.version)
    if version is None or version.state not in (VersionState.READY, VersionState.ACTIVE):
        state = "gone" if version is None else version.state
        raise Conflict(f"{job.model_id}@{job.version} is {state}; only a ready version takes jobs")
    limits = principal.limits
    if limits.max_queued is not None:
        waiting = await store.jobs.waiting_of_key(principal.key_id)
        if waiting >= limits.max_queued:
            raise over_quota(limits.max_queued)
    wait = DEFAULT_TTL[body.priority or job.priority]
    if body.ttl_seconds is not None:
        wait = timedelta(seconds=body.ttl_seconds)
    again = await store.dead_letters.requeue(
        job_id, attempts=context.settings.max_attempts, wait=wait, priority=body.priority,
        key_id=None if limits.max_queued is None else principal.key_id,
    )  # fmt: skip
    if again is None:
        why = "has succeeded" if job.state is JobState.SUCCEEDED else f"is {job.state}"
        raise IllegalTransition(
            f"the job {why}; only one that has failed, expired or been canceled is queued again"
        )
    await announce(store, again)
    return again


async def _eta(store: Store, job: Job, position: int) -> float | None:
    nodes = await store.assignments.ready_nodes(job.version_id)
    mean = await store.jobs.mean_seconds(job.model_id)
    return None if not nodes or mean is None else round(mean * math.ceil(position / nodes), 3)


def _of_job(job: Job, node_id: UUID | None) -> DeadLetter:
    return DeadLetter(
        id=job.id, kind="job", reason=job.error_code or "failed", detail=job.error_message or "",
        at=job.completed_at, tenant=job.tenant, model_id=job.model_id, version=job.version,
        attempts=job.attempt, last_node_id=node_id,
    )  # fmt: skip


def _of_entry(entry: DeadEntry) -> DeadLetter:
    return DeadLetter(
        id=entry.id, kind="entry", reason="unreadable", detail=entry.reason, at=entry.created_at,
        stream=entry.stream, fields=dict(entry.fields),
    )  # fmt: skip
