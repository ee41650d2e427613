"""The dispatch loop: claim waiting jobs, place them, hand them to their nodes.

One turn is: read entries for models that have a free slot; order them with those held from
earlier turns; place as many as fit; claim those in Postgres, which is what makes the attempt;
only then write the nodes' streams and acknowledge. A crash after the claim leaves an attempt
whose lease ends; a crash before it leaves entries that another orchestrator takes over.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from redis.exceptions import RedisError

from vyvo_dagster.dispatch.board import Board
from vyvo_dagster.dispatch.poison import set_aside
from vyvo_dagster.domain.fairness import in_order
from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.domain.placement import Candidate, choose
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.protocol.job import OrderKind, RunOrder
from vyvo_dagster.store.attempts import Dispatch
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams import events, keys, queues
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import Entry

__all__ = ["Dispatcher"]

log = logging.getLogger(__name__)

# Entries read ahead per model and class for each free slot: enough to choose from, few enough
# that another orchestrator finds work too.
_READ_AHEAD = 4
_IDLE_SECONDS = 1.0
_TAKE_OVER_MS = 30_000


@dataclass(frozen=True, slots=True)
class Held:
    """A waiting job whose stream entry this orchestrator holds."""

    entry: Entry
    job: Job


class Dispatcher:
    """Dispatches until canceled. Several may run at once: the claim in Postgres decides."""

    def __init__(
        self,
        database: Database,
        redis: AsyncRedis,
        board: Board,
        wake: asyncio.Event,
        *,
        consumer: str,
        lease: timedelta,
    ) -> None:
        self._database = database
        self._redis = redis
        self._board = board
        self._wake = wake
        self._consumer = consumer
        self._lease = lease
        self._held: dict[str, dict[UUID, Held]] = {}

    async def listen(self) -> None:
        """Set the wake-up whenever someone publishes it, until canceled."""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(keys.WAKE)
                    while True:
                        message = await pubsub.get_message(timeout=5.0)
                        if message is not None:
                            self._wake.set()
            except RedisError:
                await asyncio.sleep(0.5)

    async def run(self) -> None:
        """Take turns: at once while there is work, else when woken or after a second."""
        next_take_over = 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                if loop.time() >= next_take_over:
                    await self._take_over()
                    next_take_over = loop.time() + _TAKE_OVER_MS / 2000
                if await self.turn():
                    continue
            except (RedisError, Unavailable) as error:
                log.warning("dispatch waits: %s", error)
                await asyncio.sleep(0.5)
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def turn(self) -> int:
        """One turn; returns how many jobs were dispatched."""
        async with self._database.transaction() as store:
            candidates = await self._board.candidates(store)
        slots = {
            model: sum(c.free_slots for v in versions for c in candidates.get(v, ()))
            for model, versions in self._board.models.items()
        }
        entries = await self._read(slots)
        if not entries and not any(self._held.get(model) for model, free in slots.items() if free):
            return 0
        async with self._database.transaction() as store:
            await self._hold(store, entries)
            placed = await self._place(store, candidates, slots)
            claimed = await store.attempts.dispatch(
                [dispatch for dispatch, _ in placed], self._lease
            )
        await self._hand_over(claimed, [held for _, held in placed])
        return len(claimed)

    async def _read(self, slots: dict[str, int]) -> list[Entry]:
        """New entries of the models that have a free slot."""
        wanted: list[tuple[str, int]] = []
        for waiting in await queues.survey(self._redis):
            model = waiting.queue.model_id
            free = slots.get(model, 0)
            room = free * _READ_AHEAD - len(self._held.get(model, ()))
            if free and room > 0:
                wanted.append((waiting.queue.stream, room))
        return await queues.claim(self._redis, self._consumer, wanted)

    async def _take_over(self) -> None:
        """Hold the entries of orchestrators that are gone."""
        found = await queues.take_over(self._redis, self._consumer, _TAKE_OVER_MS, 256)
        if found:
            async with self._database.transaction() as store:
                await self._hold(store, found)

    async def _hold(self, store: Store, entries: list[Entry]) -> None:
        """Hold the jobs of new entries that still wait; the other entries are done with."""
        if entries:
            stale = await set_aside(self._database, entries)
            entries = [entry for entry in entries if entry not in stale]
            waiting = {
                job.id: job
                for job in await store.jobs.waiting([UUID(e.fields["id"]) for e in entries])
            }
            for entry in entries:
                job = waiting.get(UUID(entry.fields["id"]))
                held = None if job is None else self._held.setdefault(job.model_id, {})
                if (
                    job is None
                    or held is None
                    or (job.id in held and held[job.id].entry.id != entry.id)
                ):
                    stale.append(entry)
                else:
                    held[job.id] = Held(entry, job)
            await queues.acknowledge(self._redis, stale)

    async def _place(
        self, store: Store, candidates: dict[UUID, list[Candidate]], slots: dict[str, int]
    ) -> list[tuple[Dispatch, Held]]:
        """Choose a node for each held job that has one, in order of fairness."""
        now = datetime.now(UTC)
        held = {
            h.job.id: h
            for model, free in slots.items()
            if free
            for h in self._held.get(model, {}).values()
        }
        again = [h.job.id for h in held.values() if h.job.attempt > 0]
        tried = await store.attempts.nodes_tried(again) if again else {}
        placed: list[tuple[Dispatch, Held]] = []
        for job in in_order((h.job for h in held.values()), now):
            found = candidates.get(job.version_id, [])
            chosen = choose(found, tried.get(job.id, frozenset()))
            if chosen is None:
                continue
            found[found.index(chosen)] = replace(chosen, in_flight=chosen.in_flight + 1)
            placed.append((Dispatch(job.id, chosen.node_id, chosen.assignment_id), held[job.id]))
        return placed

    async def _hand_over(self, claimed: list[Job], placed: list[Held]) -> None:
        """Write the nodes' streams, tell the clients, and acknowledge what was placed.

        A job that was placed and not claimed is no longer waiting, so its entry is done with too.
        """
        for held in placed:
            del self._held[held.job.model_id][held.job.id]
        # Told first: an agent may start at once, and `dispatched` comes before `started`.
        await events.publish_many(
            self._redis,
            [
                (
                    str(job.id),
                    JobEventKind.DISPATCHED,
                    {"status": str(job.state), "attempt": job.attempt, "node_id": str(job.node_id)},
                )
                for job in claimed
            ],
        )
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in claimed:
                assert job.node_id is not None
                assert job.assignment_id is not None
                order = RunOrder(
                    job_id=job.id,
                    attempt=job.attempt,
                    assignment_id=job.assignment_id,
                    model_id=job.model_id,
                    version=job.version,
                    input=dict(job.input),
                    timeout_seconds=job.timeout_seconds,
                    traceparent=job.traceparent,
                )
                pipe.xadd(
                    keys.node(job.node_id),
                    {"kind": OrderKind.RUN.value, "body": order.model_dump_json()},
                )
            await pipe.execute()
        await queues.acknowledge(self._redis, [held.entry for held in placed])
