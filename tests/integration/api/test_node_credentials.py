"""A node's own credential, replaced in time."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from vyvo_dagster.store.database import Database

from .world import Agent, Api


def prefix(credential: str) -> str:
    return credential.split("_")[1]


async def test_a_node_replaces_its_credential_and_is_not_locked_out_by_a_lost_answer(
    api: Api, admin: httpx.Client, agent: Agent, database: Database
) -> None:
    first = agent.credential
    path = f"/api/nodes/{agent.id}/credential"
    lost = agent.post(path, {})
    assert lost.status_code == 200, lost.text
    assert lost.headers["cache-control"] == "no-store"
    # The answer was lost: the agent asks again with what it has.
    made = agent.post(path, {}).json()
    assert made["credential_seconds"] == pytest.approx(30 * 86400, abs=60)
    assert agent.post(path, {}, lost.json()["credential"]).status_code == 401
    for good in (first, made["credential"]):
        agent.credential = good
        assert agent.beat().status_code == 200
    async with database.transaction() as store:
        found = await store.keys.find(prefix(first))
    assert found is not None
    assert found[0].expires_at is not None
    assert found[0].expires_at < datetime.now(UTC) + timedelta(days=1, minutes=1)
    # Replaced once more, with the new one: the first has ended for good.
    assert agent.post(path, {}).status_code == 200
    assert agent.post(path, {}, first).status_code == 401
    kinds = [e["kind"] for e in admin.get(f"/api/nodes/{agent.id}/events").json()["items"]]
    assert kinds.count("credential_replaced") == 3
    async with database.transaction() as store:
        assert await store.keys.find(prefix(first)) is None


def test_a_node_learns_how_long_its_credential_lasts_and_replaces_no_other(
    api: Api, agent: Agent
) -> None:
    again = agent.register(agent.credential)
    assert again["credential"] is None
    assert again["credential_seconds"] == pytest.approx(30 * 86400, abs=60)
    other = Agent(api)
    other.register()
    path = f"/api/nodes/{agent.id}/credential"
    assert agent.post(path, {}, other.credential).status_code == 403
    assert agent.post(path, {}, api.admin_key).status_code == 403
    other.client.close()


def test_credentials_are_in_no_repr(agent: Agent) -> None:
    from vyvo_dagster.protocol.node import CredentialAnswer, RegistryAccess
    from vyvo_dagster.security.secrets import RegistryLogin

    shown = repr(
        [
            CredentialAnswer(credential="S3CRET", credential_seconds=1),
            RegistryAccess(host="h", password="S3CRET", token="S3CRET", expires_in_seconds=1),
            RegistryLogin("h", "u", "S3CRET"),
        ]
    )
    assert "S3CRET" not in shown
