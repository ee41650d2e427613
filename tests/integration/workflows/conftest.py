"""One installation for each test of this folder, on servers that no other test sees."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import own_redis
from tests.integration.workflows.world import World, running
from vyvo_dagster.settings import S3Settings


@pytest.fixture(scope="module")
def workflow_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory) as url:
        yield url


@pytest.fixture
async def world(
    make_database: Callable[[str], str], workflow_redis: str, s3_settings: S3Settings,
    tmp_path: Path,
) -> AsyncIterator[World]:  # fmt: skip
    dsn = make_database("migrated")
    async with running(dsn, workflow_redis, s3_settings, tmp_path) as found:
        found.begin_engine()
        yield found
