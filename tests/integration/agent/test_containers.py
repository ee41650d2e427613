"""Runners as containers, on the real engine of this machine."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import engine_image
import pytest
from docker.errors import NotFound

from vyvo_dagster.agent.cog_client import CogClient, Prediction
from vyvo_dagster.agent.runners.base import Runner, RunnerSpec, until_serving
from vyvo_dagster.agent.runners.container import ContainerLauncher
from vyvo_dagster.agent.runners.engine import Engine, connect
from vyvo_dagster.errors import RunnerFailed, Unavailable


class Deaf:
    def on_started(self) -> None: ...

    def on_progress(self, fraction: float) -> None: ...

    def on_log(self, text: str) -> None: ...


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    opened = await connect("docker", None)
    assert opened is not None
    yield opened
    await opened.aclose()


@pytest.fixture
async def launcher(engine: Engine) -> AsyncIterator[ContainerLauncher]:
    made = ContainerLauncher(engine, uuid4())
    yield made
    await made.sweep([])


def spec(image: str, tmp_path: Path, **changes: Any) -> RunnerSpec:
    weights = tmp_path / hashlib.sha256(b"w").hexdigest()
    if not weights.exists():
        weights.write_text("the weights")
        weights.chmod(0o444)
    values = {
        "assignment_id": uuid4(),
        "image": image,
        "env": {"GREETING": "hi"},
        "weights": weights,
    }
    return RunnerSpec(**{**values, "memory_bytes": 512 << 20, **changes})


async def predicted(runner: Runner, **input: Any) -> Prediction:
    async with CogClient(runner.url) as client:
        await until_serving(client, 30)
        return await client.predict("p-1", input, Deaf())


def attrs(assignment_id: UUID) -> dict[str, Any]:
    return engine_image.engine().containers.get(f"vyvo-runner-{assignment_id}").attrs


@pytest.mark.parametrize("loopback_uploads", [True, False])
async def test_a_prediction_in_a_container_that_only_this_host_reaches(
    launcher: ContainerLauncher, cog_image: str, tmp_path: Path, loopback_uploads: bool
) -> None:
    asked = spec(cog_image, tmp_path, loopback_uploads=loopback_uploads)
    await launcher.prepare(asked.image)
    runner = await launcher.launch(asked)
    assert runner.url.startswith("http://127.0.0.1:")
    prediction = await predicted(runner, text="in a box", steps=1)
    assert prediction.output[0]["text"] == "in a box"
    assert prediction.output[0]["weights"] == "the weights"
    seen = attrs(asked.assignment_id)
    assert seen["HostConfig"]["Memory"] == 512 << 20
    assert seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert [m["RW"] for m in seen["Mounts"]] == [False]
    assert seen["HostConfig"]["NetworkMode"] == ("host" if loopback_uploads else "default")
    port = int(runner.url.rpartition(":")[2])
    if loopback_uploads:
        assert seen["Config"]["Cmd"][-2:] == ["--host", "127.0.0.1"]
        assert listeners(port) == {"0100007F"}
    else:
        assert seen["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostIp"] == "127.0.0.1"
    await runner.stop(1)
    with pytest.raises(NotFound):
        attrs(asked.assignment_id)


@pytest.mark.parametrize("loopback_uploads", [True, False])
async def test_two_runners_of_one_image_serve_side_by_side(
    launcher: ContainerLauncher, cog_image: str, tmp_path: Path, loopback_uploads: bool
) -> None:
    asked = [spec(cog_image, tmp_path, loopback_uploads=loopback_uploads) for _ in range(3)]
    runners = await asyncio.gather(*[launcher.launch(each) for each in asked])
    outputs = await asyncio.gather(*[predicted(r, text="both", steps=0) for r in runners])
    assert [p.output[0]["text"] for p in outputs] == ["both"] * 3
    for runner in runners:
        await runner.stop(0)
    assert not any(listeners(int(r.url.rpartition(":")[2])) for r in runners)


async def test_a_crash_is_seen_and_told(
    launcher: ContainerLauncher, cog_image: str, tmp_path: Path
) -> None:
    runner = await launcher.launch(spec(cog_image, tmp_path))
    with contextlib.suppress(Unavailable):
        await predicted(runner, how="die", steps=0)
    reason = await asyncio.wait_for(runner.wait(), 10)
    assert "exited with code 137" in reason
    await runner.stop(0)


async def test_an_agent_that_starts_again_adopts_what_still_serves(
    engine: Engine, launcher: ContainerLauncher, cog_image: str, tmp_path: Path
) -> None:
    asked = spec(cog_image, tmp_path)
    first = await launcher.launch(asked)
    pid = (await predicted(first, steps=0)).output[0]["pid"]
    again = await launcher.launch(asked)
    assert again.url == first.url
    assert (await predicted(again, steps=0)).output[0]["pid"] == pid
    container = attrs(asked.assignment_id)["Id"]
    other = RunnerSpec(asked.assignment_id, cog_image, {"GREETING": "changed"}, asked.weights)
    changed = await launcher.launch(other)
    await predicted(changed, steps=0)
    assert attrs(asked.assignment_id)["Id"] != container


async def test_a_sweep_takes_what_nobody_desires_and_only_its_own(
    engine: Engine, launcher: ContainerLauncher, cog_image: str, tmp_path: Path
) -> None:
    neighbour = ContainerLauncher(engine, uuid4())
    kept, dropped, foreign = (spec(cog_image, tmp_path) for _ in range(3))
    await launcher.launch(kept)
    await launcher.launch(dropped)
    await neighbour.launch(foreign)
    try:
        await launcher.sweep([kept.assignment_id])
        assert attrs(kept.assignment_id)
        assert attrs(foreign.assignment_id)
        with pytest.raises(NotFound):
            attrs(dropped.assignment_id)
    finally:
        await neighbour.sweep([])


async def test_an_image_that_cannot_be_had_says_so(launcher: ContainerLauncher) -> None:
    with pytest.raises((RunnerFailed, Unavailable), match="nobody/nothing"):
        await launcher.prepare(f"127.0.0.1:9/nobody/nothing@sha256:{'0' * 64}")


def listeners(port: int) -> set[str]:
    """Local addresses, in the kernel's hex, on which someone listens at `port`."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    return {
        row[1].partition(":")[0]
        for row in rows
        if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port
    }
