"""Steps as containers on a host: a real engine, with the node of the world's agent as its host."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from tests.integration.dagster import engines
from tests.integration.workflows.world import World, call
from vyvo_dagster.domain.workflow.container import container_name
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RunState, StepState
from vyvo_dagster.execution.routing.engines import Labels
from vyvo_dagster.settings import HostsSettings

pytestmark = pytest.mark.xdist_group("hosts")

URL = "unix:///var/run/docker.sock"
# What a container does: it reads its input as a person's program would.
PROGRAM = """
import json, os, sys, time
given = json.load(open(os.environ["VYVO_INPUT"]))
print("began", flush=True)
time.sleep(given.get("sleep", 0))
if "status" in given:
    print("it is broken", file=sys.stderr)
    sys.exit(given["status"])
left = given["left"] if "left" in given else json.dumps(
    {"n": given["n"] * 2, "host": os.uname().nodename, "s3": os.environ["VYVO_S3_BUCKET_PREFIX"],
     "mine": os.environ["MINE"], "made": given.get("made")})
open(os.environ["VYVO_OUTPUT"], "w").write(left)
"""


@pytest.fixture
def engine() -> Iterator[Any]:
    with closing(engines.client(URL)) as found:
        yield found


@pytest.fixture
async def hosted(world: World) -> World:
    """The world with an engine that reaches its node's Docker."""
    await world.end_engines()
    world.hosts = HostsSettings(engines={"*": URL}, network="host", weights_dir=None)
    world.begin_engine()
    return world


