"""Reports of attempts over HTTP and over gRPC: the same answers, by the agent's own clients."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from uuid_utils.compat import uuid7

from api.grpc.errors import _STATUS, abort
from api.grpc.service import CompletionService
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    StaleAttempt,
    Unauthenticated,
    Unavailable,
    VyvoError,
)
from vyvo_dagster.protocol.grpc import completion_pb2 as pb
from vyvo_dagster.protocol.grpc.completion_pb2_grpc import (
    CompletionServiceServicer,
    CompletionServiceStub,
    add_CompletionServiceServicer_to_server,
)
from vyvo_dagster.protocol.job import (
    AttemptStatus,
    CompletionReport,
    JobError,
    ProgressReport,
)
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.events import replay

from .fronts import Dispatched, free_port, row, success
from .world import Agent, Api, Running, make_settings

SERVICE = "vyvo.v1.CompletionService"


@asynccontextmanager
async def channel(both: tuple[str, str]) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(both[1].removeprefix("grpc://")) as opened:
        yield opened


async def test_good_reports_are_taken_and_repeats_change_nothing(
    front: ControlPlane, dispatched: Dispatched, database: Database, s3_settings: S3Settings,
    redis_url: str,
) -> None:  # fmt: skip
    job = await dispatched()
    await front.progress(job.id, ProgressReport(attempt=1))
    assert (await row(database, job.id)).state is JobState.RUNNING
    await front.progress(job.id, ProgressReport(attempt=1, fraction=0.0, logs=["ein Wört", ""]))
    output = {"seed": 2**60 + 1, "deep": [1, 2.5, None, {"text": "ü"}]}
    report = success(f"{s3_settings.bucket_prefix}image", output=output, timings={"predict": 0.125})
    await front.complete(job.id, report)
    ended = await row(database, job.id)
    await front.complete(job.id, report)
    assert await row(database, job.id) == ended
    assert (ended.state, ended.output, ended.progress) == (JobState.SUCCEEDED, output, 1.0)
    assert ended.timings == {"predict": 0.125}
    async with database.transaction() as store:
        (kept,) = await store.artifacts.of_job(job.id)
    assert (kept.size_bytes, kept.mime_type) == ((1 << 40) + 1, "image/png")
    assert kept.expires_at == report.artifacts[0].expires_at
    async with connect(redis_url) as redis:
        events = await replay(redis, job.id)
    assert [e.kind for e in events] == [
        "queued", "started", "progress", "log", "artifact", "completed",
    ]  # fmt: skip
    assert events[3].data["lines"] == ["ein Wört", ""]


async def test_failures_and_attempts_handed_back(
    front: ControlPlane, dispatched: Dispatched, database: Database
) -> None:
    failed, back = await dispatched(), await dispatched()
    error = JobError(code="prediction_failed", message="out of memory\nat step 3")
    await front.complete(
        failed.id, CompletionReport(attempt=1, status=AttemptStatus.FAILED, error=error)
    )
    ended = await row(database, failed.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "prediction_failed")
    assert ended.error_message == "out of memory\nat step 3"
    report = CompletionReport(attempt=1, status=AttemptStatus.HANDED_BACK)
    await front.complete(back.id, report)
    await front.complete(back.id, report)
    queued = await row(database, back.id)
    assert (queued.state, queued.handed_back) == (JobState.QUEUED, 1)


async def test_refused_reports_change_nothing(
    front: ControlPlane, dispatched: Dispatched, database: Database, s3_settings: S3Settings,
    api: Api,
) -> None:  # fmt: skip
    job = await dispatched()
    before = await row(database, job.id)
    good = success(f"{s3_settings.bucket_prefix}image")
    big = success(f"{s3_settings.bucket_prefix}image", output="x" * (17 << 20))
    stale = good.model_copy(update={"attempt": 2})
    for wrong, expected in ((stale, StaleAttempt), (big, InvalidInput)):
        with pytest.raises(expected) as caught:
            await front.complete(job.id, wrong)
        assert type(caught.value) is expected
    with pytest.raises(StaleAttempt):
        await front.progress(job.id, ProgressReport(attempt=7, fraction=0.5))
    with pytest.raises(NotFound):
        await front.complete(uuid7(), good)
    node = front.credential
    for credential, refused in (
        (None, Unauthenticated),
        ("nonsense", Unauthenticated),
        (api.admin_key, Forbidden),
    ):
        front.credential = credential
        with pytest.raises(refused):
            await front.complete(job.id, good)
    other = Agent(api)
    other.register()
    other.client.close()
    front.credential = other.credential
    with pytest.raises(StaleAttempt):
        await front.complete(job.id, good)
    assert await row(database, job.id) == before
    front.credential = node
    await front.complete(job.id, good)
    assert (await row(database, job.id)).state is JobState.SUCCEEDED


async def test_an_end_that_cannot_be_used_fails_its_attempt(
    front: ControlPlane, dispatched: Dispatched, database: Database
) -> None:
    job = await dispatched()
    with pytest.raises(InvalidInput, match="another-bucket"):
        await front.complete(job.id, success("another-bucket"))
    ended = await row(database, job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "invalid_report")


def details(error: grpc.aio.AioRpcError) -> tuple[str, ErrorInfo, Status]:
    told = dict(error.trailing_metadata() or ())
    status = Status.FromString(told["grpc-status-details-bin"])
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(told["vyvo-code"]), info, status


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"job_id": "7"}, "INVALID_ARGUMENT", "invalid_input", "job_id: is no UUID"),
        ({"attempt": 0}, "INVALID_ARGUMENT", "invalid_input", "attempt: "),
        ({"status": 0}, "INVALID_ARGUMENT", "invalid_input", "status: is none of"),
        ({"status": 99}, "INVALID_ARGUMENT", "invalid_input", "status: is none of"),
        ({"output_json": "{"}, "INVALID_ARGUMENT", "invalid_input", "output_json: "),
        ({"output_json": "[" * 100_000}, "INVALID_ARGUMENT", "invalid_input", "output_json: "),
        ({"artifacts": [{"url": "/etc/passwd"}]}, "INVALID_ARGUMENT", "invalid_input", "artifacts.0.url: "),
        ({"attempt": 9}, "FAILED_PRECONDITION", "stale_attempt", "attempt 9 is not"),
    ],
)  # fmt: skip
async def test_errors_carry_their_stable_code(
    both: tuple[str, str], agent: Agent, dispatched: Dispatched, change: Any, status: str, code: str,
    said: str,
) -> None:  # fmt: skip
    job = await dispatched()
    message = {"job_id": str(job.id), "attempt": 1, "status": 1, **change}
    metadata = (("authorization", f"Bearer {agent.credential}"),)
    async with channel(both) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await CompletionServiceStub(opened).CompleteJob(
                pb.CompleteJobRequest(**message), metadata=metadata, timeout=10
            )
    told, info, full = details(caught.value)
    assert (caught.value.code().name, told) == (status, code)
    assert (info.reason, info.domain) == (code.upper(), "vyvo")
    assert (caught.value.details() or "").startswith(said)
    assert (full.code, full.message) == (caught.value.code().value[0], caught.value.details())


async def test_a_call_past_its_deadline_ends_and_what_it_began_is_finished_whole(
    both: tuple[str, str], agent: Agent, dispatched: Dispatched, database: Database, redis_url: str
) -> None:
    job = await dispatched()
    message = pb.CompleteJobRequest(job_id=str(job.id), attempt=1, status="ATTEMPT_STATUS_FAILED")
    metadata = (("authorization", f"Bearer {agent.credential}"),)
    async with channel(both) as opened:
        async with database.transaction() as store:
            locked = sa.text("select 1 from jobs where id = :id for update")
            await store.connection.execute(locked, {"id": job.id})
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await CompletionServiceStub(opened).CompleteJob(
                    message, metadata=metadata, timeout=0.3
                )
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(30), connect(redis_url) as redis:
            while [e.kind for e in await replay(redis, job.id)][-1] != "completed":
                await asyncio.sleep(0.02)
    assert (await row(database, job.id)).state is JobState.FAILED


async def test_the_agent_says_what_is_away(agent: Agent) -> None:
    async with ControlPlane("http://127.0.0.1:9", f"grpc://127.0.0.1:{free_port()}") as plane:
        plane.credential = agent.credential
        with pytest.raises(Unavailable, match="UNAVAILABLE"):
            await plane.progress(uuid7(), ProgressReport(attempt=1))
    for url in ("127.0.0.1:80", "http://127.0.0.1:80", "grpc://", "grpc://h:1/path"):
        with pytest.raises(InvalidInput, match="VYVO_AGENT_GRPC_URL"):
            async with ControlPlane("http://127.0.0.1:9", url):
                pass


async def test_health_and_an_orderly_end(
    postgres_dsn: str, redis_url: str, api: Api, agent: Agent, tmp_path: Any
) -> None:
    port = free_port()
    settings = make_settings(postgres_dsn, redis_url, tmp_path, grpc_port=port)
    running = Running(settings, api.s3)
    metadata = (("authorization", f"Bearer {agent.credential}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        checks = health_pb2_grpc.HealthStub(opened)
        for name in ("", SERVICE):
            answer = await checks.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watched = checks.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
        await watched.read()
        closing = asyncio.create_task(asyncio.to_thread(running.close))
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await closing < 5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await CompletionServiceStub(opened).ReportProgress(
                pb.ReportProgressRequest(job_id=str(uuid7()), attempt=1),
                metadata=metadata, timeout=5,
            )  # fmt: skip
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


class Away(CompletionServiceServicer):
    """A service whose database is away."""

    async def ReportProgress(self, request: Any, context: Any) -> Any:
        await abort(context, Unavailable("the database does not answer; try again shortly"))


@pytest.mark.parametrize(
    ("service", "status", "detail"),
    [
        (Away(), "UNAVAILABLE", "the database does not answer; try again shortly"),
        # A bug: nothing behind the service. What it was is in the log only.
        (CompletionService(None), "INTERNAL", "the server failed; the error is in its log"),  # pyright: ignore[reportArgumentType]
    ],
)  # fmt: skip
async def test_faults_of_the_server(service: Any, status: str, detail: str) -> None:
    server = grpc.aio.server()
    add_CompletionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await CompletionServiceStub(opened).ReportProgress(
                    pb.ReportProgressRequest(), metadata=(("authorization", "Bearer x"),), timeout=5
                )
    finally:
        await server.stop(None)
    assert (caught.value.code().name, caught.value.details()) == (status, detail)
    retry = [d for d in details(caught.value)[2].details if d.Is(RetryInfo.DESCRIPTOR)]
    assert bool(retry) == (status == "UNAVAILABLE")


async def test_over_tls_only_with_the_right_authority(
    postgres_dsn: str, redis_url: str, api: Api, agent: Agent, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost"]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True, timeout=30)
    port = free_port()
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path, grpc_port=port, grpc_tls_cert=cert, grpc_tls_key=key
    )
    running = Running(settings, api.s3)
    try:
        for scheme, ca, expected in (
            ("grpcs", cert, NotFound),  # Heard, and the job is unknown.
            ("grpcs", None, Unavailable),
            ("grpc", None, Unavailable),
        ):
            async with ControlPlane(running.url, f"{scheme}://localhost:{port}", ca) as plane:
                plane.credential = agent.credential
                with pytest.raises(expected):
                    await plane.progress(uuid7(), ProgressReport(attempt=1))
    finally:
        await asyncio.to_thread(running.close)


def test_every_error_of_ours_has_a_status() -> None:
    def kinds(root: type[VyvoError]) -> set[type[VyvoError]]:
        return {root}.union(*(kinds(k) for k in root.__subclasses__()))

    assert {k.status for k in kinds(VyvoError)} - {500} <= set(_STATUS)
