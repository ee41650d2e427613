"""The agent as a process of its own: signals, sudden death, and settings that cannot work."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_plane import JOIN_TOKEN, ControlPlane
from test_agent import desire, loaded, order

from vyvo_dagster.protocol.job import AttemptStatus, OrderKind

Spawn = Callable[..., Any]


async def test_sigterm_during_a_job_hands_it_back_and_leaves_nothing(
    plane: ControlPlane, spawn: Spawn, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    agent = await spawn()
    await loaded(plane, asked)
    run = order(asked, steps=400, seconds=0.1)
    await plane.order(OrderKind.RUN, run)
    await plane.until(lambda: any(p.fraction for _, p in plane.progress))
    runners = descendants(agent.pid)
    assert runners
    began = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    _, said = await asyncio.wait_for(agent.communicate(), 10)
    assert agent.returncode == 0, said.decode()
    assert time.monotonic() - began < 8
    assert plane.ended(run.job_id).status is AttemptStatus.HANDED_BACK
    assert plane.heartbeats[-1].leaving
    assert not alive(runners)
    for line in said.decode().splitlines():
        assert line[:4].isdigit(), line


async def test_sigkill_of_the_agent_takes_its_runners_and_the_next_start_goes_on(
    plane: ControlPlane, spawn: Spawn, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    agent = await spawn()
    await loaded(plane, asked)
    run = order(asked, steps=400, seconds=0.1)
    await plane.order(OrderKind.RUN, run)
    await plane.until(lambda: any(p.fraction for _, p in plane.progress))
    runners = descendants(agent.pid)
    agent.kill()
    await agent.wait()
    async with asyncio.timeout(30):
        while alive(runners):
            await asyncio.sleep(0.05)
    plane.heartbeats.clear()
    await spawn()
    await loaded(plane, asked)
    assert plane.tokens == [JOIN_TOKEN, plane.credential]
    again = order(asked, attempt=2, job_id=run.job_id, steps=0)
    await plane.order(OrderKind.RUN, again)
    report = await plane.until(lambda: plane.ended(run.job_id))
    assert (report.attempt, report.status) == (2, AttemptStatus.SUCCEEDED)


async def test_a_stop_while_the_api_is_away_is_bounded_too(
    plane: ControlPlane, spawn: Spawn, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    agent = await spawn()
    await loaded(plane, asked)
    plane.refusals["complete"].extend([(503, "unavailable")] * 1000)
    plane.refusals["heartbeat"].extend([(503, "unavailable")] * 1000)
    await plane.order(OrderKind.RUN, order(asked, steps=400, seconds=0.1))
    await plane.until(lambda: any(p.fraction for _, p in plane.progress))
    began = time.monotonic()
    agent.send_signal(signal.SIGINT)
    await asyncio.wait_for(agent.communicate(), 12)
    assert agent.returncode == 0
    assert time.monotonic() - began < 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"VYVO_AGENT_JOIN_TOKEN": ""}, "set VYVO_AGENT_JOIN_TOKEN"),
        ({"VYVO_AGENT_API_URL": "not a url"}, "VYVO_AGENT_API_URL must look like"),
        ({"VYVO_AGENT_NAME": "a b"}, "node name must be"),
        ({"VYVO_AGENT_SLOTS": "none"}, "VYVO_AGENT_SLOTS"),
        ({"VYVO_AGENT_LABELS": "pool=a100"}, "labels"),
        ({"VYVO_AGENT_RUNNERS": "cron"}, "VYVO_AGENT_RUNNERS"),
        ({"VYVO_AGENT_REPORT_BY": "grpc"}, "set VYVO_AGENT_GRPC_URL"),
        (
            {"VYVO_AGENT_REPORT_BY": "grpc", "VYVO_AGENT_GRPC_URL": "http://a:1"},
            "VYVO_AGENT_GRPC_URL must look like",
        ),
    ],
)
async def test_settings_that_cannot_work_end_it_with_one_line(
    spawn: Spawn, changes: dict[str, str], said: str
) -> None:
    agent = await spawn(**changes)
    _, error = await asyncio.wait_for(agent.communicate(), 20)
    last = error.decode().splitlines()[-1]
    assert last.startswith("vyvo agent: ")
    assert said in last
    assert "Traceback" not in error.decode()
    assert agent.returncode == 2


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except OSError:
                continue
    found, added = {pid}, True
    while added:
        more = {child for child, parent in parents.items() if parent in found} - found
        added = bool(more)
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that run, zombies not counted."""
    found: set[int] = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found
