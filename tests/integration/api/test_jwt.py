"""Tokens of an issuer, good and bad, against an api that takes them."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from api.app import create_app
from vyvo_dagster.errors import InvalidInput, Unavailable
from vyvo_dagster.security.jwks import KeySet, read_keys
from vyvo_dagster.settings import S3Settings, Settings

from .issuer import AUDIENCE, KINDS, Issuer, make_key, public_jwk, segment
from .world import Running, make_settings, unique


@pytest.fixture(scope="module")
def url(
    issuer: Issuer, postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:  # fmt: skip
    settings = make_settings(
        postgres_dsn, redis_url, tmp_path_factory.mktemp("data"), auth_failures_per_minute=0,
        **issuer.settings(),
    )  # fmt: skip
    running = Running(settings, s3_settings)
    yield running.url
    running.close()


def get(url: str, token: str, path: str = "/api/jobs") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{url}{path}", headers=headers, trust_env=False, timeout=10)


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_good_token_does_what_its_scopes_say(url: str, issuer: Issuer, algorithm: str) -> None:
    token = issuer.token("openid", "jobs:read", algorithm=algorithm, aud=["other", AUDIENCE])
    assert get(url, token).status_code == 200
    assert get(url, token, "/api/keys").status_code == 403
    as_list = issuer.token(algorithm=algorithm, scope=["jobs:read", 7, "no:such"])
    assert get(url, as_list).status_code == 200
    assert get(url, issuer.token(algorithm=algorithm)).status_code == 403


def test_a_token_acts_for_its_tenant_and_is_named_in_the_audit_log(
    url: str, issuer: Issuer
) -> None:
    tenant, model_id = unique("t"), f"{unique('o')}/m"
    token = issuer.token("models:write", tenant=tenant, sub="ci@acme")
    headers = {"Authorization": f"Bearer {token}"}
    body = {"model_id": model_id}
    made = httpx.post(f"{url}/api/models", json=body, headers=headers, trust_env=False)
    assert (made.status_code, made.json()["tenant"]) == (201, tenant)
    audit = get(url, issuer.token("admin"), f"/api/audit?subject={model_id}").json()["items"]
    assert [(e["key_prefix"], e["tenant"]) for e in audit] == [("jwt:ci@acme", tenant)]


def test_no_token_is_a_nodes(url: str, issuer: Issuer) -> None:
    token = issuer.token("node", "admin")
    path = f"{url}/api/nodes/00000000-0000-0000-0000-000000000000/heartbeat"
    headers = {"Authorization": f"Bearer {token}"}
    body = {"boot_id": "00000000-0000-0000-0000-000000000000", "sent_at": "2026-01-01T00:00:00Z"}
    answer = httpx.post(path, json=body, headers=headers, trust_env=False)
    assert answer.status_code == 403


def unsigned(issuer: Issuer, algorithm: str, **headers: Any) -> str:
    head = {"alg": algorithm, "typ": "JWT", "kid": "rsa", **headers}
    return f"{segment(head)}.{segment(issuer.claims('jobs:read'))}."


def by_public_key(issuer: Issuer) -> str:
    """Signed by HMAC with the RSA key's public text, which a confused verifier takes as a secret."""
    public = issuer.keys["RS256"].public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    text = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rsa'})}.{segment(issuer.claims('jobs:read'))}"
    return f"{text}.{segment(hmac.digest(public, text.encode(), hashlib.sha256))}"


def embedded(issuer: Issuer) -> str:
    own = make_key("ES256")
    jwk = public_jwk("ES256", own, "ec")
    return issuer.token("jobs:read", algorithm="ES256", key=own, headers={"jwk": jwk})


def tampered(issuer: Issuer) -> str:
    head, _, signature = issuer.token("jobs:read").split(".")
    return f"{head}.{segment(issuer.claims('admin'))}.{signature}"


