"""The engine with real jobs: order, fan-out, retries, cancel, takeover, outages."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from tests.integration.workflows.world import World, call
from vyvo_dagster.domain.workflow.state import RunState, StepState
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.streams.client import connect


async def test_a_chain_hands_outputs_on_and_ends_with_its_outputs(world: World) -> None:
    version = await world.push(
        [
            call("first", input={"n": "${{ inputs.n }}"}),
            call("second", input={"n": "${{ steps.first.output.n }}", "also": "x"}),
        ],
        inputs={"n": {"type": "integer"}},
        outputs={"n": "${{ steps.second.output.n }}"},
    )
    run = await world.ended(await world.start(version, {"n": 7}))
    assert (run.state, run.outputs) == (RunState.SUCCEEDED, {"n": 7})
    steps = await world.steps(run.id)
    assert all(step.state is StepState.SUCCEEDED and step.attempt == 1 for step in steps.values())
    first, second = steps["first"], steps["second"]
    assert first.completed_at is not None
    assert second.submitted_at is not None
    assert first.completed_at <= second.submitted_at
    with pytest.raises(InvalidInput):
        await world.start(version, {"n": "seven"})


async def test_items_run_at_once_up_to_the_limit_and_come_back_in_order(world: World) -> None:
    version = await world.push(
        [
            call("each", for_each=[5, 4, 3, 2, 1], limit=2,
                 input={"n": "${{ item }}", "sleep_seconds": 0.05}),
            {"name": "all", "operation": "select", "input": {
                "items": "${{ steps.each.output }}", "value": "${{ item.n }}"}},
        ],
        outputs={"n": "${{ steps.all.output }}"},
    )  # fmt: skip
    run = await world.ended(await world.start(version))
    assert (run.state, run.outputs) == (RunState.SUCCEEDED, {"n": [5, 4, 3, 2, 1]})
    items = [s for s in (await world.steps(run.id)).values() if s.map_index is not None]
    spans = sorted(
        (s.submitted_at or datetime.max.replace(tzinfo=UTC), s.completed_at) for s in items
    )
    for begun, _ in spans:
        under_way = [b for b, e in spans if b <= begun and e is not None and e > begun]
        assert len(under_way) <= 2


async def test_a_refused_input_fails_its_step_and_what_needs_it_is_skipped(world: World) -> None:
    version = await world.push(
        [
            {"name": "lost", "model": "test/nobody", "input": {}, "retries": {"attempts": 3}},
            call("after", needs=["lost"]),
            call("beside"),
        ]
    )
    run = await world.ended(await world.start(version))
    assert (run.state, run.error_code) == (RunState.FAILED, "step_failed")
    steps = await world.steps(run.id)
    assert (steps["lost"].error_code, steps["lost"].attempt) == ("not_found", 1)
    assert steps["after"].state is StepState.SKIPPED
    assert steps["beside"].state is StepState.SUCCEEDED


async def test_cancel_stops_the_jobs_of_steps_that_run(world: World) -> None:
    version = await world.push(
        [call("long", input={"sleep_seconds": 300}), call("then", needs=["long"])]
    )
    run_id = await world.start(version)
    step = await world.until(run_id, "long", StepState.RUNNING)
    async with world.database.transaction() as store:
        assert await store.workflow_runs.request_cancel(run_id)
    run = await world.ended(run_id, seconds=25)
    assert run.state is RunState.CANCELED
    assert step.job_id is not None
    async with world.database.transaction() as store:
        job = await store.jobs.get(step.job_id, None)
    assert job is not None
    assert job.state == "canceled"
    assert (await world.steps(run_id))["then"].state is StepState.CANCELED


async def test_one_trigger_key_starts_one_run(world: World) -> None:
    version = await world.push([call("only")])
    first, again = await world.start(version, key="k"), await world.start(version, key="k")
    assert first == again
    await world.ended(first)
    assert await world.jobs(first) == 1


async def test_an_engine_that_dies_is_replaced_and_no_step_is_done_twice(world: World) -> None:
    version = await world.push(
        [call("done"), call("under_way", needs=["done"], input={"sleep_seconds": 1.5}),
         call("last", needs=["under_way"])]
    )  # fmt: skip
    ids = [await world.start(version) for _ in range(5)]
    for each in ids:
        await world.until(each, "under_way", StepState.RUNNING)
    task, _ = world.engines.pop()
    # As a kill: nothing is given back, so that another must wait for the lease.
    async with world.database.transaction() as store:
        held = (await world.run(ids[0])).engine_id
        assert held is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with world.database.transaction() as store:
        await store.workflow_runs.release(held)
    world.begin_engine()
    for each in ids:
        run = await world.ended(each)
        assert run.state is RunState.SUCCEEDED
        assert await world.jobs(each) == 3


async def test_two_engines_share_runs_and_step_on_nobodys_toes(world: World) -> None:
    world.begin_engine()
    version = await world.push([call("a"), call("b", needs=["a"]), call("c", needs=["b"])])
    ids = [await world.start(version) for _ in range(40)]
    for each in ids:
        assert (await world.ended(each, 60)).state is RunState.SUCCEEDED
        assert await world.jobs(each) == 3


async def test_runs_end_as_the_version_that_they_began_as(world: World) -> None:
    steps = [
        call("long", input={"sleep_seconds": 1.0}),
        call("last", needs=["long"], input={"v": 1}),
    ]
    members = {"outputs": {"v": "${{ steps.last.output.v }}"}}
    old = await world.push(steps, **members)
    ids = [await world.start(old) for _ in range(10)]
    for each in ids:
        await world.until(each, "long", StepState.RUNNING)
    newer = [steps[0], call("last", needs=["long"], input={"v": 2})]
    new = await world.push(newer, name=old.name, **members)
    assert (old.version, new.version) == (1, 2)
    after = await world.start(new)
    for each in ids:
        run = await world.ended(each)
        assert (run.state, run.version, run.outputs) == (RunState.SUCCEEDED, 1, {"v": 1})
    assert (await world.ended(after)).outputs == {"v": 2}


async def test_a_flush_of_redis_loses_no_run(world: World) -> None:
    version = await world.push(
        [call("long", input={"sleep_seconds": 1.0}), call("last", needs=["long"])]
    )
    ids = [await world.start(version) for _ in range(5)]
    for each in ids:
        await world.until(each, "long", StepState.RUNNING)
    redis = connect(world.settings.redis_url)
    await redis.flushall()
    await redis.aclose()
    for each in ids:
        assert (await world.ended(each, 60)).state is RunState.SUCCEEDED
        assert await world.jobs(each) == 2


async def test_an_engine_past_its_lease_writes_nothing(world: World) -> None:
    version = await world.push(
        [call("long", input={"sleep_seconds": 2.0}), call("last", needs=["long"])]
    )
    run_id = await world.start(version)
    await world.until(run_id, "long", StepState.RUNNING)
    # As if another had taken it over while the first stood still.
    async with world.database.transaction() as store:
        await store.connection.execute(
            sa.text("update workflow_runs set engine_id = :other, lease_expires_at = now() + "
                    "interval '4 seconds' where id = :run"), {"other": uuid7(), "run": run_id},
        )  # fmt: skip
    await asyncio.sleep(3.0)
    steps = await world.steps(run_id)
    assert (steps["long"].state, steps["last"].state) == (StepState.RUNNING, StepState.PENDING)
    # The other one's lease ends too, and the run goes on with what its job has done meanwhile.
    run = await world.ended(run_id)
    assert run.state is RunState.SUCCEEDED
    assert await world.jobs(run_id) == 2


async def test_a_claim_tells_of_a_run_that_somebody_held(world: World) -> None:
    await world.end_engines()
    run_id = await world.start(await world.push([call("only")]))
    engine, lease = uuid7(), timedelta(seconds=30)
    async with world.database.transaction() as other:
        await other.workflow_runs.get(run_id, None, lock=True)
        async with world.database.transaction() as store:
            assert await store.workflow_runs.claim(engine, lease, 10) == []
            assert await store.workflow_runs.any_due()
            # What the reporter reads is not held by it, nor kept from it.
            assert [run.id for run in await store.workflow_runs.unreported(10)] == [run_id]
    async with world.database.transaction() as store:
        assert [run.id for run in await store.workflow_runs.claim(engine, lease, 10)] == [run_id]
        assert not await store.workflow_runs.any_due()
