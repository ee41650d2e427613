"""What starts runs by itself: the stream, cron, new artifacts, new model versions. Each once."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from uuid_utils.compat import uuid7

from tests.integration.workflows.world import MODEL, World, call
from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.state import RunState, TriggerKind
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowVersion
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect
from vyvo_dagster.workflows.triggers import fire_artifacts, fire_cron, fire_model_versions


async def runs_of(world: World, version: WorkflowVersion) -> list[WorkflowRun]:
    async with world.database.transaction() as store:
        return await store.workflow_runs.browse(None, None, 100, workflow_id=version.workflow_id)


async def with_trigger(world: World, trigger: dict[str, Any], **members: Any) -> WorkflowVersion:
    """A version whose trigger is stored, as a push by the api stores it."""
    version = await world.push([call("only")], triggers=[trigger], **members)
    (parsed,) = parse(version.definition).triggers
    row = {
        "id": uuid7(), "name": parsed.name, "kind": parsed.kind, "spec": dict(parsed.spec),
        "inputs": dict(parsed.inputs), "enabled": True,
        "next_at": datetime.now(UTC) - timedelta(hours=3) if parsed.kind == "cron" else None,
    }  # fmt: skip
    async with world.database.transaction() as store:
        await store.workflows.set_triggers(version.workflow_id, [row])
    return version


async def test_an_entry_of_the_stream_starts_one_run(world: World) -> None:
    version = await world.push(
        [call("only", input={"n": "${{ inputs.n }}"})], inputs={"n": {"type": "integer"}}
    )
    redis = connect(world.settings.redis_url)
    entry = {
        "tenant": "admin",
        "workflow": version.name,
        "inputs": json.dumps({"n": 1}),
        "key": "k",
    }
    for fields in (entry, entry, {**entry, "inputs": "[", "key": "bad"}, {"tenant": "admin"}):
        await redis.xadd(keys.WORKFLOW_RUNS, {**fields})
    async with asyncio.timeout(30):
        while await redis.xlen(keys.WORKFLOW_RUNS):
            await asyncio.sleep(0.05)
    await redis.aclose()
    (run,) = await runs_of(world, version)
    assert (await world.ended(run.id)).state is RunState.SUCCEEDED
    assert run.trigger_kind is TriggerKind.STREAM
    async with world.database.transaction() as store:
        reasons = [entry.reason for entry in await store.dead_letters.entries(None, 10)]
    assert sorted(reasons) == [
        "inputs is no JSON", "the fields tenant and workflow are required",
    ]  # fmt: skip


async def test_cron_fires_once_however_many_times_were_missed(world: World) -> None:
    version = await with_trigger(world, {"name": "hourly", "cron": "0 * * * *"})
    now = datetime.now(UTC)

    async def fire() -> int:
        async with world.database.transaction() as store:
            return (await fire_cron(store, now)).runs

    assert sorted(await asyncio.gather(fire(), fire())) == [0, 1]
    assert await fire() == 0
    (run,) = await runs_of(world, version)
    assert run.trigger_kind is TriggerKind.CRON
    async with world.database.transaction() as store:
        (trigger,) = await store.workflows.triggers(version.workflow_id)
    assert trigger.next_at is not None
    assert now < trigger.next_at <= now + timedelta(hours=1)


async def test_a_new_artifact_starts_a_run_with_what_it_is(world: World) -> None:
    version = await with_trigger(
        world,
        {"name": "new", "on_artifact": {"type": "image"},
         "inputs": {"url": "${{ event.artifact.url }}"}},
        inputs={"url": {"type": "string"}},
    )  # fmt: skip
    made = await artifact(world, "image")
    await artifact(world, "text")
    for _ in range(2):
        async with world.database.transaction() as store:
            fired = await fire_artifacts(store, datetime.now(UTC))
            assert not fired.refused
    (run,) = await runs_of(world, version)
    assert run.inputs == {"url": f"s3://b/{made}"}


async def artifact(world: World, kind: str) -> UUID:
    """An artifact of a job that has ended."""
    source = await world.push([call("only")])
    run = await world.ended(await world.start(source))
    job_id = (await world.steps(run.id))["only"].job_id
    made = uuid7()
    async with world.database.transaction() as store:
        await store.artifacts.add_many(
            [{"id": made, "tenant": "admin", "job_id": job_id, "position": 0, "type": kind,
              "url": f"s3://b/{made}", "size_bytes": 1, "mime_type": "x/y", "expires_at": None}]
        )  # fmt: skip
    return made


async def test_a_version_that_serves_anew_starts_a_run(world: World) -> None:
    version = await with_trigger(world, {"name": "new", "on_model_version": {"model": MODEL}})
    async with world.database.transaction() as store:
        await store.connection.execute(
            sa.text("update model_versions set updated_at = now() where model_id = :m"),
            {"m": MODEL},
        )
    for _ in range(2):
        async with world.database.transaction() as store:
            await fire_model_versions(store, datetime.now(UTC))
    (run,) = await runs_of(world, version)
    assert run.trigger_kind is TriggerKind.MODEL_VERSION
