"""A small world for dispatch: a ready version on a ready node, and an orchestrator beside it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.main import orchestrate
from vyvo_dagster.dispatch.relay import Relay
from vyvo_dagster.dispatch.requeue import announce
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.domain.node import AssignmentState, HeartbeatPolicy
from vyvo_dagster.settings import Settings
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.beats import Beat, Heard
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis, connect


@dataclass
class World:
    """One version and helpers around it; names are unique, so worlds share the servers."""

    database: Database
    redis: AsyncRedis
    settings: Settings
    model_id: str
    version_id: UUID

    async def node(self, slots: int = 1) -> tuple[UUID, UUID]:
        """A ready node with the version ready; (node id, boot id)."""
        boot = uuid7()
        async with self.database.transaction() as store:
            node_id, _ = await store.nodes.join(
                id=uuid7(),
                name=f"n-{uuid7().hex}",
                boot_id=boot,
                labels={},
                capabilities={"cpus": 1},
            )
            found = await store.assignments.request(
                id=uuid7(), node_id=node_id, version_id=self.version_id
            )
            await store.assignments.observe(
                [(node_id, Observation(found.id, AssignmentState.READY, None, slots))]
            )
        return node_id, boot

    async def version(self, gpu_memory_bytes: int = 0) -> tuple[str, UUID]:
        """A ready version of a model of its own; (model id, version id)."""
        model_id = f"t/m{uuid7().hex[-12:]}"
        needs = {"gpu_memory_bytes": gpu_memory_bytes} if gpu_memory_bytes else {}
        async with self.database.transaction() as store:
            await store.models.ensure(model_id, "t")
            version = await store.models.start_building(
                id=uuid7(),
                model_id=model_id,
                version="1",
                template="x",
                modality=Modality.IMAGE,
                weights_uri=None,
                env={},
                resources=needs,
                build_id=uuid7(),
            )
            await store.models.move(version.id, VersionState.READY, runner_image="venv://sha256:0")
        return model_id, version.id

    async def beat(self, node_id: UUID, boot: UUID, **metrics: Any) -> Heard | None:
        """A heartbeat; None where it is refused."""
        policy = HeartbeatPolicy(timedelta(seconds=30), timedelta(seconds=60))
        async with self.database.transaction() as store:
            key = await store.keys.add(
                id=uuid7(), prefix=node_id.hex[-12:], secret_sha256=b"", name="n", tenant="n",
                scopes=[], node_id=node_id,
            )  # fmt: skip
            beat = Beat(node_id, boot, key.id, json.dumps(metrics), 0.0)
            heard = await store.beats.take({node_id: beat}, policy, timedelta(seconds=30))
        found = heard.get(node_id)
        assert not isinstance(found, Exception)
        return found

    async def submit(self, *priorities: Priority, ttl: float = 60.0, **values: Any) -> list[UUID]:
        """Queue one job for each priority, relayed by the orchestrator's sweep or at once."""
        ids = [uuid7() for _ in priorities]
        async with self.database.transaction() as store:
            await store.jobs.add_many(
                [
                    {
                        "id": id_,
                        "tenant": "t",
                        "model_id": self.model_id,
                        "version": "1",
                        "version_id": self.version_id,
                        "priority": priority,
                        "input": {"n": 1},
                        "max_attempts": 2,
                        "expires_at": datetime.now(UTC) + timedelta(seconds=ttl),
                        **values,
                    }
                    for id_, priority in zip(ids, priorities, strict=True)
                ]
            )
            for id_ in ids:
                job = await store.jobs.get(id_, None)
                assert job is not None
                await announce(store, job)
        await Relay(self.database, self.redis).drain()
        return ids

    async def job(self, id_: UUID) -> Job:
        async with self.database.transaction() as store:
            job = await store.jobs.get(id_, None)
        assert job is not None
        return job

    async def until(self, id_: UUID, *states: str, timeout: float = 30.0) -> Job:
        """The job once it is in one of `states`."""
        async with asyncio.timeout(timeout):
            while True:
                job = await self.job(id_)
                if job.state in states:
                    return job
                await asyncio.sleep(0.02)

    async def execute(self, statement: str, **values: Any) -> None:
        """Turn a clock back: tests do not wait for minutes."""
        async with self.database.transaction() as store:
            await store.connection.execute(sa.text(statement), values)
        await self.redis.publish(keys.WAKE, "test")


@asynccontextmanager
async def _world(postgres_dsn: str, redis_url: str) -> AsyncIterator[World]:
    # Beats so short that what is not told by the second one is believed soon.
    settings = Settings(
        postgres_dsn=postgres_dsn, redis_url=redis_url, lease_seconds=30, heartbeat_seconds=1.0
    )
    database, redis = Database(postgres_dsn, pool_size=2), connect(redis_url)
    made = World(database, redis, settings, "", UUID(int=0))
    made.model_id, made.version_id = await made.version()
    yield made
    await redis.aclose()
    await database.close()


@pytest.fixture
async def world(postgres_dsn: str, redis_url: str) -> AsyncIterator[World]:
    async with _world(postgres_dsn, redis_url) as made:
        yield made


@pytest.fixture
async def own_world(make_database: Callable[[str], str], redis_url: str) -> AsyncIterator[World]:
    """With a database of its own, for what looks at all nodes."""
    async with _world(make_database("migrated"), redis_url) as made:
        yield made


@asynccontextmanager
async def orchestrated(world: World) -> AsyncIterator[None]:
    """An orchestrator at work for the length of the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(orchestrate(world.settings, stop))
    yield
    stop.set()
    await asyncio.wait_for(task, 30)


@pytest.fixture
async def orchestrator(world: World) -> AsyncIterator[None]:
    async with orchestrated(world):
        yield


@pytest.fixture
async def own_orchestrator(own_world: World) -> AsyncIterator[None]:
    async with orchestrated(own_world):
        yield
