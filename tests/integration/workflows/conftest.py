"""One installation for each test of this folder, on servers that no other test sees."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import own_redis
from tests.integration.dagster import engines
from tests.integration.workflows.world import World, running
from vyvo_dagster.settings import S3Settings

URL = engines.found().get("default")
# Steps with containers are tested where an engine answers.
collect_ignore = [] if URL and engines.has_base_image(URL) else ["test_containers.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if collect_ignore:
        terminalreporter.section("containers of workflows")
        said = f"NOT tested: that takes a Docker engine with the image {engines.BASE_IMAGE}"
        terminalreporter.line(said)


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
