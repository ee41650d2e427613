"""The dispatch loop: share the free slots among what waits, claim it, hand it to the nodes.

One turn is: survey the queues; take the turn in Postgres, which counts what is in flight; choose
whose jobs go; claim their entries; claim their rows, which is what makes the attempts; commit; and
then, in one script call, tell the followers, write the nodes' streams and acknowledge. A crash
before the commit leaves entries that another orchestrator takes over. A crash after it leaves
attempts whose orders `Repair.resend_orders` writes.
"""

import asyncio
import dataclasses
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.board import Board
from vyvo_dagster.dispatch.poison import set_aside
from vyvo_dagster.domain.fairness import Backlog, Share
from vyvo_dagster.domain.placement import Candidate, place
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.protocol.order import Order
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.dispatches import Dispatch
from vyvo_dagster.streams import keys, queues
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import Entry
from vyvo_dagster.streams.handover import hand_over
from vyvo_dagster.streams.queues import Queue, Waiting
from vyvo_dagster.telemetry import tracing

__all__ = ["Dispatcher"]

log = logging.getLogger(__name__)

_TURN: Final = 512
_LEAST_OF_A_VERSION: Final = 16
_TURN_SECONDS: Final = 20.0
_CLAIM_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 1.0
_TAKE_OVER_MS: Final = 10_000
_TAKE_OVER_COUNT: Final = 256

Version = tuple[str, str]


