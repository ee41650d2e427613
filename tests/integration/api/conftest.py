"""Fixtures: the api over the real servers, a client of it, a node, a ready version."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.private_registry import PROGRAM
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database

from .fronts import both, dispatched, front
from .issuer import Issuer
from .world import Agent, Api, Running, Version, make_settings, ready_version

__all__ = ["both", "dispatched", "front"]

# Logins are tested where there is a registry to log in to (Debian: docker-registry).
collect_ignore = [] if PROGRAM is not None else ["test_registry_access.py"]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture(scope="session")
def api(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Api]:  # fmt: skip
    settings = make_settings(postgres_dsn, redis_url, tmp_path_factory.mktemp("data"))
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    yield Api(running.url, settings.admin_key.get_secret_value(), settings, s3_settings)
    running.close()


@pytest.fixture
def admin(api: Api) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


@pytest.fixture
async def database(api: Api) -> AsyncIterator[Database]:
    made = Database(api.settings.postgres_dsn, pool_size=2)
    yield made
    await made.close()


@pytest.fixture
async def version(database: Database) -> Version:
    return await ready_version(database)


@pytest.fixture
def agent(api: Api) -> Iterator[Agent]:
    played = Agent(api)
    played.register()
    yield played
    played.client.close()
