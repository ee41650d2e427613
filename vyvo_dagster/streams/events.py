"""Event streams: published once, replayed by id, fed to every SSE client by one reader a process.

An event's id is its id in the job's own stream; `vyvo:events` carries the same event with that
id, so that one reader of that stream serves the live part of every client.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import entries_of
from vyvo_dagster.streams.scripts import Batch, Script

__all__ = [
    "REPLAY",
    "Event",
    "EventHub",
    "Subscription",
    "newer",
    "publish",
    "publish_in",
    "publish_many",
    "replay",
]

REPLAY: Final = 1024
"""Events of a job that can be replayed."""
_ALL_KEPT: Final = 10_000
_TTL_MS: Final = 24 * 3600 * 1000
_QUEUE: Final = 2048

# KEYS: all-events stream, then the job's stream of each event.
# ARGV: kept, all kept, ttl in ms, then topic, kind, data of each event.
# A write whose answer was lost is made again, and a report may come late: after `completed` only
# what opens another life is told, so that an end is told once and is the last word.
_PUBLISH: Final = Script("""
local opens = {queued = true, requeued = true, dispatched = true}
local ids = {}
for i = 2, #KEYS do
  local a = 3 * i - 2
  local last = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
  if last and last[2][2] == 'completed' and not opens[ARGV[a + 1]] then
    ids[#ids + 1] = last[1]
  else
    local id = redis.call('XADD', KEYS[i], 'MAXLEN', ARGV[1], '*',
      'kind', ARGV[a + 1], 'data', ARGV[a + 2])
    redis.call('PEXPIRE', KEYS[i], ARGV[3])
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*',
      'kind', ARGV[a + 1], 'data', ARGV[a + 2], 'topic', ARGV[a], 'id', id)
    ids[#ids + 1] = id
  end
end
return ids
""")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `topic` is the job's id; `id` orders the events of one topic."""

    topic: str
    id: str
    kind: str
    data: Mapping[str, Any]


def newer(id: str, than: str) -> bool:
    """Whether stream id `id` comes after `than`."""
    return _parts(id) > _parts(than)


def _parts(id: str) -> tuple[int, int]:
    milliseconds, _, sequence = id.partition("-")
    return int(milliseconds), int(sequence or 0)


def publish_in(batch: Batch, events: Sequence[tuple[str, str, str]]) -> Batch:
    """Add to a batch the publishing of (job id, kind, JSON data) events, in order."""
    if events:
        batch.add(
            _PUBLISH,
            [keys.ALL_EVENTS, *(keys.job_events(job_id) for job_id, _, _ in events)],
            [REPLAY, _ALL_KEPT, _TTL_MS, *(value for event in events for value in event)],
        )
    return batch


async def publish(redis: AsyncRedis, job_id: UUID | str, kind: str, data: Mapping[str, Any]) -> str:
    """Publish one event of a job; returns its id."""
    return (await publish_many(redis, [(str(job_id), kind, data)]))[0]


async def publish_many(
    redis: AsyncRedis, events: Sequence[tuple[str, str, Mapping[str, Any]]]
) -> list[str]:
    """Publish (job id, kind, data) events in order, in one round trip; returns their ids."""
    if not events:
        return []
    told = [
        (job_id, kind, json.dumps(data, separators=(",", ":"))) for job_id, kind, data in events
    ]
    (ids,) = await publish_in(Batch(), told).execute(redis)
    return [str(id_) for id_ in ids]


async def replay(redis: AsyncRedis, job_id: UUID | str, after: str = "0-0") -> list[Event]:
    """The kept events of a job after id `after`, oldest first."""
    found: Any = await redis.xrange(keys.job_events(job_id), min=f"({after}", count=REPLAY)
    return [Event(str(job_id), id_, f["kind"], json.loads(f["data"])) for id_, f in found]


class Subscription:
    """What one client waits for. `topic` None takes every event."""

    def __init__(self, topic: str | None) -> None:
        self.topic = topic
        self._queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE)
        self.overrun = False
        """The client was too slow and events were dropped: it must replay."""

    def offer(self, event: Event) -> None:
        """Hand over an event without waiting."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.overrun = True

    async def next(self, seconds: float) -> Event | None:
        """The next event, or None after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._queue.get()
        except TimeoutError:
            return None


class EventHub:
    """Reads `vyvo:events` once for the whole process and hands events to subscriptions."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._by_topic: dict[str | None, set[Subscription]] = {}

    @property
    def clients(self) -> int:
        """Subscriptions now open."""
        return sum(len(s) for s in self._by_topic.values())

    @contextlib.contextmanager
    def subscribe(self, topic: UUID | str | None) -> Generator[Subscription]:
        """A Subscription for as long as the block runs. Subscribe first, replay after."""
        key = None if topic is None else str(topic)
        subscription = Subscription(key)
        self._by_topic.setdefault(key, set()).add(subscription)
        try:
            yield subscription
        finally:
            members = self._by_topic[key]
            members.discard(subscription)
            if not members:
                del self._by_topic[key]

    async def follow(
        self, job_id: UUID | str, after: str, idle: float
    ) -> AsyncIterator[Event | None]:
        """Events of a job after id `after`: the kept ones, then live; None after `idle` silent seconds.

        Each event is given once and in order. The caller ends the iteration.
        """
        with self.subscribe(job_id) as subscription:
            last = after
            pending = await replay(self._redis, job_id, last)
            while True:
                for event in pending:
                    if newer(event.id, last):
                        last = event.id
                        yield event
                event = await subscription.next(idle)
                if event is None:
                    # Whatever a lost connection to Redis dropped is found here.
                    pending = await replay(self._redis, job_id, last)
                    if not pending:
                        yield None
                elif subscription.overrun:
                    subscription.overrun = False
                    pending = await replay(self._redis, job_id, last)
                else:
                    pending = [event]

    async def run(self) -> None:
        """Read until canceled; survives a Redis that goes away."""
        last: str | None = None
        while True:
            try:
                if last is None:
                    last = await self._tip()
                answer = await self._redis.xread({keys.ALL_EVENTS: last}, count=500, block=5000)
                for id_, fields in entries_of(answer):
                    last = id_
                    self._hand_over(fields)
            except RedisError:
                # What is missed meanwhile each client finds by its own replay.
                last = None
                await asyncio.sleep(0.5)

    async def _tip(self) -> str:
        """Id of the newest entry: reading on from it misses nothing that comes between two reads."""
        newest: Any = await self._redis.xrevrange(keys.ALL_EVENTS, count=1)
        return newest[0][0] if newest else "0-0"

    def _hand_over(self, fields: Mapping[str, str]) -> None:
        topic = fields["topic"]
        if topic not in self._by_topic and None not in self._by_topic:
            return
        event = Event(topic, fields["id"], fields["kind"], json.loads(fields["data"]))
        for subscription in (*self._by_topic.get(topic, ()), *self._by_topic.get(None, ())):
            subscription.offer(event)
