"""Queues on a real server: what is enqueued is found, claimed once, taken over, and leaves nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.streams import keys, queues
from vyvo_dagster.streams.client import AsyncRedis, connect


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


def stream(tenant: str = "acme", version: str = "1", priority: Priority = Priority.STANDARD) -> str:
    return keys.jobs("lab/model", version, priority, tenant)


async def fill(redis: AsyncRedis, name: str, count: int, at: int = 1000) -> list[str]:
    ids = [str(uuid7()) for _ in range(count)]
    await queues.enqueue(redis, [(name, id_, at + n) for n, id_ in enumerate(ids)])
    return ids


async def found(redis: AsyncRedis, *versions: tuple[str, str]) -> dict[str, tuple[int, int]]:
    return {w.queue.stream: (w.count, w.head_at) for w in await queues.survey(redis, versions)}


async def test_a_queue_lives_as_long_as_it_holds_something(redis: AsyncRedis) -> None:
    name = stream()
    ids = await fill(redis, name, 5)
    assert await found(redis) == {name: (5, 1000)}
    claimed = await queues.claim(redis, "a", [(name, 2), (stream("ghost"), 9)])
    assert [(e.stream, e.fields["id"], e.fields["at"]) for e in claimed] == [
        (name, ids[0], "1000"), (name, ids[1], "1001"),
    ]  # fmt: skip
    assert await found(redis) == {name: (3, 1002)}  # what is claimed waits no more
    claimed += await queues.claim(redis, "b", [(name, 9)])
    assert await found(redis) == {}
    assert {q.stream for q in await queues.names(redis)} == {name}  # and is still held
    await queues.acknowledge(redis, claimed[:4])
    assert {q.stream for q in await queues.names(redis)} == {name}
    await queues.acknowledge(redis, claimed[4:])
    assert await redis.keys("*") == []
    # The next one starts over, and a second acknowledgement of the old is harmless.
    (again,) = await fill(redis, name, 1)
    await queues.acknowledge(redis, claimed)
    assert [e.fields["id"] for e in await queues.claim(redis, "a", [(name, 9)])] == [again]


async def test_a_survey_names_only_the_versions_asked_for(redis: AsyncRedis) -> None:
    one, two = stream(version="1"), stream("zeta.x", "2", Priority.BATCH)
    await fill(redis, one, 1)
    await fill(redis, two, 2)
    assert await found(redis, ("lab/model", "2")) == {two: (2, 1000)}
    assert await found(redis, ("lab/model", "3")) == {}
    assert set(await found(redis)) == {one, two}
    (queue,) = [w.queue for w in await queues.survey(redis, [("lab/model", "2")])]
    assert queue == queues.Queue("lab/model", "2", Priority.BATCH, "zeta.x")


async def test_concurrent_claims_share_entries_without_overlap(redis: AsyncRedis) -> None:
    name = stream()
    ids = await fill(redis, name, 300)
    taken = await asyncio.gather(*(queues.claim(redis, f"c{n}", [(name, 60)]) for n in range(6)))
    assert sorted(e.fields["id"] for batch in taken for e in batch) == sorted(ids)


async def test_what_a_dead_consumer_held_is_taken_over(redis: AsyncRedis) -> None:
    name, other = stream(), stream("other")
    ids = await fill(redis, name, 2) + await fill(redis, other, 1)
    await queues.claim(redis, "dead", [(name, 9), (other, 9)])
    assert await queues.take_over(redis, "b", 60_000, 10) == []
    held = await queues.take_over(redis, "b", 0, 10)
    assert sorted(e.fields["id"] for e in held) == sorted(ids)
    await queues.acknowledge(redis, held)
    assert await redis.keys("*") == []


async def test_scripts_survive_a_server_that_forgot_them(redis: AsyncRedis) -> None:
    name = stream()
    await fill(redis, name, 1)
    await redis.script_flush()
    await fill(redis, name, 1)
    await redis.script_flush()
    assert (await found(redis))[name][0] == 2
    await redis.script_flush()
    assert len(await queues.claim(redis, "a", [(name, 9)])) == 2


async def test_a_stream_emptied_by_hand_is_forgotten(redis: AsyncRedis) -> None:
    name = stream()
    await fill(redis, name, 3)
    await redis.xtrim(name, maxlen=0)
    assert await found(redis) == {}
    assert await redis.keys("*") == []


def test_a_queue_is_known_by_its_key() -> None:
    with pytest.raises(ValueError, match="no queue"):
        queues.Queue.of(keys.BUILDS)
    name = stream("a-b.c", "v1.0+x")
    assert queues.Queue.of(name).stream == name
    fields = queues.entry_fields(uuid7(), datetime(2026, 1, 1, tzinfo=UTC))
    assert fields["at"] == "1767225600000"
