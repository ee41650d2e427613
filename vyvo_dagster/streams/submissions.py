"""New jobs on their way to dispatch and to whoever follows them, in one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.events import add_event

__all__ = ["Announced", "announce"]


@dataclass(frozen=True, slots=True)
class Announced:
    """A job's stream entry and its first event; `data` is JSON."""

    stream: str
    job_id: str
    tenant: str
    kind: str
    data: str


async def announce(redis: AsyncRedis, jobs: Sequence[Announced]) -> None:
    """Tell each job's followers, then write its entry, then wake dispatch."""
    async with redis.pipeline(transaction=False) as pipe:
        for job in jobs:
            # The event first: what dispatch tells of the job comes after it.
            add_event(pipe, job.job_id, job.kind, job.data)
            pipe.xadd(job.stream, {"id": job.job_id, "tenant": job.tenant})
        pipe.publish(keys.WAKE, "gateway")
        await pipe.execute()
