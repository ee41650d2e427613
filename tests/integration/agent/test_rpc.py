"""An agent that reports by gRPC: to a real server that refuses at first."""

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

import grpc
from agent_world import desire, loaded, order, settings
from control_plane import ControlPlane

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.protocol.grpc import completion_pb2 as pb
from vyvo_dagster.protocol.grpc.completion_pb2_grpc import (
    CompletionServiceServicer,
    add_CompletionServiceServicer_to_server,
)
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind
from vyvo_dagster.protocol.messages import completion_of, progress_of


class Service(CompletionServiceServicer):
    """Takes reports for a `ControlPlane` after it has refused as many as `faults` holds.

    An end of a job in `stale` is refused alone.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.faults: deque[grpc.StatusCode] = deque()
        self.stale: set[str] = set()
        self.credentials: set[Any] = set()

    async def ReportBatch(self, request: Any, context: Any) -> Any:
        self.credentials.add(dict(context.invocation_metadata()).get("authorization"))
        if self.faults and any(item.HasField("completion") for item in request.items):
            await context.abort(self.faults.popleft(), "as the test wants it")
        return pb.ReportBatchResponse(results=[self._taken(item) for item in request.items])

    def _taken(self, item: pb.ReportItem) -> pb.ReportResult:
        if item.HasField("progress"):
            self.plane.progress.append(progress_of(item.progress))
        elif item.completion.job_id in self.stale:
            self.stale.remove(item.completion.job_id)
            problem = pb.ReportProblem(status=409, code="stale_attempt", detail="another's")
            return pb.ReportResult(problem=problem)
        else:
            self.plane.completions.append(completion_of(item.completion))
        return pb.ReportResult(status="JOB_STATUS_RUNNING")


async def test_reports_go_by_grpc_until_they_are_taken(plane: ControlPlane, tmp_path: Path) -> None:
    service, server = Service(plane), grpc.aio.server()
    add_CompletionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asked = desire(plane, "noop://load")
    runs = [order(asked, n=n) for n in range(3)]
    # Taken at the third try; refused for good beside one that is taken.
    service.faults += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
    stop = asyncio.Event()
    by_grpc = settings(
        plane, tmp_path, tmp_path, allow_noop=True, report_by="grpc",
        grpc_url=f"grpc://127.0.0.1:{port}",
    )  # fmt: skip
    task = asyncio.create_task(Agent(by_grpc).run(stop))
    try:
        await loaded(plane, asked)
        await plane.order(OrderKind.RUN, runs[0])
        report = await plane.until(lambda: plane.ended(runs[0].job_id))
        assert (report.status, report.output) == (AttemptStatus.SUCCEEDED, {"n": 0})
        assert runs[0].job_id in {job_id for job_id, _ in plane.progress}
        service.stale.add(str(runs[1].job_id))
        await plane.order(OrderKind.RUN, runs[1])
        await plane.order(OrderKind.RUN, runs[2])
        await plane.until(lambda: plane.ended(runs[2].job_id))
        await plane.until(lambda: not service.stale)
        assert plane.ended(runs[1].job_id) is None
        assert service.credentials == {f"Bearer {plane.credential}"}
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await task
        await server.stop(None)
