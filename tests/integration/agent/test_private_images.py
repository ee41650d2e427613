"""Images of registries that ask who pulls: the login goes with the one pull, on the real engine."""

import contextlib
import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import httpx
import pytest

from tests.private_registry import PASSWORD, USER, PrivateRegistry, by_password, by_token
from vyvo_dagster.agent.runners.container import ContainerLauncher
from vyvo_dagster.agent.runners.engine import Engine, connect
from vyvo_dagster.errors import RunnerFailed, Unavailable
from vyvo_dagster.protocol.node import RegistryAccess
from vyvo_dagster.security.pull_tokens import pull_token
from vyvo_dagster.security.secrets import RegistryLogin, registry_host


@pytest.fixture(params=[by_password, by_token])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PrivateRegistry]:
    with request.param(tmp_path / "registry") as served:
        yield served


@pytest.fixture
def image(registry: PrivateRegistry) -> Iterator[str]:
    """A small image that is in the registry and no longer in the engine, by its digest."""
    client: Any = docker.from_env(timeout=60)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("marker")
        member.size = 32
        tar.addfile(member, io.BytesIO(uuid4().hex.encode()))
    repository = f"{registry.host}/team/model"
    client.api.import_image_from_data(buffer.getvalue(), repository=repository, tag="1")
    said = client.images.push(repository, "1", auth_config={"username": USER, "password": PASSWORD})
    (digest,) = client.images.get(f"{repository}:1").attrs["RepoDigests"]
    client.images.remove(f"{repository}:1")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get(digest)
    assert "errorDetail" not in said
    yield digest
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.remove(digest)
    client.close()


@pytest.fixture
async def launcher() -> AsyncIterator[ContainerLauncher]:
    engine: Engine | None = await connect("docker", None)
    assert engine is not None
    made = ContainerLauncher(engine, uuid4())
    yield made
    await made.aclose()
    await engine.aclose()


async def test_an_image_is_pulled_by_what_the_control_plane_gives(
    launcher: ContainerLauncher, registry: PrivateRegistry, image: str
) -> None:
    asked = 0

    async def access() -> RegistryAccess:
        nonlocal asked
        asked += 1
        login = RegistryLogin(registry_host(image), USER, PASSWORD)
        async with httpx.AsyncClient(trust_env=False) as http:
            token = await pull_token(http, login, "team/model")
        if token is None:
            return RegistryAccess(
                host=login.host, username=USER, password=PASSWORD, expires_in_seconds=60
            )
        return RegistryAccess(host=login.host, token=token.text, expires_in_seconds=token.seconds)

    async def nobody() -> None:
        return None

    with pytest.raises((RunnerFailed, Unavailable)) as refused:
        await launcher.prepare(image, nobody)
    assert PASSWORD not in str(refused.value)
    await launcher.prepare(image, access)
    # What is here is not asked for again.
    await launcher.prepare(image, access)
    assert asked == 1
