"""A workflow's run that is executed again from Dagster's UI: by its GraphQL, on its code location."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster_graphql.client.query import RUN_EVENTS_QUERY
from dagster_graphql.test.utils import execute_dagster_graphql

from tests.code_locations import loaded_location
from tests.integration.workflows.test_dagster import Reporting, dagster_url, instance
from tests.integration.workflows.world import World, call
from vyvo_dagster.domain.workflow.state import RunState, StepState
from vyvo_dagster.execution.workflows.names import LOCATION
from vyvo_dagster.store.workflow_records import WorkflowRun

__all__ = ["dagster_url", "instance"]

ROOT = Path(__file__).resolve().parents[3]
AGAIN = """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


@asynccontextmanager
async def loaded(instance: DagsterInstance) -> AsyncIterator[WorkspaceProcessContext]:
    """What the webserver has loaded: the code location of the workflows' jobs, as they are now."""
    target = ModuleTarget("ops.workflow_jobs", "workflows", str(ROOT), LOCATION)
    location = loaded_location(instance, target)
    context = await asyncio.to_thread(location.__enter__)
    try:
        yield context
    finally:
        await asyncio.to_thread(location.__exit__, None, None, None)


@asynccontextmanager
async def answering(status: list[str]) -> AsyncIterator[str]:
    """A server that answers with whatever status stands in the list."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status[0]}\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def read_log(workspace: WorkspaceProcessContext, run: WorkflowRun) -> list[str]:
    """The types of a run's events, each with all that the UI asks for of its own type."""
    answer = execute_dagster_graphql(
        workspace.create_request_context(), RUN_EVENTS_QUERY,
        {"runId": run.dagster_run_id, "cursor": None},
    )  # fmt: skip
    assert answer.errors is None, answer.errors
    return [event["__typename"] for event in answer.data["logsForRun"]["events"]]


async def again(
    world: World, workspace: WorkspaceProcessContext, parent: WorkflowRun, strategy: str
) -> WorkflowRun:
    """The run of a re-execution of `parent`, as it ended."""

    def launch() -> Any:
        params = {"parentRunId": parent.dagster_run_id, "strategy": strategy}
        return execute_dagster_graphql(
            workspace.create_request_context(), AGAIN, {"params": params}
        ).data["launchRunReexecution"]

    answer = await asyncio.to_thread(launch)
    assert answer["__typename"] == "LaunchRunSuccess", answer
    async with world.database.transaction() as store:
        found = await store.workflow_runs.of_dagster(answer["run"]["runId"])
    assert found is not None
    return await world.ended(found.id, 60)


async def test_from_failure_keeps_what_is_done_and_all_does_it_again(
    world: World, instance: DagsterInstance, dagster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VYVO_POSTGRES_DSN", world.settings.postgres_dsn)
    status = ["500 Out of order"]
    async with answering(status) as url:
        version = await world.push(
            [
                call("first", input={"n": "${{ inputs.n }}"}),
                call("each", for_each=[1, 2, 3], needs=["first"], input={"n": "${{ item }}"}),
                {"name": "flaky", "operation": "http", "needs": ["each"], "input": {"url": url}},
                call("last", needs=["flaky"]),
            ],
            inputs={"n": {"type": "integer"}},
        )
        failed = await world.ended(await world.start(version, {"n": 5}))
        assert failed.state is RunState.FAILED
        reporting = Reporting(world, instance, dagster_url)
        await reporting.all()

        status[0] = "200 OK"
        async with loaded(instance) as workspace:
            retried = await again(world, workspace, failed, "FROM_FAILURE")
            whole = await again(world, workspace, failed, "ALL_STEPS")
            await reporting.all()
            logs = [
                await asyncio.to_thread(read_log, workspace, run)
                for run in (failed, retried, whole)
            ]
        assert [log[-1] for log in logs] == [
            "RunFailureEvent",
            "RunSuccessEvent",
            "RunSuccessEvent",
        ]
        assert all("ExecutionStepOutputEvent" in log for log in logs)
        assert (retried.state, retried.retry_of) == (RunState.SUCCEEDED, failed.id)
        before, after = await world.steps(failed.id), await world.steps(retried.id)
        for key in ("first", "each[0]", "each[1]", "each[2]"):
            assert after[key].job_id == before[key].job_id
        assert after["last"].state is StepState.SUCCEEDED
        # Of its own it had the last step's job alone.
        assert await world.jobs(retried.id) == 1
        assert (whole.state, whole.retry_of) == (RunState.SUCCEEDED, failed.id)
        assert whole.inputs == {"n": 5}
        assert await world.jobs(whole.id) == 5
    for run in (retried, whole):
        assert run.dagster_run_id is not None
        shown = instance.get_run_by_id(run.dagster_run_id)
        assert shown is not None
        assert shown.status is DagsterRunStatus.SUCCESS
        assert shown.parent_run_id == failed.dagster_run_id
        assert shown.tags["vyvo/workflow_run_id"] == str(run.id)
    reporting.log.close()
