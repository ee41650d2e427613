"""Workflows in the store, on real Postgres: versions, runs by trigger key, leases, steps, triggers."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.domain.workflow.definition import digest, parse
from vyvo_dagster.domain.workflow.run import RunEnd, Step, first_steps
from vyvo_dagster.domain.workflow.state import RunState, StepState, TriggerKind
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.tables import artifacts
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowTrigger, WorkflowVersion

NOW = datetime.now(UTC)
LEASE = timedelta(seconds=30)
DOCUMENT: Mapping[str, Any] = {"name": "w", "steps": [{"name": "a", "model": "t/m"}]}


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    database = Database(postgres_dsn, pool_size=3)
    yield database
    await database.close()


async def pushed(
    store: Store, document: Mapping[str, Any] = DOCUMENT, tenant: str | None = None
) -> WorkflowVersion:
    version, _ = await store.workflows.push(
        id=uuid7(), version_id=uuid7(), tenant=tenant or f"t{uuid7().hex[-10:]}", name="w",
        description="", definition=document, sha256=digest(document), created_by="test",
    )  # fmt: skip
    return version


async def queued(
    store: Store, version: WorkflowVersion, key: str | None = None
) -> tuple[WorkflowRun, bool]:
    run_id = uuid7()
    return await store.workflow_runs.create(
        id=run_id, workflow_id=version.workflow_id, version_id=version.id, tenant=version.tenant,
        inputs={"n": 1}, trigger_kind=TriggerKind.API, trigger_key=key, priority=None,
        steps=first_steps(parse(version.definition), run_id, uuid7, NOW),
    )  # fmt: skip


async def claimed(store: Store, engine: UUID, run: WorkflowRun) -> WorkflowRun:
    """Other tests' runs may be claimed along with it, and are left."""
    await store.workflow_runs.claim(engine, LEASE, 1000)
    found = await store.workflow_runs.get(run.id, None)
    assert found is not None
    return found


async def test_the_same_content_is_the_same_version(database: Database) -> None:
    async with database.transaction() as store:
        first = await pushed(store)
        same, new = await store.workflows.push(
            id=uuid7(), version_id=uuid7(), tenant=first.tenant, name="w", description="",
            definition={"steps": DOCUMENT["steps"], "name": "w"},
            sha256=digest({"steps": DOCUMENT["steps"], "name": "w"}), created_by="test",
        )  # fmt: skip
        assert (same.id, new) == (first.id, False)
        changed = {**DOCUMENT, "description": "more"}
        second = await pushed(store, changed, first.tenant)
        assert (second.version, second.workflow_id) == (2, first.workflow_id)
        back = await pushed(store, DOCUMENT, first.tenant)
        assert back.version == 3
        kept = await store.workflows.versions(first.workflow_id, None, 10)
        assert [v.version for v in kept] == [3, 2, 1]
        assert kept[2].definition == DOCUMENT
        page = await store.workflows.versions(first.workflow_id, 3, 10)
        assert [v.version for v in page] == [2, 1]
        latest = await store.workflows.all_versions(latest_only=True)
        assert [v.version for v in latest if v.tenant == first.tenant] == [3]


async def test_a_trigger_key_starts_one_run(database: Database) -> None:
    async with database.transaction() as store:
        version = await pushed(store)
        first, made = await queued(store, version, "k")
        assert made
        assert (first.state, first.name, first.version) == (RunState.QUEUED, "w", 1)
        assert first.dagster_run_id == str(first.id)
        again, made = await queued(store, version, "k")
        assert (again.id, made) == (first.id, False)
        steps = (await store.workflow_runs.steps_of([first.id]))[first.id]
        assert [(s.key, s.state) for s in steps.values()] == [("a", StepState.PENDING)]
        free = [await queued(store, version) for _ in range(2)]
        assert all(made for _, made in free)
        found = await store.workflow_runs.browse(version.tenant, None, 10)
        assert [r.id for r in found] == [free[1][0].id, free[0][0].id, first.id]
        assert await store.workflow_runs.get(first.id, "other") is None


