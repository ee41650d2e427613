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
    "PUBLISH",
    "PUBLISH_LIMITS",
    "REPLAY",
    "Event",
    "newer",
    "publish",
    "publish_in",
    "publish_many",
    "publish_once",
    "replay",
]

REPLAY: Final = 1024
"""Events of a job that can be replayed."""
_ALL_KEPT: Final = 10_000
_TTL_MS: Final = 24 * 3600 * 1000
# Made once: json.dumps makes an encoder per call where it is told anything.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

# A write whose answer was lost is made again, and a report may come late. So `queued` is told as
# the first word only, and after `completed` only what opens another life is: that it was queued
# again, or a later attempt. An end is told once, then, and is the last word of its life.
PUBLISH: Final = """
local function attempt(data)
  return tonumber(string.match(data, '"attempt":%s*(%d+)') or nil)
end
local function stale(last, kind, data)
  if kind == 'queued' then return last[2][2] ~= 'loading' and last[2][2] ~= 'position' end
  if last[2][2] ~= 'completed' then return false end
  local was, now = attempt(last[2][4]), attempt(data)
  if kind == 'requeued' then return was and now and now < was end
  if kind == 'dispatched' then return was and now and now <= was end
  return true
end
local function publish(all, stream, topic, kind, data, limits)
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if last and stale(last, kind, data) then return last[1] end
  local id = redis.call('XADD', stream, 'MAXLEN', limits[1], '*', 'kind', kind, 'data', data)
  redis.call('PEXPIRE', stream, limits[3])
  redis.call('XADD', all, 'MAXLEN', '~', limits[2], '*',
    'kind', kind, 'data', data, 'topic', topic, 'id', id)
  return id
end
"""
"""Lua: publishes one event; `limits` are PUBLISH_LIMITS."""
PUBLISH_LIMITS: Final = (REPLAY, _ALL_KEPT, _TTL_MS)

# KEYS: all-events stream, then the job's stream of each event.
# ARGV: the limits, then topic, kind, data of each event.
_PUBLISH: Final = Script(
    PUBLISH
    + """
local ids, limits = {}, {ARGV[1], ARGV[2], ARGV[3]}
for i = 2, #KEYS do
  local a = 3 * i - 2
  ids[#ids + 1] = publish(KEYS[1], KEYS[i], ARGV[a], ARGV[a + 1], ARGV[a + 2], limits)
end
return ids
"""
)


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


# As _PUBLISH.
_PUBLISH_ONCE: Final = Script(
    PUBLISH
    + """
local limits = {ARGV[1], ARGV[2], ARGV[3]}
for i = 2, #KEYS do
  local a = 3 * i - 2
  local last = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
  if not (last and last[2][2] == ARGV[a + 1] and last[2][4] == ARGV[a + 2]) then
    publish(KEYS[1], KEYS[i], ARGV[a], ARGV[a + 1], ARGV[a + 2], limits)
  end
end
return 0
"""
)


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
            [*PUBLISH_LIMITS, *(value for event in events for value in event)],
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
    told = [(job_id, kind, _encode(data)) for job_id, kind, data in events]
    (ids,) = await publish_in(Batch(), told).execute(redis)
    return [str(id_) for id_ in ids]


async def publish_once(redis: AsyncRedis, events: Sequence[tuple[str, str, str]]) -> None:
    """Publish (job id, kind, JSON data) events, save those that their job was told last.

    For what several processes may find out at a time, or one twice.
    """
    if events:
        await _PUBLISH_ONCE(
            redis,
            [keys.ALL_EVENTS, *(keys.job_events(job_id) for job_id, _, _ in events)],
            [*PUBLISH_LIMITS, *(value for event in events for value in event)],
        )


async def replay(redis: AsyncRedis, job_id: UUID | str, after: str = "0-0") -> list[Event]:
    """The kept events of a job after id `after`, oldest first."""
    found: Any = await redis.xrange(keys.job_events(job_id), min=f"({after}", count=REPLAY)
    return [Event(str(job_id), id_, f["kind"], f["data"]) for id_, f in found]