def box(name: str, given: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {
        "name": name,
        "container": {
            "image": engines.BASE_IMAGE, "command": ["python3", "-c", PROGRAM],
            "env": {"MINE": "of my own"},
        },
        "run_on": {"host": "${HOST}", "memory": "256MiB"},
        "input": given,
        **members,
    }  # fmt: skip


async def node(world: World) -> str:
    async with world.database.transaction() as store:
        (found,) = await store.nodes.all()
    return found.name


async def started(world: World, *steps: dict[str, Any], **members: Any) -> UUID:
    host = await node(world)
    for step in steps:
        if step.get("run_on", {}).get("host") == "${HOST}":
            step["run_on"]["host"] = host
    return await world.start(await world.push(list(steps), **members))


def left(engine: Any, run_id: UUID) -> list[str]:
    """Containers of a run, whatever they do."""
    found = engine.containers.list(
        all=True, filters={"label": f"{Labels.RUN}={run_id}"}, ignore_removed=True
    )
    return [str(c.name) for c in found]


async def gone(engine: Any, run_id: UUID) -> None:
    async with asyncio.timeout(30):
        while await asyncio.to_thread(left, engine, run_id):
            await asyncio.sleep(0.1)


async def printed(engine: Any, step: Step) -> Any:
    """The container of a step, once its program has begun."""
    name = container_name(step.id, step.attempt)
    async with asyncio.timeout(30):
        while True:
            found = await asyncio.to_thread(engine.containers.get, name)
            if b"began" in await asyncio.to_thread(found.logs):
                return found
            await asyncio.sleep(0.1)


async def test_a_container_reads_its_input_and_leaves_output_and_artifacts(
    hosted: World, engine: Any
) -> None:
    art = {"type": "image", "url": "s3://b/x", "size_bytes": 1, "mime_type": "image/png",
           "expires_at": None}  # fmt: skip
    run_id = await started(
        hosted,
        call("first", input={"n": 4}),
        box("twice", {"n": "${{ steps.first.output.n }}", "made": art}),
        box("each", {"n": "${{ item }}"}, for_each=[1, 2], limit=1),
        call("last", input={"n": "${{ steps.twice.output.n }}", "of": "${{ len(steps.twice.artifacts) }}"}),
        outputs={"n": "${{ steps.last.output.n }}", "each": "${{ steps.each.output[1].n }}"},
    )  # fmt: skip
    run = await hosted.ended(run_id, 60)
    assert (run.state, run.outputs) == (RunState.SUCCEEDED, {"n": 8, "each": 4}), run.error_message
    steps = await hosted.steps(run_id)
    twice = steps["twice"]
    assert (twice.host, twice.job_id, twice.attempt) == (await node(hosted), None, 1)
    assert twice.output["mine"] == "of my own"
    assert twice.output["s3"] == hosted.s3.bucket_prefix
    assert twice.output["made"] == art
    assert twice.submitted_at is not None
    assert twice.started_at is not None
    assert twice.completed_at is not None
    assert twice.submitted_at <= twice.started_at <= twice.completed_at
    await gone(engine, run_id)


async def test_one_that_fails_is_tried_again_and_says_what_it_printed(
    hosted: World, engine: Any
) -> None:
    run_id = await started(
        hosted,
        box("bad", {"status": 3}, retries={"attempts": 2, "backoff_seconds": 0.1}),
        box("text", {"left": "no json"}),
    )
    run = await hosted.ended(run_id, 60)
    assert run.state is RunState.FAILED
    steps = await hosted.steps(run_id)
    bad = steps["bad"]
    assert (bad.state, bad.attempt, bad.error_code) == (StepState.FAILED, 2, "container_failed")
    assert "ended with status 3" in (bad.error_message or "")
    assert "it is broken" in (bad.error_message or "")
    assert [a["host"] for a in bad.attempts] == [await node(hosted)]
    assert steps["text"].error_code == "bad_output"
    await gone(engine, run_id)


async def test_a_cancel_and_a_time_limit_end_the_container(hosted: World, engine: Any) -> None:
    run_id = await started(
        hosted, box("late", {"sleep": 600, "n": 1}, timeout_seconds=1, continue_on_failure=True),
        box("long", {"sleep": 600, "n": 1}),
    )  # fmt: skip
    long = await hosted.until(run_id, "long", StepState.RUNNING, seconds=60)
    await printed(engine, long)
    late = await hosted.until(run_id, "late", StepState.FAILED, seconds=60)
    assert late.error_code == "timed_out"
    async with hosted.database.transaction() as store:
        assert await store.workflow_runs.request_cancel(run_id)
    run = await hosted.ended(run_id, 60)
    assert run.state is RunState.CANCELED
    await gone(engine, run_id)


async def test_an_engine_that_takes_over_finds_the_container_and_leaves_none(
    hosted: World, engine: Any
) -> None:
    began = int(time.time()) - 1
    run_id = await started(hosted, box("long", {"sleep": 8, "n": 1}), call("last", needs=["long"]))
    step = await hosted.until(run_id, "long", StepState.RUNNING, seconds=60)
    container = await printed(engine, step)
    held = (await hosted.run(run_id)).engine_id
    assert held is not None
    task, _ = hosted.engines.pop()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # As a kill does it: its runs are still its own until their lease ends.
    async with hosted.database.transaction() as store:
        await store.connection.execute(
            sa.text("update workflow_runs set engine_id = :gone, lease_expires_at = now() "
                    "where id = :run"), {"gone": held, "run": run_id},
        )  # fmt: skip
    assert container.name in await asyncio.to_thread(left, engine, run_id)
    hosted.begin_engine()
    run = await hosted.ended(run_id, 60)
    assert run.state is RunState.SUCCEEDED, run.error_message
    ended = (await hosted.steps(run_id))["long"]
    assert (ended.attempt, ended.started_at) == (1, step.started_at)
    starts = engine.events(
        since=began, until=int(time.time()) + 1, decode=True,
        filters={"label": f"{Labels.RUN}={run_id}", "event": "start"},
    )  # fmt: skip
    assert [e["Actor"]["ID"] for e in await asyncio.to_thread(list, starts)] == [container.id]
    await gone(engine, run_id)


async def test_one_without_a_host_waits_says_why_and_is_placed_when_there_is_one(
    hosted: World, engine: Any
) -> None:
    late = f"late-{uuid7().hex[-8:]}"
    run_id = await started(hosted, box("waits", {"n": 1}, run_on={"host": late}))
    async with asyncio.timeout(30):
        while (waiting := (await hosted.steps(run_id))["waits"].waiting) is None:
            await asyncio.sleep(0.1)
    assert waiting == f"no node matches vyvo/host={late}"
    async with hosted.database.transaction() as store:
        await store.nodes.join(
            id=uuid7(), name=late, boot_id=uuid7(), labels={},
            capabilities={"cpus": 4, "memory_bytes": 1 << 33, "gpus": []},
        )  # fmt: skip
    run = await hosted.ended(run_id, 60)
    assert run.state is RunState.SUCCEEDED, run.error_message
    assert (await hosted.steps(run_id))["waits"].host == late
    await gone(engine, run_id)


async def test_what_an_engine_refuses_fails_its_step_with_its_words(
    hosted: World, engine: Any
) -> None:
    unknown = box("unknown", {"n": 1})
    unknown["container"]["image"] = "127.0.0.1:5000/no/such-image:1"
    run_id = await started(hosted, unknown)
    assert (await hosted.ended(run_id, 60)).state is RunState.FAILED
    step = (await hosted.steps(run_id))["unknown"]
    assert step.error_code == "container_refused"
    assert "127.0.0.1:5000/no/such-image:1 cannot be pulled" in (step.error_message or "")
    await gone(engine, run_id)
