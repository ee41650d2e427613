"""Logins for the images that nodes load: given when a node asks, for its own assignments only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.private_registry import PASSWORD, USER, PrivateRegistry, by_password, by_token
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database

from .world import Agent, Api, Running, make_settings, unique


@pytest.fixture(params=[by_password, by_token])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PrivateRegistry]:
    with request.param(tmp_path / "registry") as served:
        yield served


@pytest.fixture
def own(
    registry: PrivateRegistry, postgres_dsn: str, redis_url: str, s3_settings: S3Settings, tmp_path: Path
) -> Iterator[Api]:  # fmt: skip
    login = SecretStr(f"{USER}:{PASSWORD}")
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path / "data", secret_registries={registry.host: login}
    )
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    yield Api(running.url, settings.admin_key.get_secret_value(), settings, s3_settings)
    running.close()


def assigned(own: Api, admin: httpx.Client, image: str) -> tuple[Agent, str]:
    agent, model_id = Agent(own), f"test/{unique('m')}"
    agent.register()
    put = admin.put(
        f"/api/models/{model_id}/versions/v1", json={"modality": "image", "runner_image": image}
    )
    assert put.status_code < 300, put.text
    asked = admin.post(
        f"/api/nodes/{agent.id}/assign", json={"model_id": model_id, "version_id": "v1"}
    )
    assert asked.status_code == 202, asked.text
    return agent, asked.json()["id"]


async def test_a_node_gets_what_it_needs_to_pull_its_own_assignments(
    own: Api, registry: PrivateRegistry, database: Database
) -> None:
    with own.client() as admin:
        agent, known = assigned(own, admin, f"{registry.host}/team/model@sha256:{'0' * 64}")
        other, elsewhere = assigned(own, admin, f"127.0.0.1:9/team/model@sha256:{'0' * 64}")

        def asked(who: Agent, known: str) -> httpx.Response:
            return who.post(f"/api/nodes/{who.id}/assignments/{known}/credentials", {})

        answer = asked(agent, known)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        access: dict[str, Any] = answer.json()["registry"]
        pulls = f"http://{registry.host}/v2/team/model/tags/list"
        if access["token"] is None:
            assert (access["username"], access["password"]) == (USER, PASSWORD)
            assert access["expires_in_seconds"] == 600
            good = httpx.get(pulls, auth=(USER, access["password"]), trust_env=False)
        else:
            # The password stays with the servers; the token pulls this repository only.
            assert PASSWORD not in answer.text
            assert registry.asked == ["repository:team/model:pull"]
            bearer = {"Authorization": f"Bearer {access['token']}"}
            good = httpx.get(pulls, headers=bearer, trust_env=False)
            foreign = f"http://{registry.host}/v2/team/other/tags/list"
            assert httpx.get(foreign, headers=bearer, trust_env=False).status_code == 401
        assert good.status_code == 404  # Let in, and there is no such image.
        # Another registry takes anyone; another node's assignment is none of this node's.
        assert asked(other, elsewhere).json() == {"registry": None}
        assert asked(other, known).status_code == 404
        agent.client.close()
        other.client.close()
    async with database.transaction() as store:
        (audited,) = await store.keys.audited("registry_access", str(agent.id), 10)
    assert PASSWORD not in str(audited)
    assert audited["by"] == ("login" if access["token"] is None else "token")


async def test_a_registry_that_is_away_is_told_as_that(
    own: Api, registry: PrivateRegistry, tmp_path: Path
) -> None:
    with own.client() as admin:
        agent, known = assigned(own, admin, f"{registry.host}/team/model@sha256:{'0' * 64}")
        registry.stop()
        answer = agent.post(f"/api/nodes/{agent.id}/assignments/{known}/credentials", {})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert PASSWORD not in answer.text
        agent.client.close()
