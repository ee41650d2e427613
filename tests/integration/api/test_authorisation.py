"""Every route of the OpenAPI document by every kind of credential: `pytest -s` prints the table."""

import re
import secrets
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.scope import Scope, grants
from vyvo_dagster.settings import S3Settings

from .issuer import Issuer, make_key
from .test_auth import make_key as make_api_key
from .world import JOIN_TOKEN, Agent, Api, Running, make_settings, unique

OPEN = {"/healthz", "/readyz", "/metrics"}
REGISTER = "/api/nodes/register"


@pytest.fixture(scope="module")
def guarded(
    issuer: Issuer, postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Api]:  # fmt: skip
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path_factory.mktemp("data"), **issuer.settings()
    )
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    yield Api(running.url, settings.admin_key.get_secret_value(), settings, s3_settings)
    running.close()


class World:
    """Credentials of every kind, and ids of things that exist."""

    def __init__(self, api: Api, issuer: Issuer) -> None:
        self.api, self.issuer = api, issuer
        self.client = api.client("")
        self.admin = api.client()
        self.own, self.foreign = Agent(api), Agent(api)
        self.own.register()
        self.foreign.register()
        self.expired = make_api_key(self.admin, "admin", expires_in_seconds=1)["key"]
        revoked = make_api_key(self.admin, "admin")
        self.admin.delete(f"/api/keys/{revoked['id']}").raise_for_status()
        self.revoked = revoked["key"]
        prefix = api.admin_key.split("_")[1]
        self.forged = f"vyk_{prefix}_{secrets.token_urlsafe(32)}"
        self._by_scope: dict[Scope, str] = {}
        time.sleep(1.1)  # for the key that ends

    def close(self) -> None:
        for client in (self.client, self.admin, self.own.client, self.foreign.client):
            client.close()

    def without(self, needed: Scope) -> str:
        """A key with every scope that does not grant `needed`."""
        if needed not in self._by_scope:
            scopes = [s for s in Scope if s is not Scope.NODE and not grants([s], needed)]
            self._by_scope[needed] = make_api_key(self.admin, *scopes)["key"]
        return self._by_scope[needed]

    def credentials(self, needed: Scope | None) -> dict[str, tuple[str | None, set[int]]]:
        """Name → token and the statuses that are right; None is no credential."""
        denied = {403}
        # Joining takes the join token or a node's own credential.
        wrong = denied if needed is not None else {401, 403}
        token = self.issuer.token
        return {
            "none": (None, {401}),
            "malformed": ("vyk_no_key", {401}),
            "forged key": (self.forged, {401}),
            "expired key": (self.expired, {401}),
            "revoked key": (self.revoked, {401}),
            "join token": (JOIN_TOKEN, {401} if needed is not None else {422}),
            "wrong scope": (self.without(needed or Scope.NODE), wrong),
            "JWT, forged": (token("admin", key=make_key("RS256")), {401}),
            "JWT, expired": (token("admin", exp=int(time.time()) - 600), {401}),
            "JWT, no scope": (token(), wrong),
            "JWT, wrong scope": (
                token(*(s for s in Scope if not grants([s], needed or Scope.NODE))), wrong,
            ),
            # On routes of nodes it has the scope, and must be refused for whose they are.
            "other node's": (
                self.foreign.credential,
                {403, 404, 422} if needed in {None, Scope.NODE} else denied,
            ),
        }  # fmt: skip

    def path(self, template: str) -> str:
        """A path to things that exist where that matters, and else to none."""
        known = {"node_id": str(self.own.id), "owner": "no", "version": "1"}

        def one(found: re.Match[str]) -> str:
            name = found[1]
            return known.get(name) or (str(uuid7()) if name.endswith("_id") else "no-such")

        return re.sub(r"\{(\w+)(?::\w+)?\}", one, template)


@pytest.fixture(scope="module")
def world(guarded: Api, issuer: Issuer) -> Iterator[World]:
    made = World(guarded, issuer)
    yield made
    made.close()


