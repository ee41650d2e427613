"""The queues of waiting jobs: one stream per model, version, priority class and tenant.

A stream of its own for each of these means that a flood of one tenant, or of a version that no
node has, hides nobody else's jobs. `keys.QUEUES` names the streams that hold something, claimed
or not; a stream and its name there come and go together, in one script, so that memory is bounded
by what waits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import Entry
from vyvo_dagster.streams.scripts import Batch, Script

__all__ = [
    "DONE",
    "ENQUEUED",
    "Queue",
    "Waiting",
    "acknowledge",
    "claim",
    "enqueue",
    "enqueue_in",
    "entry_fields",
    "names",
    "peek",
    "survey",
    "take_over",
]


@dataclass(frozen=True, slots=True)
class Queue:
    """Name of one queue."""

    model_id: str
    version: str
    priority: Priority
    tenant: str

    @property
    def stream(self) -> str:
        """Its key."""
        return keys.jobs(self.model_id, self.version, self.priority, self.tenant)

    @classmethod
    def of(cls, stream: str) -> "Queue":
        """The queue whose key is `stream`. Raises ValueError for another key."""
        return cls(*keys.jobs_parts(stream))


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits unclaimed in a queue. `head_at` is the creation of the first, in ms."""

    queue: Queue
    count: int
    head_at: int


def entry_fields(job_id: UUID, created_at: datetime) -> dict[str, str]:
    """Fields of a job's entry: id, and at, the job's creation in ms since the epoch."""
    return {"id": str(job_id), "at": str(int(created_at.timestamp() * 1000))}


# KEYS: queues, then the stream of each entry. ARGV: id, at of each entry, then the wake channel.
_ENQUEUE: Final = Script("""
for i = 2, #KEYS do
  redis.call('XADD', KEYS[i], '*', 'id', ARGV[2 * i - 3], 'at', ARGV[2 * i - 2])
  redis.call('SADD', KEYS[1], KEYS[i])
end
return redis.call('PUBLISH', ARGV[#ARGV], 'enqueue')
""")
ENQUEUED: Final = "enqueue"
"""What the wake channel says when entries were written."""

# What a group of a stream has still to read: its length less what is pending would count entries
# twice after a take-over, so the server's own `lag` is asked for, and counted where it is unknown.
_GROUP: Final = """
local function group_of(stream, name)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return nil end
  for _, g in ipairs(groups) do
    local found = {}
    for j = 1, #g, 2 do found[g[j]] = g[j + 1] end
    if found['name'] == name then return found end
  end
  return nil
end
"""

# KEYS: queues. ARGV: group, then model:version of each that may be served; none means all.
# Answers stream, count, at of each stream with something unclaimed.
_SURVEY: Final = Script(
    _GROUP
    + """
local wanted = nil
if #ARGV > 1 then
  wanted = {}
  for i = 2, #ARGV do wanted[ARGV[i]] = true end
end
local answer = {}
for _, stream in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if wanted == nil or wanted[string.match(stream, '^vyvo:jobs:([^:]+:[^:]+):')] then
    local group = group_of(stream, ARGV[1])
    local count, head
    if group == nil then
      count, head = redis.call('XLEN', stream), '-'
    else
      count, head = group['lag'], '(' .. group['last-delivered-id']
      if not count then count = #redis.call('XRANGE', stream, head, '+', 'COUNT', 1000) end
    end
    if count > 0 then
      local first = redis.call('XRANGE', stream, head, '+', 'COUNT', 1)
      if #first > 0 then
        local at = '0'
        for j = 1, #first[1][2], 2 do
          if first[1][2][j] == 'at' then
            at = string.match(first[1][2][j + 1], '^%d+$') or at
          end
        end
        answer[#answer + 1] = stream
        answer[#answer + 1] = count
        answer[#answer + 1] = at
      end
    end
    if redis.call('XLEN', stream) == 0 then
      redis.call('DEL', stream)
      redis.call('SREM', KEYS[1], stream)
    end
  end
end
return answer
"""
)

# KEYS: queues, then streams. ARGV: group, consumer, then how many of each stream.
_CLAIM: Final = Script("""
local answer = {}
for i = 2, #KEYS do
  local stream = KEYS[i]
  if redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    redis.call('SREM', KEYS[1], stream)
  else
    local read = {'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[i + 1], 'STREAMS', stream, '>'}
    local got = redis.pcall(unpack(read))
    if type(got) == 'table' and got.err then
      if not string.find(got.err, 'NOGROUP') then return got end
      redis.call('XGROUP', 'CREATE', stream, ARGV[1], '0')
      got = redis.call(unpack(read))
    end
    if got then
      answer[#answer + 1] = {stream, got[1][2]}
    end
  end
end
return answer
""")