async def test_a_run_has_one_engine_until_its_lease_ends(database: Database) -> None:
    mine, other = uuid7(), uuid7()
    async with database.transaction() as store:
        run, _ = await queued(store, await pushed(store))
    async with database.transaction() as store:
        taken = await claimed(store, mine, run)
        assert (taken.engine_id, taken.state, taken.revision) == (mine, RunState.RUNNING, 1)
        assert taken.started_at is not None
    async with database.transaction() as store:
        assert run.id not in {r.id for r in await store.workflow_runs.claim(other, LEASE, 1000)}
        assert run.id in await store.workflow_runs.renew(mine, timedelta(seconds=-1))
    async with database.transaction() as store:
        assert run.id in {r.id for r in await store.workflow_runs.claim(other, LEASE, 1000)}
        assert run.id not in await store.workflow_runs.renew(mine, LEASE)
        assert await store.workflow_runs.hold(mine, [run.id]) == {}
        held = await store.workflow_runs.hold(other, [run.id])
        assert held[run.id].started_at == taken.started_at
        assert await store.workflow_runs.release(other) >= 1
    async with database.transaction() as store:
        assert (await claimed(store, mine, run)).engine_id == mine
        await store.workflow_runs.release(mine)


async def test_two_engines_that_claim_at_once_share_the_runs(database: Database) -> None:
    one, two = uuid7(), uuid7()
    async with database.transaction() as store:
        version = await pushed(store)
        runs = {(await queued(store, version))[0].id for _ in range(6)}
    async with database.transaction() as first, database.transaction() as second:
        a = {r.id for r in await first.workflow_runs.claim(one, LEASE, 1000)}
        b = {r.id for r in await second.workflow_runs.claim(two, LEASE, 1000)}
        assert not a & b
        assert runs <= a | b


async def test_steps_are_written_as_they_are_and_an_end_stays(database: Database) -> None:
    engine = uuid7()
    async with database.transaction() as store:
        run, _ = await queued(store, await pushed(store))
        await claimed(store, engine, run)
        step = (await store.workflow_runs.steps_of([run.id]))[run.id]["a"]
        running = dataclasses.replace(
            step, state=StepState.RUNNING, attempt=2, input={"x": [1]}, started_at=NOW,
            attempts=[{"attempt": 1, "error_code": "x"}], retry_at=NOW,
        )  # fmt: skip
        item = Step(id=uuid7(), run_id=run.id, key="a[0]", name="a", map_index=0, created_at=NOW)
        await store.workflow_runs.upsert_steps([running, item])
        steps = (await store.workflow_runs.steps_of([run.id]))[run.id]
        assert steps["a"] == running
        assert steps["a[0]"] == item
        ended = running.ends(StepState.SUCCEEDED, NOW, output=None)
        await store.workflow_runs.upsert_steps([ended])
        await store.workflow_runs.upsert_steps([running])
        assert (await store.workflow_runs.steps_of([run.id]))[run.id]["a"] == ended
        await store.workflow_runs.touch([run.id])
        await store.workflow_runs.end(
            {run.id: RunEnd(RunState.SUCCEEDED, {"o": [1]}), uuid7(): RunEnd(RunState.FAILED)}
        )
        done = await store.workflow_runs.get(run.id, None)
        assert done is not None
        assert (done.state, done.outputs, done.engine_id) == (RunState.SUCCEEDED, {"o": [1]}, None)
        assert done.completed_at is not None
        assert done.revision == 3
        await store.workflow_runs.end({run.id: RunEnd(RunState.FAILED, None, "x", "late")})
        again = await store.workflow_runs.get(run.id, None)
        assert again == done
        assert not await store.workflow_runs.request_cancel(run.id)


