"""Versions that only answer their input: where they are allowed, and where they are not."""

import asyncio
from pathlib import Path

from agent_world import desire, loaded, order, settings
from control_plane import ControlPlane

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind


async def test_many_at_a_time_answer_their_input(plane: ControlPlane, tmp_path: Path) -> None:
    asked = desire(plane, "noop://load")
    stop = asyncio.Event()
    allowing = settings(plane, tmp_path, tmp_path, allow_noop=True, slots=4096)
    task = asyncio.create_task(Agent(allowing).run(stop))
    try:
        await loaded(plane, asked)
        assert plane.heartbeats[-1].assignments[0].slots == 4096
        orders = [order(asked, n=n) for n in range(100)]
        for each in orders:
            await plane.order(OrderKind.RUN, each)
        await plane.until(lambda: len(plane.completions) == len(orders))
        for each in orders:
            report = plane.ended(each.job_id)
            assert report is not None
            assert report.status is AttemptStatus.SUCCEEDED
            assert report.output == each.input
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await task


async def test_a_node_that_does_not_allow_them_says_so(plane: ControlPlane, tmp_path: Path) -> None:
    asked = desire(plane, "noop://load")
    stop = asyncio.Event()
    task = asyncio.create_task(Agent(settings(plane, tmp_path, tmp_path)).run(stop))
    try:
        await plane.until(lambda: plane.state(asked.assignment_id) == "failed")
        assert "VYVO_AGENT_ALLOW_NOOP=1" in (plane.heartbeats[-1].assignments[0].detail or "")
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await task
