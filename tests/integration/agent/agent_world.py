"""What the tests of a whole agent share: settings, orders, and the agent for a block's time."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from control_plane import JOIN_TOKEN, ControlPlane
from pydantic import SecretStr

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.agent.assignment import Limits
from vyvo_dagster.agent.serving import ServingLimits
from vyvo_dagster.protocol.job import RunOrder
from vyvo_dagster.protocol.node import DesiredAssignment
from vyvo_dagster.settings import AgentSettings

LIMITS = Limits(
    serving=ServingLimits(setup=30, health=0.5, stop=1),
    quick_deaths=2, first_delay=0.1, longest_delay=0.2, first_retry=30, drain=5,
)  # fmt: skip


Start = Callable[..., Any]


def starter(plane: ControlPlane, runner_venvs: Path, tmp_path: Path) -> Start:
    """Run an agent for the time of a block; its end is the orderly one."""

    @asynccontextmanager
    async def start(limits: Limits = LIMITS) -> AsyncIterator[asyncio.Task[None]]:
        stop = asyncio.Event()
        task = asyncio.create_task(Agent(settings(plane, runner_venvs, tmp_path), limits).run(stop))
        try:
            yield task
        finally:
            stop.set()
            await asyncio.wait_for(task, 10)

    return start


def settings(plane: ControlPlane, venvs: Path, home: Path, **changes: Any) -> AgentSettings:
    return AgentSettings(
        **{
            "api_url": plane.url, "join_token": SecretStr(JOIN_TOKEN), "name": "node-under-test",
            "data_dir": home / "data", "env_dir": home / "etc", "venv_dir": venvs, "engine": "process",
            "docker_host": None, "slots": 1, **changes,
        }
    )  # fmt: skip


def desire(plane: ControlPlane, image: str, **members: Any) -> DesiredAssignment:
    asked = DesiredAssignment(
        **{
            "assignment_id": uuid4(), "model_id": "acme/tiny", "version": "1.0", "runner_image": image,
            **members,
        }
    )  # fmt: skip
    plane.desired[asked.assignment_id] = asked
    return asked


def order(
    asked: DesiredAssignment, attempt: int = 1, job_id: UUID | None = None, **input: Any
) -> RunOrder:
    return RunOrder(
        job_id=job_id or uuid4(), attempt=attempt, assignment_id=asked.assignment_id,
        model_id=asked.model_id, version=asked.version, input=input,
    )  # fmt: skip


async def loaded(plane: ControlPlane, asked: DesiredAssignment) -> None:
    await plane.until(lambda: plane.state(asked.assignment_id) == "ready")


def runner_pids() -> set[int]:
    """Cog servers that this process started."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and b"cog.server.http" in command:
                found.add(int(entry.name))
    return found