async def test_what_dagster_was_told_is_kept(database: Database) -> None:
    async with database.transaction() as store:
        run, _ = await queued(store, await pushed(store))
        assert run.id in {r.id for r in await store.workflow_runs.unreported(1000)}
        await store.workflow_runs.reported({run.id: 0})
        assert run.id not in {r.id for r in await store.workflow_runs.unreported(1000)}
        assert await store.workflow_runs.request_cancel(run.id)
        (found,) = [r for r in await store.workflow_runs.unreported(1000) if r.id == run.id]
        assert (found.revision, found.reported_revision) == (1, 0)
        assert found.cancel_requested_at is not None
        await store.workflow_runs.reported({run.id: 0})
        dagster = await store.workflow_runs.of_dagster(str(run.id))
        assert dagster is not None
        assert dagster.reported_revision == 0


async def test_cron_triggers_come_due_once_and_rest_with_their_workflow(database: Database) -> None:
    tenant = f"t{uuid7().hex[-10:]}"
    row = {
        "id": uuid7(), "name": "c", "kind": TriggerKind.CRON, "spec": {"cron": "* * * * *"},
        "inputs": {}, "enabled": True, "next_at": NOW - timedelta(minutes=1),
    }  # fmt: skip
    async with database.transaction() as store:
        version = await pushed(store, tenant=tenant)
        await store.workflows.set_triggers(version.workflow_id, [row])
    async with database.transaction() as store, database.transaction() as second:
        due = [t for t in await store.workflows.due_triggers(NOW, 1000) if t.tenant == tenant]
        assert [t.name for t in due] == ["c"]
        assert [
            t for t in await second.workflows.due_triggers(NOW, 1000) if t.tenant == tenant
        ] == []
        later = NOW + timedelta(minutes=1)
        await store.workflows.fired(due[0].id, next_at=later, fired_at=NOW)
    async with database.transaction() as store:
        assert [
            t for t in await store.workflows.due_triggers(NOW, 1000) if t.tenant == tenant
        ] == []
        await store.workflows.set_triggers(version.workflow_id, [{**row, "id": uuid7()}])
        (kept,) = await store.workflows.triggers(version.workflow_id)
        assert (kept.id, kept.next_at, kept.last_fired_at) == (row["id"], later, NOW)
        await store.workflows.set_paused(version.workflow_id, True)
        due = await store.workflows.due_triggers(later, 1000)
        assert [t for t in due if t.tenant == tenant] == []
        await store.workflows.set_paused(version.workflow_id, False)
        changed = {**row, "spec": {"cron": "0 * * * *"}}
        await store.workflows.set_triggers(version.workflow_id, [changed])
        (moved,) = await store.workflows.triggers(version.workflow_id)
        assert moved.next_at == row["next_at"]
        await store.workflows.set_triggers(version.workflow_id, [])
        assert await store.workflows.triggers(version.workflow_id) == []


async def made_by_job(
    store: Store, tenant: str, model_id: str, version_id: UUID, step: Step | None
) -> UUID:
    """An artifact of a job, of a step's where one is given."""
    job_id, artifact_id = uuid7(), uuid7()
    await store.jobs.add_many([{
        "id": job_id, "tenant": tenant, "model_id": model_id, "version_id": version_id,
        "version": "1", "priority": Priority.STANDARD, "input": {}, "max_attempts": 1,
        "expires_at": NOW + timedelta(hours=1),
        "workflow_step_id": None if step is None else step.id,
        "workflow_step_attempt": None if step is None else 1,
    }])  # fmt: skip
    await store.connection.execute(sa.insert(artifacts).values(
        id=artifact_id, tenant=tenant, job_id=job_id, position=0, type="image",
        url="s3://b/k", size_bytes=1, mime_type="image/png",
    ))  # fmt: skip
    return artifact_id


