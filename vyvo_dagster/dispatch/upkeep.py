"""The orchestrator's clocks: leases that end, cancels that are due, jobs that expire, nodes gone silent."""

import logging
import math
import time
from collections.abc import Coroutine, Iterable
from datetime import timedelta
from typing import Any

from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.duties import loops
from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.dispatch.requeue import publish_job_changes, requeue_lost, retry_due
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.node import HeartbeatPolicy, NodeEventKind, NodeState
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["Upkeep"]

log = logging.getLogger(__name__)

_BATCH = 500
# Longer than any pause between two looks of a process that is well.
_OUTAGE_SECONDS = 5.0
# The agent's own 10 s of grace and its kill of the runner, with room for the report.
_CANCEL_GRACE = timedelta(seconds=20)
_SILENT = {NodeState.SUSPECT: NodeEventKind.SUSPECT, NodeState.LOST: NodeEventKind.LOST}


class Upkeep:
    """Periodic duties; each is one short transaction, and any number of orchestrators may do them.

    Args:
        policy: when silence of a node makes it suspect, then lost.
        patience: time that silence is not held against nodes after a start or an outage.
    """

    def __init__(
        self,
        database: Database,
        redis: AsyncRedis,
        *,
        policy: HeartbeatPolicy,
        patience: timedelta = timedelta(0),
    ) -> None:
        self._database = database
        self._redis = redis
        self._policy = policy
        self._patience = patience.total_seconds()
        self._seen_at = -math.inf
        self._patient_until = -math.inf

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """All duties as loops that run until canceled, by name."""
        return loops((self.end_cancels, self.retry_jobs, self.expire_jobs, self.judge_silence))

    async def judge_silence(self) -> None:
        """End leases and watch nodes, but not before agents had time to tell what an outage kept.

        While Postgres is away no heartbeat is written, so that every lease is over and every node
        is silent when it is back.
        """
        async with self._database.transaction() as store:
            await store.ping()
        now = time.monotonic()
        if now - self._seen_at > _OUTAGE_SECONDS:
            self._patient_until = now + self._patience
        self._seen_at = now
        if now >= self._patient_until:
            await self.end_leases()
            await self.watch_nodes()

    async def end_leases(self) -> None:
        """Put jobs whose lease ended back to the queue, or end them."""
        async with self._database.transaction() as store:
            changed = [
                await requeue_lost(store, job, Gone(LOST), charged=True)
                for job in await store.attempts.overdue(_BATCH)
            ]
        await self._tell(changed)

    async def end_cancels(self) -> None:
        """End jobs whose agent did not report a cancel in time."""
        async with self._database.transaction() as store:
            changed = [
                await store.attempts.end_lost(
                    job, JobState.CANCELED, "canceled", "canceled; its node did not confirm in time"
                )
                for job in await store.attempts.cancels_due(_CANCEL_GRACE, _BATCH)
            ]
        await self._tell(changed)

    async def retry_jobs(self) -> None:
        """Stream jobs again whose wait after a failed attempt is over."""
        async with self._database.transaction() as store:
            await retry_due(store, _BATCH)

    async def expire_jobs(self) -> None:
        """End jobs whose time in the queue is over."""
        async with self._database.transaction() as store:
            expired = await store.jobs.expire(_BATCH)
        await self._tell(expired)

    async def watch_nodes(self) -> None:
        """Mark silent nodes suspect, then lost. Their attempts go back when their leases end."""
        async with self._database.transaction() as store:
            moved = await store.nodes.quiet(self._policy, _BATCH)
            for quiet, to in moved:
                log.warning("node %s is %s: silent for %s", quiet.name, to, quiet.silence)
                await store.nodes.add_event(
                    id=uuid7(), node_id=quiet.id, kind=_SILENT[to],
                    detail={"silent_seconds": round(quiet.silence.total_seconds(), 3)},
                )  # fmt: skip

    async def _tell(self, changed: Iterable[Job | None]) -> None:
        """Count and announce, after the commit, what became of jobs."""
        jobs = [job for job in changed if job is not None]
        count_ends(jobs)
        await publish_job_changes(self._redis, jobs)
