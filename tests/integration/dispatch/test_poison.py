"""A queue entry that nobody can read stops nothing and is kept."""

import pytest

from tests.integration.dispatch.conftest import World
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.streams import keys


@pytest.mark.usefixtures("orchestrator")
async def test_poison_is_set_aside_and_the_queue_goes_on(world: World) -> None:
    await world.node()
    stream = keys.jobs(world.model_id, "1", Priority.STANDARD, "t")
    await world.redis.xadd(stream, {"at": "soon"})
    await world.redis.xadd(stream, {"id": "not\0one"})
    await world.redis.sadd(keys.QUEUES, stream)
    (job_id,) = await world.submit(Priority.STANDARD)
    await world.until(job_id, "dispatched")
    async with world.database.transaction() as store:
        kept = [e for e in await store.dead_letters.entries(None, 100) if e.stream == stream]
    assert [e.reason for e in kept] == [
        "the entry's id is no job id", "the entry has no field id",
    ]  # fmt: skip
    assert kept[0].fields == {"id": "not\ufffdone"}
    assert await world.redis.xlen(stream) == 0
