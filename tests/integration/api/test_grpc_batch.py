"""Batches of reports over HTTP and over gRPC: the same results, item by item."""

from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from uuid_utils.compat import uuid7

from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.protocol.grpc import completion_pb2 as pb
from vyvo_dagster.protocol.grpc.completion_pb2_grpc import CompletionServiceStub
from vyvo_dagster.protocol.job import (
    BATCH_ITEMS,
    AttemptStatus,
    CompletionReport,
    ProgressReport,
    ReportItem,
    ReportResult,
)
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database

from .fronts import Dispatched, row, success
from .world import Agent


async def report(front: ControlPlane, agent: Agent, *items: ReportItem) -> list[ReportResult]:
    return await front.report(agent.id, items, [i.model_dump_json().encode() for i in items])


def told(result: ReportResult) -> Any:
    return result.status if result.problem is None else (result.problem.status, result.problem.code)


async def test_each_report_gets_its_own_answer(
    front: ControlPlane, agent: Agent, dispatched: Dispatched, database: Database,
    s3_settings: S3Settings, admin: httpx.Client,
) -> None:  # fmt: skip
    good, canceled, foreign = await dispatched(), await dispatched(), await dispatched()
    assert admin.post(f"/api/jobs/{canceled.id}/cancel").status_code == 200
    bucket = f"{s3_settings.bucket_prefix}image"
    batch = [
        ReportItem(job_id=good.id, progress=ProgressReport(attempt=1)),
        ReportItem(job_id=good.id, completion=success(bucket, output=[2**60 + 1])),
        ReportItem(job_id=canceled.id, progress=ProgressReport(attempt=1, fraction=0.5)),
        ReportItem(job_id=good.id, progress=ProgressReport(attempt=2)),
        ReportItem(job_id=uuid7(), progress=ProgressReport(attempt=1)),
        ReportItem(job_id=foreign.id, completion=success("another-bucket")),
    ]
    results = await report(front, agent, *batch)
    assert [told(r) for r in results] == [
        JobState.RUNNING, JobState.SUCCEEDED, JobState.RUNNING,
        (409, "stale_attempt"), (404, "not_found"), (422, "invalid_report"),
    ]  # fmt: skip
    assert [r.cancel_requested for r in results] == [False, False, True, False, False, False]
    assert (await row(database, good.id)).output == [2**60 + 1]
    assert (await row(database, foreign.id)).error_code == "invalid_report"
    again = await report(front, agent, batch[1])
    assert [told(r) for r in again] == [JobState.SUCCEEDED]


@pytest.mark.parametrize("count", [0, BATCH_ITEMS + 1])
async def test_a_batch_has_bounds(front: ControlPlane, agent: Agent, count: int) -> None:
    item = ReportItem(job_id=uuid7(), progress=ProgressReport(attempt=1))
    with pytest.raises(InvalidInput, match="items"):
        await report(front, agent, *[item] * count)


async def test_a_malformed_end_fails_its_attempt_and_no_other(
    both: tuple[str, str], agent: Agent, dispatched: Dispatched, database: Database
) -> None:
    bad, good = await dispatched(), await dispatched()
    failed = CompletionReport(attempt=1, status=AttemptStatus.FAILED)
    items = [
        pb.ReportItem(),
        pb.ReportItem(completion=pb.CompleteJobRequest(job_id=str(bad.id), attempt=1)),
        pb.ReportItem(progress=pb.ReportProgressRequest(job_id="7", attempt=1)),
        pb.ReportItem(progress=pb.ReportProgressRequest(job_id=str(uuid4()), fraction=9)),
        pb.ReportItem(
            completion=pb.CompleteJobRequest(
                job_id=str(good.id), attempt=failed.attempt, status="ATTEMPT_STATUS_FAILED"
            )
        ),
    ]
    metadata = (("authorization", f"Bearer {agent.credential}"),)
    async with grpc.aio.insecure_channel(both[1].removeprefix("grpc://")) as opened:
        answer = await CompletionServiceStub(opened).ReportBatch(
            pb.ReportBatchRequest(items=items), metadata=metadata, timeout=10
        )
    assert [r.problem.code for r in answer.results] == [*["invalid_report"] * 4, ""]
    assert answer.results[1].problem.detail.startswith("status: is none of")
    ended = await row(database, bad.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "invalid_report")
    assert (await row(database, good.id)).error_code is None