# KEYS: queues. ARGV: group, consumer, idle ms, how many of each stream.
_TAKE_OVER: Final = Script("""
local answer = {}
for _, stream in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local got = redis.pcall('XAUTOCLAIM', stream, ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', ARGV[4])
  if not got.err and #got[2] > 0 then
    answer[#answer + 1] = {stream, got[2]}
  end
end
return answer
""")

DONE: Final = """
local function done(stream, group, id)
  redis.pcall('XACK', stream, group, id)
  redis.call('XDEL', stream, id)
end
local function drop(queues, stream)
  if redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    redis.call('SREM', queues, stream)
  end
end
"""
"""Lua: `done` acknowledges and deletes an entry, `drop` forgets a queue that is empty."""

# KEYS: queues, then the stream of each entry. ARGV: group, then the id of each entry.
_ACKNOWLEDGE: Final = Script(
    DONE
    + """
for i = 2, #KEYS do done(KEYS[i], ARGV[1], ARGV[i]) end
for i = 2, #KEYS do drop(KEYS[1], KEYS[i]) end
return #KEYS - 1
"""
)


def enqueue_in(batch: Batch, entries: Sequence[tuple[str, UUID | str, int | str]]) -> Batch:
    """Add to a batch the writing of (stream, job id, creation in ms) entries; see `enqueue`."""
    if entries:
        batch.add(
            _ENQUEUE,
            [keys.QUEUES, *(stream for stream, _, _ in entries)],
            [*(str(value) for _, id_, at in entries for value in (id_, at)), keys.WAKE],
        )
    return batch


async def enqueue(redis: AsyncRedis, entries: Sequence[tuple[str, UUID | str, int | str]]) -> None:
    """Write (stream, job id, creation in ms) entries in order, atomically with their streams' names.

    Dispatch is woken by it.
    """
    await enqueue_in(Batch(), entries).execute(redis)


async def names(redis: AsyncRedis) -> set[Queue]:
    """The queues that hold something, claimed or not."""
    found: Any = await redis.smembers(keys.QUEUES)
    return {queue for stream in found if (queue := _queue_or_none(stream)) is not None}


async def survey(redis: AsyncRedis, versions: Iterable[tuple[str, str]] = ()) -> list[Waiting]:
    """What waits unclaimed for these (model id, version), or for all where none is given."""
    found = await _SURVEY(
        redis, [keys.QUEUES], [keys.GROUP_ORCHESTRATOR, *(f"{m}:{v}" for m, v in versions)]
    )
    return [
        Waiting(queue, int(found[i + 1]), int(found[i + 2]))
        for i in range(0, len(found), 3)
        if (queue := _queue_or_none(found[i])) is not None
    ]


def _queue_or_none(stream: str) -> Queue | None:
    """The queue of a key; None for one that somebody else wrote among them."""
    try:
        return Queue.of(stream)
    except ValueError:
        return None


async def claim(redis: AsyncRedis, consumer: str, wanted: Sequence[tuple[str, int]]) -> list[Entry]:
    """Up to so many entries of each stream that no consumer has, now this one's, in one call."""
    if not wanted:
        return []
    found = await _CLAIM(
        redis,
        [keys.QUEUES, *(stream for stream, _ in wanted)],
        [keys.GROUP_ORCHESTRATOR, consumer, *(count for _, count in wanted)],
    )
    return _entries(found)


async def take_over(redis: AsyncRedis, consumer: str, idle_ms: int, count: int) -> list[Entry]:
    """Up to `count` entries of each queue that some consumer has held for `idle_ms`, now this one's."""
    return _entries(
        await _TAKE_OVER(redis, [keys.QUEUES], [keys.GROUP_ORCHESTRATOR, consumer, idle_ms, count])
    )


async def peek(redis: AsyncRedis, stream: str, after: str, count: int) -> list[Entry]:
    """Up to `count` entries of a queue, claimed or not, from id `after` ("(" in front excludes it)."""
    found: Any = await redis.xrange(stream, min=after, count=count)
    return [Entry(stream, id_, fields) for id_, fields in found]


async def acknowledge(redis: AsyncRedis, entries: Sequence[Entry]) -> None:
    """Entries are done with; a queue that held no others is gone with its stream."""
    if entries:
        await _ACKNOWLEDGE(
            redis,
            [keys.QUEUES, *(e.stream for e in entries)],
            [keys.GROUP_ORCHESTRATOR, *(e.id for e in entries)],
        )


def _entries(found: Any) -> list[Entry]:
    return [
        Entry(stream, id_, dict(zip(fields[::2], fields[1::2], strict=True)))
        for stream, entries in found
        for id_, fields in entries
    ]
