"""Failed authentication is limited by address, and hurts nobody who works behind it."""

import secrets

import httpx
import pytest

from api.authenticator import Authenticator
from api.failures import Failures
from vyvo_dagster.errors import RateLimited, Unauthenticated
from vyvo_dagster.security.keys import TokenKind, mint
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import connect

from .test_auth import make_key
from .world import Running, make_settings, unique


def test_an_address_that_fails_too_often_is_refused(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path_factory.mktemp("data"), auth_failures_per_minute=5
    )
    running = Running(settings, s3_settings)
    try:
        assert settings.admin_key is not None

        def get(token: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"}
            return httpx.get(f"{running.url}/api/jobs", headers=headers, trust_env=False)

        good = settings.admin_key.get_secret_value()
        assert get(good).status_code == 200
        with httpx.Client(
            base_url=running.url, headers={"Authorization": f"Bearer {good}"}, trust_env=False
        ) as admin:
            unproven = make_key(admin, "jobs:read")["key"]
        answers = [get(mint(TokenKind.KEY).text) for _ in range(12)]
        codes = [a.status_code for a in answers]
        assert codes[:5] == [401] * 5
        assert 429 in codes[5:]
        refused = next(a for a in answers if a.status_code == 429)
        assert refused.json()["code"] == "rate_limited"
        assert int(refused.headers["retry-after"]) >= 1
        # Who was good before is not locked out; a guess that would have been good is not tried.
        assert get(good).status_code == 200
        assert 429 in [get(mint(TokenKind.KEY).text).status_code for _ in range(6)]
        assert get(unproven).status_code == 429
        # What carries no credential is told so, and counts for nothing.
        assert httpx.get(f"{running.url}/api/jobs", trust_env=False).status_code == 401
    finally:
        running.close()


async def test_what_was_good_lately_is_looked_up_though_its_address_is_refused(
    admin: httpx.Client, database: Database, redis_url: str
) -> None:
    made, fresh, now = make_key(admin, "jobs:read"), make_key(admin, "jobs:read"), [0.0]
    address = f"198.51.100.{secrets.randbelow(256)}"
    async with connect(redis_url) as redis:
        await redis.delete(keys.failures(address))
        failures = Failures(redis, 1)
        authenticator = Authenticator(database, None, failures, lambda: now[0])
        await authenticator.authenticate(made["key"], address)
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(mint(TokenKind.KEY).text, address)
        with pytest.raises(RateLimited):
            await authenticator.authenticate(mint(TokenKind.KEY).text, address)
        now[0] += 60  # Nothing is cached any more.
        assert (await authenticator.authenticate(made["key"], address)).tenant == "acme"
        with pytest.raises(RateLimited):
            await authenticator.authenticate(fresh["key"], address)
        # Revoked, it is as any other.
        assert admin.delete(f"/api/keys/{made['id']}").status_code == 204
        now[0] += 60
        with pytest.raises(RateLimited):
            await authenticator.authenticate(made["key"], address)
        with pytest.raises(RateLimited):
            failures.check(address)


async def test_failures_are_shared_by_processes_and_by_a_network_of_ipv6(redis_url: str) -> None:
    network = f"2001:db8:{unique('')[:4]}:1"
    async with connect(redis_url) as redis:
        one, other = Failures(redis, 2), Failures(redis, 2)
        await one.note(f"{network}::1")
        await other.note(f"{network}:ffff::2")
        with pytest.raises(RateLimited):
            await one.note(f"{network}::3")
        with pytest.raises(RateLimited):
            one.check(f"{network}::4")
        one.check("2001:db8::1")
        with pytest.raises(RateLimited):
            await other.note(f"{network}::5")
        unlimited = Failures(redis, 0)
        for _ in range(5):
            await unlimited.note(f"{network}::1")


async def test_nothing_is_limited_while_redis_is_away() -> None:
    async with connect("redis://127.0.0.1:1/0") as redis:
        failures = Failures(redis, 1)
        for _ in range(5):
            await failures.note("192.0.2.1")
        failures.check("192.0.2.1")
