"""New jobs on their way to dispatch and to whoever follows them, in one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass

from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.events import publish_in
from vyvo_dagster.streams.queues import enqueue_in
from vyvo_dagster.streams.scripts import Batch

__all__ = ["Announced", "announce"]


@dataclass(frozen=True, slots=True)
class Announced:
    """A job's stream entry and its first event; `at` is its creation in ms, `data` is JSON."""

    stream: str
    job_id: str
    at: int
    kind: str
    data: str


async def announce(redis: AsyncRedis, jobs: Sequence[Announced]) -> None:
    """Tell each job's followers, then write its entry, then wake dispatch."""
    batch = Batch()
    # The events first: what dispatch tells of a job comes after it.
    publish_in(batch, [(job.job_id, job.kind, job.data) for job in jobs])
    enqueue_in(batch, [(job.stream, job.job_id, job.at) for job in jobs])
    await batch.execute(redis)
