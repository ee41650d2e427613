"""Two fronts of one api, HTTP and gRPC, and the agent's own client of each."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.protocol.job import AttemptStatus, CompletionReport, ReportedArtifact
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import Job

from .test_nodes import submit
from .world import Agent, Running, Version, dispatch, load, make_settings


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def both(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings, tmp_path_factory: Any
) -> Iterator[tuple[str, str]]:
    """URLs of one api's HTTP and gRPC."""
    port = free_port()
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path_factory.mktemp("data"), grpc_port=port
    )
    running = Running(settings, s3_settings)
    yield running.url, f"grpc://127.0.0.1:{port}"
    running.close()


@pytest.fixture(params=["http", "grpc"])
async def front(
    request: pytest.FixtureRequest, both: tuple[str, str], agent: Agent
) -> AsyncIterator[ControlPlane]:
    http, rpc = both
    async with ControlPlane(http, rpc if request.param == "grpc" else None) as plane:
        plane.credential = agent.credential
        yield plane


Dispatched = Callable[[], Any]


@pytest.fixture
async def dispatched(
    admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> Dispatched:
    assignment_id = await load(admin, agent, version)

    async def one() -> Job:
        return await dispatch(database, submit(admin, version), agent, assignment_id)

    return one


async def row(database: Database, job_id: UUID) -> Job:
    async with database.transaction() as store:
        job = await store.jobs.get(job_id, None)
    assert job is not None
    return job


def success(bucket: str, **values: Any) -> CompletionReport:
    artifact = ReportedArtifact(
        type="image", url=f"s3://{bucket}/a.png", size_bytes=(1 << 40) + 1, mime_type="image/png",
        expires_at="2031-02-03T04:05:06.789+00:00",  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    made = {"attempt": 1, "status": AttemptStatus.SUCCEEDED, "artifacts": [artifact], **values}
    return CompletionReport.model_validate(made)
