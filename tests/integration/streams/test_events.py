"""Event streams of jobs: what is told, once and in order."""

from uuid_utils.compat import uuid7

from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.events import publish_many, replay


async def test_an_end_is_told_once_and_is_the_last_word_of_a_life(redis_url: str) -> None:
    job = str(uuid7())
    end = [(job, "artifact", {"n": 1}), (job, "completed", {"status": "failed"})]
    async with connect(redis_url) as redis:
        await publish_many(redis, [(job, "queued", {}), (job, "started", {})])
        first = await publish_many(redis, end)
        # The answer was lost, so it is written again; and a report of before comes late.
        assert await publish_many(redis, end) == [first[-1]] * 2
        await publish_many(redis, [(job, "started", {}), (job, "progress", {"fraction": 0.5})])
        kinds = [event.kind for event in await replay(redis, job)]
        assert kinds == ["queued", "started", "artifact", "completed"]
        # Another life, even where Redis was away when it was opened.
        await publish_many(redis, [(job, "dispatched", {}), (job, "completed", {})])
        kinds = [event.kind for event in await replay(redis, job)]
        assert kinds[4:] == ["dispatched", "completed"]


async def test_what_opened_a_life_is_not_told_again_in_the_next(redis_url: str) -> None:
    job = str(uuid7())
    opening = [(job, "queued", {"position": 1}), (job, "dispatched", {"attempt": 1})]
    end = (job, "completed", {"status": "failed", "attempt": 2})
    async with connect(redis_url) as redis:
        await publish_many(redis, [*opening, (job, "requeued", {"attempt": 1})])
        await publish_many(redis, [(job, "dispatched", {"attempt": 2}), end])
        # All of it again, by writers that never heard that it had been written.
        await publish_many(redis, [*opening, (job, "requeued", {"attempt": 1})])
        await publish_many(redis, [(job, "dispatched", {"attempt": 2}), (job, "started", {}), end])
        kinds = [event.kind for event in await replay(redis, job)]
        assert kinds == ["queued", "dispatched", "requeued", "dispatched", "completed"]
        await publish_many(redis, [(job, "requeued", {"attempt": 2}), opening[0]])
        await publish_many(redis, [(job, "dispatched", {"attempt": 3})])
        kinds = [event.kind for event in await replay(redis, job)]
        assert kinds[5:] == ["requeued", "dispatched"]
