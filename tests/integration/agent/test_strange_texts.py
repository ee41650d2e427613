"""Text that no report can hold: it fails its job or is mended, and never ends the agent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from vyvo_dagster.agent.assignment import Assignment, Limits
from vyvo_dagster.agent.attempt import Attempt, AttemptNode
from vyvo_dagster.agent.cog_client import CogClient
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.agent.progress import ProgressReporter
from vyvo_dagster.agent.reports import Reports
from vyvo_dagster.agent.runners.base import Launcher, Runner, RunnerSpec, log_text
from vyvo_dagster.agent.runners.noop import NoopRunner
from vyvo_dagster.agent.serving import Loaded
from vyvo_dagster.agent.uploads import Uploader
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.errors import InvalidInput, RunnerFailed, Unavailable, VyvoError
from vyvo_dagster.protocol.job import (
    AttemptStatus,
    CompletionReport,
    ProgressReport,
    ReportItem,
    RunOrder,
)
from vyvo_dagster.protocol.node import DesiredAssignment

LONE = "x\ud800y"


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


@asynccontextmanager
async def answering(body: bytes, status: str = "200 OK") -> AsyncIterator[CogClient]:
    """A client of a server that answers every request with `body`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with CogClient(f"http://127.0.0.1:{port}") as client:
            yield client


def attempt(client: CogClient | None, error: VyvoError | None = None) -> Attempt:
    """An attempt on a runner that `client` asks, or that fails with `error` before."""

    class Given:
        @asynccontextmanager
        async def slot(self) -> AsyncIterator[Loaded]:
            assert client is not None
            yield Loaded(cast("Runner", NoopRunner()), client)

    async def find(id: UUID) -> Assignment | None:
        if error is not None:
            raise error
        return cast("Assignment", Given())

    order = RunOrder(
        job_id=uuid4(), attempt=1, assignment_id=uuid4(), model_id="a/b", version="1", input={}
    )
    reports = Reports(ControlPlane("http://127.0.0.1:1"))
    return Attempt(order, AttemptNode(reports, cast("Uploader", NoFiles()), find))


class NoFiles:
    """Outputs without files need no store."""

    async def externalize(self, output: Any, job_id: UUID, attempt: int) -> Any:
        return output


async def outcome(client: CogClient | None, error: VyvoError | None = None) -> CompletionReport:
    found = await attempt(client, error).outcome()
    assert found is not None
    found.model_dump_json()
    return found


async def test_an_output_with_a_lone_surrogate_is_mended() -> None:
    body = rb'{"status": "succeeded", "logs": "a\ud800", "output": {"k\udc00": "x\ud800y\u0000"}}'
    async with answering(body) as client:
        found = await outcome(client)
    assert (found.status, found.output) == (AttemptStatus.SUCCEEDED, {"k?": "x?y\ufffd"})


async def test_an_error_with_a_lone_surrogate_is_mended() -> None:
    async with answering(rb'{"status": "failed", "error": "x\ud800y"}') as client:
        found = await outcome(client)
    assert found.error is not None
    assert found.error.message == "x?y"


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable(LONE), "runner_unreachable"), (RunnerFailed(LONE), RunnerFailed.code)],
)
async def test_what_went_wrong_may_be_told_in_any_text(error: VyvoError, code: str) -> None:
    found = await outcome(None, error)
    assert found.error is not None
    assert (found.error.code, found.error.message) == (code, "x?y")


async def test_a_report_that_cannot_be_made_fails_its_attempt() -> None:
    class Long(RunnerFailed):
        code = "c" * 65  # More than a report takes.

    found = await outcome(None, Long("why"))
    assert found.error is not None
    assert found.error.code == "internal"


@pytest.mark.parametrize("depth", [600, 5000])
async def test_an_output_nested_too_deep_fails_its_attempt(depth: int) -> None:
    body = b'{"status": "succeeded", "output": ' + b"[" * depth + b"]" * depth + b"}"
    async with answering(body) as client:
        found = await outcome(client)
    assert found.status is AttemptStatus.FAILED
    assert found.error is not None
    assert "nested too deep" in found.error.message


@pytest.mark.parametrize("output", [nested(400), {"k": LONE}])
async def test_a_report_without_a_json_text_is_refused_and_not_raised(output: Any) -> None:
    reports = Reports(ControlPlane("http://127.0.0.1:1"))
    completion = CompletionReport(attempt=1, status=AttemptStatus.SUCCEEDED, output=output)
    with pytest.raises(InvalidInput, match="cannot be written as JSON"):
        await reports.send(ReportItem(job_id=uuid4(), completion=completion))


async def test_log_lines_are_mended() -> None:
    put: list[ProgressReport | None] = []

    class Kept(Reports):
        def put(self, item: ReportItem) -> Any:
            put.append(item.progress)
            return super().put(item)

    reports = Kept(ControlPlane("http://127.0.0.1:1"))
    ProgressReporter(reports, uuid4(), 1, lambda: None, lambda: None).on_log(LONE)
    assert [report.logs for report in put if report is not None] == [["x?y"]]


async def test_a_health_check_holds_any_text() -> None:
    async with answering(rb'{"status": "SETUP_FAILED", "setup": {"logs": "x\ud800"}}') as client:
        assert (await client.health()).setup_logs == "x?"
    async with answering(b"[" * 100_000) as client:
        with pytest.raises(RunnerFailed, match="no JSON"):
            await client.health()


def test_a_log_holds_any_text() -> None:
    line = json.dumps({"fields": {"message": LONE}})
    assert log_text(line.encode()) == "x?y"
    deep = "[" * 100_000
    assert log_text(deep.encode()) == deep[-1500:]


async def test_an_assignment_tells_of_any_text() -> None:
    class Refusing:
        def accepts(self, image: str) -> bool:
            return True

        async def prepare(self, image: str, access: object = None) -> None:
            raise RunnerFailed(LONE)

    class Ready:
        async def weights(self, desired: DesiredAssignment) -> Path | None:
            return None

        def spec(self, desired: DesiredAssignment, weights: Path | None) -> RunnerSpec:
            return RunnerSpec(desired.assignment_id, desired.runner_image, {})

        def forget(self, desired: DesiredAssignment) -> None:
            return

    desired = DesiredAssignment(
        assignment_id=uuid4(), model_id="a/b", version="1", runner_image="noop://"
    )
    failed = asyncio.Event()

    def changed() -> None:
        if assignment.state is AssignmentState.FAILED:
            failed.set()

    assignment = Assignment(desired, [cast("Launcher", Refusing())], Ready(), Limits(), changed)
    work = asyncio.create_task(assignment.run())
    async with asyncio.timeout(30):
        await failed.wait()
    assert assignment.observed().detail == "x?y"
    assignment.remove()
    await work
