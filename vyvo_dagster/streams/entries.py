"""Stream entries and consumer groups: the few moves that all our loops share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from vyvo_dagster.streams.client import AsyncRedis

__all__ = [
    "Entry",
    "acknowledge",
    "add_many",
    "ensure_groups",
    "entries_of",
    "read_new",
    "take_over",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry that a consumer holds until it acknowledges it."""

    stream: str
    id: str
    fields: Mapping[str, str]


async def add_many(redis: AsyncRedis, entries: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """XADD entries in order, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for stream, fields in entries:
            pipe.xadd(stream, {**fields})
        await pipe.execute()


async def ensure_groups(redis: AsyncRedis, streams: Iterable[str], group: str) -> None:
    """Create the group of each stream from its start, and the stream, where they are missing."""
    async with redis.pipeline(transaction=False) as pipe:
        for stream in streams:
            pipe.xgroup_create(stream, group, id="0", mkstream=True)
        for answer in await pipe.execute(raise_on_error=False):
            if isinstance(answer, ResponseError) and "BUSYGROUP" not in str(answer):
                raise answer


async def read_new(
    redis: AsyncRedis, group: str, consumer: str, stream: str, count: int,
    wait_ms: int | None = None,
) -> list[Entry]:  # fmt: skip
    """Up to `count` entries that no consumer of the group has; waits for one up to `wait_ms`.

    A group that a flush took away is made again.
    """
    try:
        answer = await redis.xreadgroup(group, consumer, {stream: ">"}, count=count, block=wait_ms)
    except ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
        await ensure_groups(redis, [stream], group)
        answer = await redis.xreadgroup(group, consumer, {stream: ">"}, count=count)
    return [Entry(stream, id_, fields) for id_, fields in entries_of(answer)]


async def take_over(
    redis: AsyncRedis, group: str, consumer: str, stream: str, idle_ms: int, count: int
) -> list[Entry]:
    """Entries that another consumer has held for `idle_ms`, now this one's: it is presumed dead."""
    try:
        _, found, *_ = await redis.xautoclaim(
            stream, group, consumer, min_idle_time=idle_ms, start_id="0-0", count=count
        )
    except ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return []
        raise
    return [Entry(stream, id_, fields) for id_, fields in found if fields is not None]


async def acknowledge(redis: AsyncRedis, group: str, entries: Sequence[Entry]) -> None:
    """Acknowledge and delete entries, so that a stream holds what is still to be done and no more."""
    if not entries:
        return
    by_stream: dict[str, list[str]] = {}
    for entry in entries:
        by_stream.setdefault(entry.stream, []).append(entry.id)
    async with redis.pipeline(transaction=False) as pipe:
        for stream, ids in by_stream.items():
            pipe.xack(stream, group, *ids)
            pipe.xdel(stream, *ids)
        await pipe.execute()


def entries_of(answer: Any) -> list[tuple[str, dict[str, str]]]:
    """(id, fields) in the answer of a read of one stream, whose shape differs by protocol version."""
    if not answer:
        return []
    found = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
    return found[0] if found and isinstance(found[0], list) else found
