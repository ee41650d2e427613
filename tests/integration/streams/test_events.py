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