class Dispatcher:
    """Dispatches until canceled. Several may run at once: a lock in Postgres gives each its turn."""

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
        self._shares: dict[Version, Share] = {}
        self._expected = False
        # Entries that are claimed and not done with: what a turn that failed leaves, what was
        # taken over. They go before what is claimed next; there are at most a turn's worth.
        self._held: dict[tuple[str, str], Entry] = {}
        # What is committed and not handed over yet, and the task that does it while the next turn
        # is under way.
        self._owed: list[Order] = []
        self._done: list[Entry] = []
        self._delivery: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Set the wake-up whenever someone publishes it, until canceled."""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(keys.WAKE)
                    while True:
                        message = await pubsub.get_message(timeout=5.0)
                        if message is not None:
                            self._expected |= message["data"] == queues.ENQUEUED
                            self._wake.set()
            except RedisError:
                await asyncio.sleep(0.5)

    async def run(self) -> None:
        """Take turns: at once while there is work, else when woken or after a second."""
        try:
            await self._run()
        finally:
            if self._delivery is not None:
                await cancel_all({self._delivery})

    async def _run(self) -> None:
        next_take_over = 0.0
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                if loop.time() >= next_take_over:
                    await self._take_over()
                    next_take_over = loop.time() + _TAKE_OVER_MS / 2000
                if await self.turn():
                    continue
            except (RedisError, Unavailable, TimeoutError) as error:
                log.warning("dispatch waits: %s", error or type(error).__name__)
                await asyncio.sleep(0.2)
                continue
            except Exception:  # what broke one turn may not be there at the next
                log.exception("a turn of dispatch broke")
                await asyncio.sleep(1)
                continue
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def turn(self) -> int:
        """One turn; returns how many entries it was done with."""
        if self._delivery is None or self._delivery.done():
            await self._delivered()
        versions = self._board.versions
        expected, self._expected = self._expected, False
        if not versions:
            return await self._nothing()
        survey = asyncio.create_task(queues.survey(self._redis, versions), name="survey")
        try:
            # Where entries were just written, the survey finds some: the turn is taken meanwhile.
            if not expected and not (await survey or self._held):
                return await self._nothing()
            return await self._take_turn(survey)
        finally:
            await cancel_all({survey})

    async def _nothing(self) -> int:
        await self._delivered()
        self._shares.clear()
        return 0

    async def _take_turn(self, survey: asyncio.Task[list[Waiting]]) -> int:
        async with asyncio.timeout(_TURN_SECONDS), self._database.transaction() as store:
            candidates = self._board.candidates(await store.dispatches.begin())
            waiting = await survey
            entries = self._ready(candidates)
            entries += await self._claim(waiting, candidates, entries)
            poison = await set_aside(store, entries)
            entries = [entry for entry in entries if entry not in poison]
            placed = await self._place(store, entries, candidates)
            orders = await store.dispatches.claim([d for _, d in placed], self._lease)
        if tracing.on():
            orders = [_traced(order) for order in orders]
        # A job that was placed and not claimed does not wait any more: its entry is done with too.
        done = [*poison, *(entry for entry, _ in placed)]
        for entry in done:
            del self._held[entry.stream, entry.id]
        try:
            await self._delivered()
        finally:
            self._owed += orders
            self._done += done
        self._delivery = asyncio.create_task(self._deliver(again=False), name="hand-over")
        return len(done)

    async def _delivered(self) -> None:
        """Wait for what is being handed over; what failed to be is tried again."""
        delivery, self._delivery = self._delivery, None
        if delivery is not None:
            try:
                await delivery
            except RedisError as error:
                log.warning("orders wait: %s", error)
        if self._owed or self._done:
            await self._deliver(again=True)

    async def _deliver(self, *, again: bool) -> None:
        await hand_over(self._redis, self._owed, self._done, again=again)
        self._owed, self._done = [], []

    async def _take_over(self) -> None:
        """Hold the entries of orchestrators that are gone."""
        self._hold(
            await queues.take_over(self._redis, self._consumer, _TAKE_OVER_MS, _TAKE_OVER_COUNT)
        )

    def _hold(self, entries: Iterable[Entry]) -> None:
        self._held.update(((entry.stream, entry.id), entry) for entry in entries)

    def _ready(self, candidates: Mapping[Version, Sequence[Candidate]]) -> list[Entry]:
        """Entries held from before for which there is a slot."""
        free = {version: _free(found) for version, found in candidates.items()}
        ready: list[Entry] = []
        for entry in self._held.values():
            version = _version(entry)
            if free.get(version, 0) > 0:
                free[version] -= 1
                ready.append(entry)
        return ready

    async def _claim(
        self,
        waiting: Sequence[Waiting],
        candidates: Mapping[Version, Sequence[Candidate]],
        ready: Sequence[Entry],
    ) -> list[Entry]:
        """New entries for the slots that `ready` leaves free, in the order of fairness."""
        by_version: defaultdict[Version, list[Waiting]] = defaultdict(list)
        for each in waiting:
            by_version[each.queue.model_id, each.queue.version].append(each)
        held = Counter(_version(entry) for entry in ready)
        # Clocks of a version for which nobody waits say nothing any more.
        self._shares = {v: self._shares.get(v) or Share() for v in by_version}
        most = max(_TURN // max(len(by_version), 1), _LEAST_OF_A_VERSION)
        now_ms = int(time.time() * 1000)
        order: list[str] = []
        for version, found in by_version.items():
            model_id, name = version
            slots = min(_free(candidates.get(version, ())) - held[version], most)
            if slots > 0:
                backlogs = [
                    Backlog(w.queue.tenant, w.queue.priority, w.count, w.head_at) for w in found
                ]
                weight = partial(self._board.weighing.weight, model_id=model_id)
                taken = self._shares[version].take(backlogs, slots, now_ms, weight)
                order += [keys.jobs(model_id, name, priority, tenant) for tenant, priority in taken]
        try:
            async with asyncio.timeout(_CLAIM_SECONDS):
                claimed = await queues.claim(
                    self._redis, self._consumer, list(Counter(order).items())
                )
        except TimeoutError as error:
            raise RedisTimeoutError("a claim took too long") from error
        self._hold(claimed)
        by_stream: defaultdict[str, deque[Entry]] = defaultdict(deque)
        for entry in claimed:
            by_stream[entry.stream].append(entry)
        return [by_stream[stream].popleft() for stream in order if by_stream[stream]]

    async def _place(
        self,
        store: Store,
        entries: Sequence[Entry],
        candidates: Mapping[Version, Sequence[Candidate]],
    ) -> list[tuple[Entry, Dispatch]]:
        """A node for each entry, elsewhere than where its job failed before if that can be."""
        by_version: defaultdict[Version, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_version[_version(entry)].append(entry)
        choice = [
            UUID(entry.fields["id"])
            for version, found in by_version.items()
            if len(candidates.get(version, ())) > 1
            for entry in found
        ]
        tried = await store.attempts.nodes_tried(choice) if choice else {}
        placed: list[tuple[Entry, Dispatch]] = []
        for version, found in by_version.items():
            ids = [UUID(entry.fields["id"]) for entry in found]
            nodes = place(candidates.get(version, ()), [tried.get(i, frozenset()) for i in ids])
            placed += [
                (entry, Dispatch(id_, node.node_id, node.assignment_id))
                for entry, id_, node in zip(found, ids, nodes, strict=True)
                if node is not None
            ]
        return placed


def _traced(order: Order) -> Order:
    """The order, whose trace goes on from the time that its job waited."""
    if order.traceparent is None:
        return order
    now = time.time()
    # The id of a job tells when it was made (UUIDv7); of one that was queued again, nothing here does.
    waited_since = (order.job_id.int >> 80) / 1000 if order.attempt == 1 else now
    attributes = {
        "vyvo.job_id": str(order.job_id),
        "vyvo.attempt": order.attempt,
        "vyvo.model": order.model_id,
    }
    went = tracing.record(
        "dispatch", order.traceparent, min(waited_since, now), now, kind="consumer",
        attributes={**attributes, "vyvo.node_id": str(order.node_id)},
    )  # fmt: skip
    return dataclasses.replace(order, traceparent=went or order.traceparent)


def _version(entry: Entry) -> Version:
    queue = Queue.of(entry.stream)
    return queue.model_id, queue.version


def _free(candidates: Iterable[Candidate]) -> int:
    return sum(candidate.free_slots for candidate in candidates)
