"""Event streams: published once, replayed by id; `hub.py` feeds them to clients.

An event's id is its id in the job's own stream; `vyvo:events` carries the same event with that
id, so that one reader of that stream serves the live part of every client.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.scripts import Batch, Script

__all__ = [
    "REPLAY",
    "Event",
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
    """One event. `topic` is the job's id; `id` orders the events of one topic.

    `text` is its data as JSON on one line, which most readers only pass on.
    """

    topic: str
    id: str
    kind: str
    text: str

    @property
    def data(self) -> dict[str, Any]:
        """The data, parsed anew."""
        return json.loads(self.text)


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
    return [Event(str(job_id), id_, f["kind"], f["data"]) for id_, f in found]
