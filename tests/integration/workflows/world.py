"""A whole small installation in one process: api, orchestrator, an agent, the workflow engine.

All are the real ones on real servers; the model is a `noop://` version, which answers its input.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from tests.integration.api.world import JOIN_TOKEN, Running, make_settings
from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.dispatch.main import orchestrate
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.domain.workflow.definition import digest
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RUN, TriggerKind
from vyvo_dagster.execution.workflow_engine import drive_with_hosts
from vyvo_dagster.settings import AgentSettings, HostsSettings, S3Settings, Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowVersion
from vyvo_dagster.workflows.starting import start_run

MODEL = "test/echo"


@dataclass
class World:
    """What the tests do with it."""

    settings: Settings
    s3: S3Settings
    database: Database
    hosts: HostsSettings = field(default_factory=HostsSettings)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    engines: list[tuple["asyncio.Task[None]", asyncio.Event]] = field(default_factory=list)

    async def push(self, steps: list[Mapping[str, Any]], **members: Any) -> WorkflowVersion:
        """A version of a workflow of its own name, unless `name` is given."""
        name = members.pop("name", f"w{uuid7().hex[-12:]}")
        document = {"name": name, "steps": steps, **members}
        async with self.database.transaction() as store:
            version, _ = await store.workflows.push(
                id=uuid7(), version_id=uuid7(), tenant="admin", name=name, description="",
                definition=document, sha256=digest(document), created_by="test",
            )  # fmt: skip
        return version

    async def start(
        self, version: WorkflowVersion, inputs: Mapping[str, Any] | None = None, **values: Any
    ) -> UUID:
        async with self.database.transaction() as store:
            run, _ = await start_run(store, version, inputs or {}, TriggerKind.API, **values)
        return run.id

    async def run(self, id: UUID) -> WorkflowRun:
        async with self.database.transaction() as store:
            found = await store.workflow_runs.get(id, None)
        assert found is not None
        return found

    async def steps(self, id: UUID) -> dict[str, Step]:
        async with self.database.transaction() as store:
            return (await store.workflow_runs.steps_of([id]))[id]

    async def ended(self, id: UUID, seconds: float = 30.0) -> WorkflowRun:
        async with asyncio.timeout(seconds):
            while (run := await self.run(id)).state not in RUN.terminal:
                await asyncio.sleep(0.02)
        return run

    async def until(self, id: UUID, key: str, *states: str, seconds: float = 60.0) -> Step:
        async with asyncio.timeout(seconds):
            while True:
                step = (await self.steps(id)).get(key)
                if step is not None and step.state in states:
                    return step
                await asyncio.sleep(0.02)

    async def jobs(self, id: UUID) -> int:
        """How many jobs a run's steps had."""
        async with self.database.transaction() as store:
            found = await store.connection.execute(
                sa.text("select count(*) from jobs j join workflow_steps s "
                        "on s.id = j.workflow_step_id where s.run_id = :id"), {"id": id},
            )  # fmt: skip
            return int(found.scalar() or 0)

    def begin_engine(self) -> "asyncio.Task[None]":
        stop = asyncio.Event()
        task = asyncio.create_task(drive_with_hosts(self.settings, self.s3, self.hosts, stop))
        self.engines.append((task, stop))
        return task

    async def end_engines(self) -> None:
        for task, stop in self.engines:
            stop.set()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.engines.clear()


@contextlib.asynccontextmanager
async def running(
    dsn: str, redis_url: str, s3: S3Settings, folder: Path, **values: Any
) -> AsyncIterator[World]:
    settings = make_settings(
        dsn, redis_url, folder, heartbeat_seconds=1.0, workflow_lease_seconds=3.0,
        webhook_allow_loopback=True, **values,
    )  # fmt: skip
    api = await asyncio.to_thread(Running, settings, s3)
    world = World(settings, s3, Database(dsn, pool_size=2))
    agent = AgentSettings(
        api_url=api.url, join_token=SecretStr(JOIN_TOKEN), name=f"n{uuid7().hex[-12:]}",
        data_dir=folder / "agent", env_dir=folder / "env", engine="process", allow_noop=True,
        slots=64,
    )  # fmt: skip
    tasks = [
        asyncio.create_task(orchestrate(settings, world.stop)),
        asyncio.create_task(Agent(agent).run(world.stop)),
    ]
    try:
        await _serve_echo(world, agent.name or "")
        yield world
    finally:
        await world.end_engines()
        world.stop.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        await world.database.close()
        await asyncio.to_thread(api.close)


async def _serve_echo(world: World, node: str) -> None:
    async with world.database.transaction() as store:
        await store.models.ensure(MODEL, "admin")
        made = await store.models.create_draft(
            id=uuid7(), model_id=MODEL, version="1", template="digits-diffusion",
            modality=Modality.IMAGE, values={"runner_image": "noop://echo"},
        )  # fmt: skip
        assert made is not None
        await store.models.move(made.id, VersionState.READY)
    async with asyncio.timeout(30):
        while True:
            async with world.database.transaction() as store:
                found = next((n for n in await store.nodes.all() if n.name == node), None)
                if found is not None:
                    await store.assignments.request(
                        id=uuid7(), node_id=found.id, version_id=made.id
                    )
                    break
            await asyncio.sleep(0.05)
        while True:
            async with world.database.transaction() as store:
                if await store.assignments.ready_nodes(made.id):
                    return
            await asyncio.sleep(0.05)


def call(name: str, **members: Any) -> dict[str, Any]:
    """A step of the echo model."""
    return {"name": name, "model": MODEL, "input": {}, **members}