async def test_event_triggers_see_what_is_new_and_not_what_their_runs_made(
    database: Database,
) -> None:
    tenant, model_id = f"t{uuid7().hex[-10:]}", f"t/m{uuid7().hex[-10:]}"
    rows = [
        {"id": uuid7(), "name": kind, "kind": kind, "spec": spec, "inputs": {}, "enabled": True,
         "next_at": None}
        for kind, spec in (
            (TriggerKind.ARTIFACT, {"type": "image", "model": model_id}),
            (TriggerKind.MODEL_VERSION, {"model": model_id}),
        )
    ]  # fmt: skip
    async with database.transaction() as store:
        workflow = await pushed(store, tenant=tenant)
        other = await pushed(store)
        await store.workflows.set_triggers(workflow.workflow_id, rows)
        own, _ = await queued(store, workflow)
        others, _ = await queued(store, other)
        steps = await store.workflow_runs.steps_of([own.id, others.id])
    async with database.transaction() as store:
        await store.models.ensure(model_id, tenant)
        draft = await store.models.create_draft(
            id=uuid7(), model_id=model_id, version="1", template="x", modality=Modality.IMAGE,
            values={},
        )  # fmt: skip
        assert draft is not None
        (on_version,) = await mine(store, TriggerKind.MODEL_VERSION, tenant)
        overlap = timedelta(minutes=1)
        assert await store.workflows.new_model_versions(on_version, overlap, 10) == []
        await store.models.move(draft.id, VersionState.READY)
        found = await store.workflows.new_model_versions(on_version, overlap, 10)
        assert [v.id for v in found] == [draft.id]
        free = await made_by_job(store, tenant, model_id, draft.id, None)
        theirs = await made_by_job(store, tenant, model_id, draft.id, steps[others.id]["a"])
        await made_by_job(store, tenant, model_id, draft.id, steps[own.id]["a"])
        await made_by_job(store, other.tenant, model_id, draft.id, None)
        (on_artifact,) = await mine(store, TriggerKind.ARTIFACT, tenant)
        new = await store.workflows.new_artifacts(on_artifact, overlap, 10)
        assert [(a.id, m, v) for a, m, v in new] == [
            (free, model_id, "1"), (theirs, model_id, "1"),
        ]  # fmt: skip
        await store.workflows.fired(
            on_artifact.id, seen_until=datetime.now(UTC) + timedelta(minutes=5), fired_at=NOW
        )
        (after,) = await mine(store, TriggerKind.ARTIFACT, tenant)
        assert await store.workflows.new_artifacts(after, overlap, 10) == []


async def mine(store: Store, kind: TriggerKind, tenant: str) -> list[WorkflowTrigger]:
    return [t for t in await store.workflows.event_triggers(kind) if t.tenant == tenant]


async def test_an_attempt_of_a_step_has_one_job(database: Database) -> None:
    async with database.transaction() as store:
        run, _ = await queued(store, await pushed(store))
        step = (await store.workflow_runs.steps_of([run.id]))[run.id]["a"]
        model_id = f"t/m{uuid7().hex[-10:]}"
        await store.models.ensure(model_id, "t")
        draft = await store.models.create_draft(
            id=uuid7(), model_id=model_id, version="1", template="x", modality=Modality.IMAGE,
            values={},
        )  # fmt: skip
        assert draft is not None
        await made_by_job(store, run.tenant, model_id, draft.id, step)
        (job,) = await store.jobs.browse(run.tenant, None, 10)
        found = await store.workflow_runs.step_of_job(job.id)
        assert found is not None
        assert found.key == "a"
        running = dataclasses.replace(step, state=StepState.SUBMITTED, job_id=job.id, attempt=1)
        await store.workflow_runs.upsert_steps([running])
        assert await store.workflow_runs.ended_jobs([run.id]) == []
        await store.jobs.cancel_queued(job.id)
        assert [j.id for j in await store.workflow_runs.ended_jobs([run.id])] == [job.id]
    with pytest.raises(sa.exc.IntegrityError, match="jobs_workflow_step_key"):
        async with database.transaction() as store:
            await made_by_job(store, run.tenant, model_id, draft.id, step)