BAD: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda i: i.token("jobs:read", exp=int(time.time()) - 60),
    "without an end": lambda i: i.token("jobs:read", exp=None),
    "an end that is no number": lambda i: i.token("jobs:read", exp="soon"),
    "an end beyond all calendars": lambda i: i.token("jobs:read", exp=10**30),
    "not yet good": lambda i: i.token("jobs:read", nbf=int(time.time()) + 120),
    "issued in the future": lambda i: i.token("jobs:read", iat=int(time.time()) + 120),
    "another issuer's": lambda i: i.token("jobs:read", iss="https://evil.example.com/"),
    "without an issuer": lambda i: i.token("jobs:read", iss=None),
    "for another audience": lambda i: i.token("jobs:read", aud="other"),
    "for no audience": lambda i: i.token("jobs:read", aud=None),
    "without a subject": lambda i: i.token("jobs:read", sub=None),
    "a subject with control characters": lambda i: i.token("jobs:read", sub="a\x1b[2J"),
    "without a tenant": lambda i: i.token("jobs:read", tenant=None),
    "a tenant that is none": lambda i: i.token("jobs:read", tenant="a:b"),
    "a tenant that is a list": lambda i: i.token("jobs:read", tenant=["acme"]),
    "algorithm none": lambda i: unsigned(i, "none"),
    "algorithm None, in capitals": lambda i: unsigned(i, "NONE"),
    "an algorithm that is no text": lambda i: unsigned(i, ["RS256"]),  # pyright: ignore[reportArgumentType]
    "an unsigned RS256": lambda i: unsigned(i, "RS256"),
    "signed with the public key as a secret": by_public_key,
    "RSA by another algorithm": lambda i: i.token("jobs:read", algorithm="RS512", key=i.keys["RS256"]),
    "PSS where RS256 is meant": lambda i: i.token("jobs:read", algorithm="PS256", key=i.keys["RS256"]),
    "a key of another kind by its id": lambda i: i.token("jobs:read", headers={"kid": "ec"}),
    "another's signature": lambda i: i.token("jobs:read", key=make_key("RS256")),
    "claims that were changed": tampered,
    "a key that it brings": embedded,
    "a key that it points to": lambda i: i.token("jobs:read", headers={"jku": i.url}),
    "a certificate that it points to": lambda i: i.token("jobs:read", headers={"x5u": i.url}),
    "an extension": lambda i: i.token("jobs:read", headers={"crit": ["exp"]}),
    "another type": lambda i: i.token("jobs:read", headers={"typ": "dpop+jwt"}),
    "no key id": lambda i: i.token("jobs:read", headers={"kid": None}),
    "an unknown key id": lambda i: i.token("jobs:read", headers={"kid": "nobody"}),
    "no JSON": lambda i: "bm9uZQ.bm9uZQ.bm9uZQ",
    "nested without end": lambda i: f"{segment(b'[' * 4000)}.e30.e30",
    "too long": lambda i: i.token("jobs:read", padding="x" * 9000),
    "four parts": lambda i: i.token("jobs:read") + ".AA",
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_token_is_refused(url: str, issuer: Issuer, fault: str) -> None:
    answer = get(url, BAD[fault](issuer))
    assert answer.status_code == 401, answer.text
    assert answer.json()["code"] == "unauthenticated"


def test_the_clock_may_be_a_little_off(url: str, issuer: Issuer) -> None:
    now = int(time.time())
    assert get(url, issuer.token("jobs:read", exp=now - 5)).status_code == 200
    assert get(url, issuer.token("jobs:read", nbf=now + 10)).status_code == 200


def test_the_fast_way_of_submissions_takes_tokens_alike(url: str, issuer: Issuer) -> None:
    def submit(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        body = {"model_id": "no/such", "input": {}}
        return httpx.post(
            f"{url}/api/jobs", json=body, headers=headers, trust_env=False
        ).status_code

    assert submit(issuer.token("jobs:write")) == 404
    assert submit(issuer.token("jobs:read")) == 403
    assert submit(unsigned(issuer, "none")) == 401


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_new_keys_are_found_and_made_up_ids_cost_one_fetch() -> None:
    issuer, clock = Issuer(), Clock()
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            keys = KeySet(issuer.url, http, clock)
            assert await keys.find("rsa") is not None
            assert [await keys.find(f"made-up-{n}") for n in range(50)] == [None] * 50
            assert issuer.fetched == 1
            issuer.document["keys"].append(public_jwk("ES256", make_key("ES256"), "new"))
            assert await keys.find("new") is None
            clock.now += 11
            assert await keys.find("new") is not None
            assert issuer.fetched == 2
            # What the issuer took away is gone once what is known is no longer fresh.
            issuer.document["keys"] = issuer.document["keys"][1:]
            clock.now += 301
            assert await keys.find("rsa") is None
            # Away: what is known serves on for an hour, what is unknown cannot be judged.
            issuer.away = True
            clock.now += 301
            assert await keys.find("ec") is not None
            with pytest.raises(Unavailable):
                await keys.find("rsa")
            clock.now += 3600
            with pytest.raises(Unavailable):
                await keys.find("ec")
            issuer.away = False
            clock.now += 11
            assert await keys.find("ec") is not None
    finally:
        issuer.close()


def test_keys_that_are_not_usable_are_passed_over() -> None:
    good = make_key("RS256")
    jwk = public_jwk("RS256", good, "good")
    small = json.loads(
        jwt.algorithms.RSAAlgorithm.to_jwk(_weak().public_key())
    )  # fmt: skip
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(good))
    entries: list[Any] = [
        jwk,
        {**jwk, "kid": "for encryption", "use": "enc"},
        {**jwk, "kid": "for another algorithm", "alg": "RS512"},
        {**jwk, "kid": "to sign only", "key_ops": ["sign"]},
        {**small, "kid": "small"},
        {**private, "kid": "private"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "curve"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "broken"},
        {**jwk, "kid": 7},
        "no key",
    ]
    assert list(read_keys({"keys": entries})) == ["good"]
    for bad in (None, [], {}, {"keys": {}}):
        with pytest.raises(ValueError, match="no list"):
            read_keys(bad)


def _weak() -> Any:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    "values",
    [
        {"jwt_issuer": "https://i"},
        {"jwt_jwks_url": "https://i/jwks", "jwt_issuer": "https://i"},
        {"jwt_jwks_url": "http://i/jwks", "jwt_issuer": "https://i", "jwt_audience": "a"},
        {"jwt_jwks_url": "file:///etc/passwd", "jwt_issuer": "https://i", "jwt_audience": "a"},
    ],
)
def test_settings_that_do_not_fit_end_the_start(values: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="VYVO_JWT"):
        create_app(Settings(_env_file=None, **values), S3Settings())  # pyright: ignore[reportArgumentType]
