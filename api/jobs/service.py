"""Jobs as their clients handle them: reading, priority, cancel."""

from uuid import UUID

from api.artifacts.schemas import artifact_view
from api.auth import Principal
from api.context import Context
from api.jobs.schemas import JobView, job_view
from vyvo_dagster.dispatch.cancel import cancel_locked
from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.dispatch.requeue import announce
from vyvo_dagster.domain.fairness import Weighing, place, rivals
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.errors import IllegalTransition, NotFound
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Job

__all__ = ["cancel", "find", "position_of", "set_priority", "view"]


async def find(store: Store, principal: Principal, job_id: UUID, *, lock: bool = False) -> Job:
    """A job that the principal may see, else NotFound; with `lock` it stays so until the commit."""
    job = await store.jobs.get(job_id, principal.sees, lock=lock)
    if job is None:
        raise NotFound("no such job")
    return job


async def view(store: Store, context: Context, job: Job) -> JobView:
    """A job with its artifacts and attempts."""
    seconds = context.settings.presign_seconds
    artifacts = [
        artifact_view(a, context.objects, seconds) for a in await store.artifacts.of_job(job.id)
    ]
    attempts = await store.attempts.of_job(job.id)
    waits = job.state is JobState.QUEUED
    position = await position_of(store, job) if waits else None
    return job_view(job, artifacts, attempts, position)


async def position_of(store: Store, job: Job) -> int:
    """The place of a job that waits, by the shares of the tenants that compete."""
    ahead = await store.jobs.ahead(job)
    shares = await store.shares.all() if ahead.others else ()
    weighing = Weighing({(s.tenant, s.model_id): s.weight for s in shares})
    weight = weighing.of(job.model_id)
    return place(ahead.urgent, ahead.own, weight(job.tenant), rivals(ahead.others, weight))


async def set_priority(
    context: Context, principal: Principal, job_id: UUID, priority: Priority
) -> JobView:
    """Change the priority of a job that waits.

    Raises:
        IllegalTransition: it does not wait.
    """
    async with context.database.transaction() as store:
        # Locked: what it is answered with must be what it was judged by.
        job = await find(store, principal, job_id, lock=True)
        if job.priority is not priority or job.state is not JobState.QUEUED:
            changed = await store.jobs.set_priority(job_id, priority)
            if changed is None:
                raise IllegalTransition("the job does not wait any more; its priority is of no use")
            job = changed
            # The entry in the old class' stream goes with the job's claim.
            await announce(store, job)
        shown = await view(store, context, job)
    context.relay.kick()
    return shown


async def cancel(context: Context, principal: Principal, job_id: UUID) -> JobView:
    """Cancel a job: at once where it waits, else by its node. A repeat changes nothing.

    Raises:
        IllegalTransition: it has ended otherwise.
    """
    ended: list[Job] = []
    async with context.database.transaction() as store:
        # Locked: one that is dispatched or queued again between the tries would slip through both.
        job = await find(store, principal, job_id, lock=True)
        asked = await cancel_locked(store, job_id)
        if asked is not None:
            job = asked
            ended += [job] if job.state is JobState.CANCELED else []
        elif job.state is not JobState.CANCELED:
            raise IllegalTransition(
                f"the job has {job.state}; only one that has not ended can be canceled"
            )
        shown = await view(store, context, job)
    context.relay.kick()
    count_ends(ended)
    await context.announcer.changes(ended)
    return shown
