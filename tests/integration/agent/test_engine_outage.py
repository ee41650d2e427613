"""Agents and their containers while the engine is away, and over restarts of either."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import engine_image
import pytest
from agent_world import LIMITS, desire, order, settings
from control_plane import ControlPlane
from docker.errors import NotFound
from engine_proxy import EngineProxy

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.agent.runners.base import RunnerSpec
from vyvo_dagster.agent.runners.container import NODE_LABEL, ContainerLauncher
from vyvo_dagster.agent.runners.engine import connect
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind
from vyvo_dagster.protocol.node import DesiredAssignment

pytestmark = pytest.mark.xdist_group("hosts")


@pytest.fixture
async def proxy() -> AsyncIterator[EngineProxy]:
    with tempfile.TemporaryDirectory() as folder:
        made = EngineProxy(Path(folder) / "docker.sock")
        await made.up()
        yield made
        await made.down()


@pytest.fixture(autouse=True)
def swept(plane: ControlPlane) -> Any:
    yield
    for container in containers(plane):
        container.remove(force=True)


def containers(plane: ControlPlane) -> list[Any]:
    client = engine_image.engine()
    label = f"{NODE_LABEL}={plane.node_id}"
    return client.containers.list(all=True, filters={"label": label}, ignore_removed=True)


async def ready(plane: ControlPlane, asked: DesiredAssignment) -> None:
    await plane.until(lambda: plane.state(asked.assignment_id) == "ready", 60)


async def pid_of(plane: ControlPlane, asked: DesiredAssignment) -> int:
    run = order(asked, steps=0)
    await plane.order(OrderKind.RUN, run)
    report = await plane.until(lambda: plane.ended(run.job_id), 60)
    assert report.status is AttemptStatus.SUCCEEDED, report
    return report.output[0]["pid"]


async def until(condition: Callable[[], Any], seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.1)


def gone(name: str) -> bool:
    try:
        engine_image.engine().containers.get(name)
    except NotFound:
        return True
    return False


async def test_what_could_not_be_removed_is_removed_once_the_engine_is_back(
    proxy: EngineProxy, cog_image: str
) -> None:
    engine = await connect("docker", proxy.url)
    assert engine is not None
    launcher = ContainerLauncher(engine, uuid4())
    spec = RunnerSpec(uuid4(), cog_image, {}, loopback_uploads=True)
    name = f"vyvo-runner-{spec.assignment_id}"
    runner = await launcher.launch(spec)
    await proxy.down()
    await asyncio.wait_for(runner.stop(0), 10)
    with pytest.raises(Unavailable):
        await launcher.launch(spec)
    assert not gone(name)
    await proxy.up()
    await until(lambda: gone(name))
    # Its name is not held against who has it next.
    await launcher.launch(spec)
    await asyncio.sleep(3)
    assert not gone(name)
    await launcher.sweep([])
    assert gone(name)
    await launcher.aclose()
    await engine.aclose()


async def test_an_engine_that_restarts_costs_a_node_no_more_than_its_containers(
    plane: ControlPlane, proxy: EngineProxy, cog_image: str, runner_venvs: Path, tmp_path: Path
) -> None:
    asked = desire(plane, cog_image)
    stop = asyncio.Event()
    chosen = settings(plane, runner_venvs, tmp_path, engine="docker", docker_host=proxy.url)
    agent = asyncio.create_task(Agent(chosen, LIMITS).run(stop))
    try:
        await ready(plane, asked)
        first = await pid_of(plane, asked)
        # With live-restore containers go on without the engine, and so do jobs.
        await proxy.down()
        beats = len(plane.heartbeats)
        assert await pid_of(plane, asked) == first
        await plane.until(lambda: len(plane.heartbeats) > beats + 8)
        assert plane.state(asked.assignment_id) == "ready"
        # Without, they have ended when it is back.
        (container,) = containers(plane)
        container.kill()
        await plane.until(lambda: plane.state(asked.assignment_id) == "loading")
        await proxy.up()
        await ready(plane, asked)
        assert await pid_of(plane, asked) != first
        await until(lambda: len(containers(plane)) == 1)
    finally:
        stop.set()
        await asyncio.wait_for(agent, 15)
    assert containers(plane) == []


@pytest.mark.parametrize(
    ("number", "keep"), [(signal.SIGKILL, "false"), (signal.SIGTERM, "true")]
)  # fmt: skip
async def test_an_agent_that_starts_again_adopts_its_containers(
    plane: ControlPlane, spawn: Callable[..., Any], cog_image: str, number: int, keep: str
) -> None:
    asked = desire(plane, cog_image)
    env = {"VYVO_AGENT_ENGINE": "docker", "VYVO_AGENT_KEEP_RUNNERS": keep}
    agent = await spawn(**env)
    await ready(plane, asked)
    first = await pid_of(plane, asked)
    agent.send_signal(number)
    await asyncio.wait_for(agent.wait(), 15)
    plane.heartbeats.clear()
    again = await spawn(**env)
    await ready(plane, asked)
    assert await pid_of(plane, asked) == first
    assert len(containers(plane)) == 1
    # What nobody desires any more at the next start is swept.
    again.kill()
    await again.wait()
    plane.desired.clear()
    await spawn(**env)
    await until(lambda: containers(plane) == [])
