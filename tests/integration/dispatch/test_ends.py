"""Jobs are counted however they end, by whoever ends them."""

from datetime import timedelta

from prometheus_client import REGISTRY

from tests.integration.dispatch.conftest import World
from vyvo_dagster.dispatch.upkeep import Upkeep
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.node import HeartbeatPolicy


def counted(model_id: str, status: str) -> float:
    labels = {"model": model_id, "status": status}
    return REGISTRY.get_sample_value("vyvo_jobs_total", labels) or 0.0


async def test_a_job_that_expires_is_counted_once(own_world: World) -> None:
    policy = HeartbeatPolicy(timedelta(seconds=30), timedelta(seconds=60))
    duties = Upkeep(own_world.database, own_world.redis, policy=policy)
    ids = await own_world.submit(Priority.BATCH, Priority.BATCH, ttl=-1.0)
    waits = await own_world.submit(Priority.BATCH)
    for _ in range(2):
        await duties.expire_jobs()
    assert {(await own_world.job(id_)).state for id_ in ids} == {"expired"}
    assert (await own_world.job(waits[0])).state == "queued"
    assert counted(own_world.model_id, "expired") == 2
    phases = {"model": own_world.model_id, "phase": "queue"}
    assert REGISTRY.get_sample_value("vyvo_job_latency_seconds_count", phases) == 2
