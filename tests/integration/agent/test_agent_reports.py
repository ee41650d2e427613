"""How an agent reports: many at a time, in order, and what it does when the api will not have it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from agent_world import Start, desire, loaded, order, settings
from control_plane import ControlPlane

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind, RunOrder
from vyvo_dagster.protocol.node import DesiredAssignment


@pytest.fixture
async def asked(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[DesiredAssignment]:
    """A version of which an agent runs any number of jobs at a time, at once."""
    wanted = desire(plane, "noop://load")
    stop = asyncio.Event()
    allowing = settings(plane, tmp_path, tmp_path, allow_noop=True, slots=1024)
    task = asyncio.create_task(Agent(allowing).run(stop))
    await loaded(plane, wanted)
    yield wanted
    stop.set()
    async with asyncio.timeout(30):
        await task


async def run(plane: ControlPlane, orders: list[RunOrder]) -> None:
    """Order all of them at once, and wait for all their ends."""
    async with plane.redis.pipeline(transaction=True) as pipe:
        for each in orders:
            fields = {"kind": OrderKind.RUN.value, "body": each.model_dump_json()}
            pipe.xadd(f"vyvo:node:{plane.node_id}", fields)
        await pipe.execute()
    expected = {each.job_id for each in orders}
    await plane.until(lambda: {job_id for job_id, _ in plane.completions} >= expected)


async def test_reports_gather_while_a_batch_is_on_its_way(
    plane: ControlPlane, asked: DesiredAssignment
) -> None:
    values: dict[str, Any] = {"none": None, "list": [None, {}], "text": ""}
    orders = [order(asked, n=n, **values) for n in range(100)]
    await run(plane, orders)
    assert len(plane.completions) == len(plane.progress) == 100
    assert sum(plane.batches) == 200
    assert len(plane.batches) < 50
    for each in orders:
        report = plane.ended(each.job_id)
        assert report is not None
        assert report.output == {"n": each.input["n"], **values}


async def test_a_start_is_told_before_its_end(
    plane: ControlPlane, asked: DesiredAssignment
) -> None:
    orders = [order(asked, n=n) for n in range(100)]
    await run(plane, orders)
    for each in orders:
        assert plane.told[each.job_id] == ["progress", "complete"]


async def test_an_api_without_batches_is_told_one_by_one(
    plane: ControlPlane, asked: DesiredAssignment
) -> None:
    plane.takes_batches = False
    await run(plane, [order(asked, n=n) for n in range(10)])
    assert len(plane.completions) == len(plane.progress) == 10
    assert not plane.batches


async def test_a_batch_that_the_api_cannot_take_goes_one_by_one_and_one_that_waits_goes_whole(
    plane: ControlPlane, asked: DesiredAssignment
) -> None:
    plane.refusals["reports"].extend([(503, "unavailable")] * 2)
    await run(plane, [order(asked, n=n) for n in range(50)])
    assert max(plane.batches) > 10
    plane.batches.clear()
    plane.largest_batch = 1
    await run(plane, [order(asked, n=n) for n in range(10)])
    assert plane.batches == [1] * 20
    assert len(plane.completions) == 60


async def test_an_older_attempt_does_not_run_beside_a_newer_one(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    wanted = desire(plane, runner_image)
    async with started():
        await loaded(plane, wanted)
        job_id = uuid4()
        newer = order(wanted, attempt=3, job_id=job_id, steps=4, seconds=0.1)
        await plane.order(OrderKind.RUN, newer)
        await plane.until(lambda: plane.progress)
        await plane.order(OrderKind.RUN, order(wanted, attempt=2, job_id=job_id, steps=0))
        await plane.until(lambda: plane.ended(job_id))
        after = order(wanted, steps=0)
        await plane.order(OrderKind.RUN, after)
        await plane.until(lambda: plane.ended(after.job_id))
        assert [r.attempt for known, r in plane.completions if known == job_id] == [3]


async def test_an_answer_that_asks_for_the_cancel_is_heeded(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    wanted = desire(plane, runner_image)
    async with started():
        await loaded(plane, wanted)
        run_ = order(wanted, steps=400, seconds=0.05)
        plane.cancel_requested.add(run_.job_id)
        await plane.order(OrderKind.RUN, run_)
        report = await plane.until(lambda: plane.ended(run_.job_id), 8)
        assert report.status is AttemptStatus.CANCELED