def send(world: World, method: str, path: str, token: str | None) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body: dict[str, Any] = {} if method in {"GET", "DELETE"} else {"json": {}}
    return world.client.request(method, path, headers=headers, **body)


def operations(api: Api) -> list[tuple[str, str, Scope | None]]:
    document = httpx.get(f"{api.url}/openapi.json", trust_env=False).json()
    return [
        (method.upper(), path, _scope(operation))
        for path, of_path in document["paths"].items() if path not in OPEN
        for method, operation in of_path.items()
    ]  # fmt: skip


def _scope(operation: dict[str, Any]) -> Scope | None:
    named = operation.get("x-required-scope")
    return None if named is None else Scope(named)


def test_every_route_refuses_every_credential_that_is_not_for_it(world: World) -> None:
    unexpected: list[str] = []
    rows: list[list[str]] = []
    names = list(world.credentials(Scope.ADMIN))
    for method, template, needed in operations(world.api):
        row: list[str] = []
        for name, (token, right) in world.credentials(needed).items():
            answer = send(world, method, world.path(template), token)
            row.append(str(answer.status_code))
            problem = answer.headers.get("content-type") == "application/problem+json"
            if answer.status_code not in right or not problem:
                unexpected.append(f"{method} {template} by {name}: {answer.status_code}")
            if answer.status_code == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer")
        rows.append([f"{method} {template}", str(needed or "join token"), *row])
    widths = [
        max(len(r[i]) for r in [["route", "scope", *names], *rows]) for i in range(len(names) + 2)
    ]
    for row in [["route", "scope", *names], *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(f"{len(rows)} routes, {len(rows) * len(names)} answers, {len(unexpected)} unexpected")
    assert unexpected == []
    assert len(rows) >= 60


def test_every_route_serves_the_credential_that_is_for_it(world: World) -> None:
    """The right scope, and no other, gets past the door: what comes then is no 401 and no 403."""
    refused: list[str] = []
    for method, template, needed in operations(world.api):
        if (
            needed in {None, Scope.NODE}
            or template.endswith("/events")
            or template == "/api/events"
        ):
            continue
        assert needed is not None
        if method == "POST" and template == "/api/webhook-secret":
            continue  # it would set one
        key = make_api_key(world.admin, needed, tenant=unique("t"))["key"]
        for token in (key, world.issuer.token(needed, tenant=unique("t"))):
            answer = send(world, method, world.path(template), token)
            if answer.status_code in {401, 403, 500}:
                refused.append(f"{method} {template} with {needed}: {answer.status_code}")
    assert refused == []


def test_a_foreign_node_changes_nothing_of_another(world: World) -> None:
    def history() -> list[str]:
        found = world.admin.get(f"/api/nodes/{world.own.id}/events").json()["items"]
        return [e["id"] for e in found]

    before = history()
    beat = {"boot_id": str(world.own.boot_id), "sent_at": "2026-01-01T00:00:00Z", "leaving": True}
    node = f"/api/nodes/{world.own.id}"
    asked: list[tuple[str, dict[str, Any]]] = [
        (f"{node}/heartbeat", beat), (f"{node}/credential", {}),
        (f"{node}/reports", {"items": [{"job_id": str(uuid7()), "progress": {"attempt": 1}}]}),
        (f"{node}/assignments/{uuid7()}/credentials", {}),
    ]  # fmt: skip
    for path, body in asked:
        answer = world.foreign.post(path, body)
        assert answer.status_code == 403, (path, answer.text)
    named = {
        "name": world.own.name, "boot_id": str(UUID(int=1)), "labels": {},
        "capabilities": {"hostname": "h", "cpus": 1, "memory_bytes": 1, "engine": "process",
                         "agent_version": "0"},
    }  # fmt: skip
    assert world.foreign.post(REGISTER, named).status_code == 403
    assert history() == before
    assert world.own.beat().status_code == 200
