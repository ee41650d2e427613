"""What Dagster shows of workflow runs: an ordinary run, each event once, whatever crashed."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.execution.stats import StepEventStatus

from tests.integration.workflows.world import World, call
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.execution.workflow_launcher import WorkflowRunLauncher
from vyvo_dagster.execution.workflows.event_log import EventLog
from vyvo_dagster.execution.workflows.jobs import build_job, run_config_of
from vyvo_dagster.execution.workflows.main import ReportLoop
from vyvo_dagster.execution.workflows.names import artifact_key
from vyvo_dagster.execution.workflows.reporter import WorkflowReporter
from vyvo_dagster.objects import ObjectStore

ARTIFACT = {"type": "image", "size_bytes": 3, "mime_type": "image/png", "expires_at": None}


@pytest.fixture
def dagster_url(make_database: Callable[[str], str]) -> str:
    return make_database("empty").replace("postgresql://", "postgresql+psycopg2://", 1)


@pytest.fixture
def instance(
    dagster_url: str, workflow_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    home = tmp_path / "dagster"
    home.mkdir()
    settings = {
        "storage": {"postgres": {"postgres_url": dagster_url}},
        "run_launcher": {
            "module": "vyvo_dagster.execution.workflow_launcher", "class": "WorkflowRunLauncher",
            "config": {"broker": workflow_redis},
        },
        # Without a daemon, which would take runs from a queue.
        "run_coordinator": {
            "module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator",
        },
        "telemetry": {"enabled": False},
    }  # fmt: skip
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with DagsterInstance.get() as found:
        yield found


class Reporting:
    """A reporter of its own, as after a start of its process."""

    def __init__(self, world: World, instance: DagsterInstance, url: str) -> None:
        self.log = EventLog(url)
        self.reporter = WorkflowReporter(
            instance, self.log, url="http://api", code_server="127.0.0.1:4000"
        )
        self.loop = ReportLoop(world.database, self.reporter)

    async def all(self) -> None:
        assert await asyncio.to_thread(self.reporter.ready)
        while await self.loop.turn():
            pass


async def test_a_run_looks_like_any_other(
    world: World, instance: DagsterInstance, dagster_url: str
) -> None:
    stored = await asyncio.to_thread(
        ObjectStore(world.s3).put_bytes, f"{world.s3.bucket_prefix}image", "a.png", b"png"
    )
    artifact = {**ARTIFACT, "url": stored}
    version = await world.push(
        [
            call("make", input={"image": artifact}),
            call("each", for_each=[1, 2], input={"n": "${{ item }}", "of": "${{ steps.make.output.image.url }}"}),
            call("never", when="${{ false }}"),
            call("last", input={"all": "${{ steps.each.output }}"}),
        ]
    )  # fmt: skip
    run = await world.ended(await world.start(version))
    assert run.state is RunState.SUCCEEDED, run.error_message
    reporting = Reporting(world, instance, dagster_url)
    await reporting.all()
    run_id = run.dagster_run_id
    assert run_id is not None
    shown = instance.get_run_by_id(run_id)
    assert shown is not None
    assert shown.status is DagsterRunStatus.SUCCESS
    assert shown.tags["vyvo/workflow_run_id"] == str(run.id)
    stats = {s.step_key: s for s in instance.get_run_step_stats(run_id)}
    assert stats.keys() == {"make", "each__items", "each[0]", "each[1]", "never", "last"}
    assert stats["never"].status is StepEventStatus.SKIPPED
    steps = await world.steps(run.id)
    for key in ("make", "each[0]", "each[1]", "last"):
        begun, ended = steps[key].started_at, steps[key].completed_at
        assert begun is not None
        assert ended is not None
        assert stats[key].status is StepEventStatus.SUCCESS
        assert stats[key].start_time == pytest.approx(begun.timestamp(), abs=0.001)
        assert stats[key].end_time == pytest.approx(ended.timestamp(), abs=0.001)
    made = instance.get_latest_materialization_event(artifact_key("admin", version.name, "make"))
    assert made is not None
    assert made.asset_materialization is not None
    metadata = made.asset_materialization.metadata
    assert metadata["url"].value == artifact["url"]
    assert AssetKey(["model_version"]).to_user_string() in str(metadata["made_from"].value)
    snapshot = instance.get_job_snapshot(shown.job_snapshot_id or "")
    assert {n.node_name for n in snapshot.dep_structure_snapshot.node_invocation_snaps} == {
        "make", "each", "each__items", "never", "last",
    }  # fmt: skip
    reporting.log.close()


async def test_no_event_is_written_twice(
    world: World, instance: DagsterInstance, dagster_url: str
) -> None:
    version = await world.push([call("a", input={"sleep_seconds": 0.5}), call("b", needs=["a"])])
    run_id = await world.start(version)
    await world.until(run_id, "a", "running")
    first = Reporting(world, instance, dagster_url)
    await first.all()
    # Killed after its write and before it noted so: what it told is to be told again.
    first.log.close()
    run = await world.ended(run_id)
    async with world.database.transaction() as store:
        await store.connection.exec_driver_sql("update workflow_runs set reported_revision = -1")
    second = Reporting(world, instance, dagster_url)
    await second.all()
    assert run.dagster_run_id is not None
    entries = [e.get_dagster_event() for e in instance.all_logs(run.dagster_run_id)]
    told = [(e.event_type_value, e.step_key) for e in entries]
    assert len(told) == len(set(told))
    assert told.count((DagsterEventType.PIPELINE_SUCCESS.value, None)) == 1
    # One that stands by writes nothing while the other has the lock.
    third = EventLog(dagster_url)
    assert not third.acquire()
    second.log.release()
    assert third.acquire()
    third.close()
    second.log.close()


async def test_a_run_from_the_launchpad_is_the_engines(
    world: World, instance: DagsterInstance, dagster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VYVO_POSTGRES_DSN", world.settings.postgres_dsn)
    version = await world.push(
        [call("only", input={"n": "${{ inputs.n }}", "sleep_seconds": "${{ inputs.n }}"})],
        inputs={"n": {"type": "number"}},
    )
    job = build_job(version)
    assert isinstance(instance.run_launcher, WorkflowRunLauncher)

    def launched(seconds: float) -> DagsterRun:
        made = instance.create_run_for_job(
            job, run_id=str(uuid4()), run_config=run_config_of({"n": seconds}), tags=job.tags
        )
        return instance.launch_run(made.run_id, None)  # pyright: ignore[reportArgumentType]

    shown = await asyncio.to_thread(launched, 0.1)
    async with world.database.transaction() as store:
        found = await store.workflow_runs.of_dagster(shown.run_id)
    assert found is not None
    assert (await world.ended(found.id)).state is RunState.SUCCEEDED
    reporting = Reporting(world, instance, dagster_url)
    await reporting.all()
    again = instance.get_run_by_id(shown.run_id)
    assert again is not None
    assert again.status is DagsterRunStatus.SUCCESS
    assert again.run_config == run_config_of({"n": 0.1})

    long = await asyncio.to_thread(launched, 300.0)
    async with world.database.transaction() as store:
        found = await store.workflow_runs.of_dagster(long.run_id)
    assert found is not None
    await world.until(found.id, "only", "running")
    assert await asyncio.to_thread(instance.run_launcher.terminate, long.run_id)
    assert (await world.ended(found.id, 25)).state is RunState.CANCELED
    await reporting.all()
    ended = instance.get_run_by_id(long.run_id)
    assert ended is not None
    assert ended.status is DagsterRunStatus.CANCELED
    reporting.log.close()


async def test_a_failed_step_shows_its_attempts_and_its_error(
    world: World, instance: DagsterInstance, dagster_url: str
) -> None:
    version = await world.push(
        [{"name": "ask", "operation": "http", "retries": {"attempts": 2, "backoff_seconds": 0.1},
          "input": {"url": "http://127.0.0.1:9/nobody"}}]
    )  # fmt: skip
    run = await world.ended(await world.start(version))
    assert run.state is RunState.FAILED
    reporting = Reporting(world, instance, dagster_url)
    await reporting.all()
    assert run.dagster_run_id is not None
    kinds = [e.get_dagster_event().event_type_value for e in instance.all_logs(run.dagster_run_id)]
    steps = [kind for kind in kinds if kind.startswith("STEP")]
    assert steps == ["STEP_START", "STEP_UP_FOR_RETRY", "STEP_RESTARTED", "STEP_FAILURE"]
    (stats,) = instance.get_run_step_stats(run.dagster_run_id)
    assert stats.attempts == 2
    failed = instance.get_run_by_id(run.dagster_run_id)
    assert failed is not None
    assert failed.status is DagsterRunStatus.FAILURE
    reporting.log.close()
