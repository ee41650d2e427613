"""Tokens that pull one repository for some minutes, had from a registry for a login.

The registry says where (`WWW-Authenticate: Bearer realm=...,service=...`), as the distribution
specification's token authentication describes (distribution.github.io/distribution/spec/auth/token).
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.security.secrets import RegistryLogin

__all__ = ["PullToken", "pull_token"]

_SECONDS: Final = httpx.Timeout(10.0, connect=5.0)
_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"]*)"')
# What the specification says of an answer that names no life.
_LIFE_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class PullToken:
    """A bearer token and how long it is good for, in seconds."""

    text: str = field(repr=False)
    seconds: int


async def pull_token(
    http: httpx.AsyncClient, login: RegistryLogin, repository: str
) -> PullToken | None:
    """A token to pull `repository`; None where the registry knows no tokens, only the login.

    Raises:
        Unavailable: the registry does not answer, or refuses the login.
    """
    base = f"{'http' if _is_loopback(login.host) else 'https'}://{_api_host(login.host)}"
    try:
        asked = await http.get(f"{base}/v2/", timeout=_SECONDS)
        parameters = _bearer(asked.headers.get("www-authenticate", ""))
        if asked.status_code != HTTPStatus.UNAUTHORIZED or parameters is None:
            return None
        answer = await http.get(
            _checked_realm(parameters["realm"], login.host),
            params={
                "service": parameters.get("service", ""),
                "scope": f"repository:{repository}:pull",
                "account": login.username,
            },
            auth=(login.username, login.password),
            timeout=_SECONDS,
        )
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the registry {login.host} does not answer ({type(error).__name__})"
        ) from error
    if not answer.is_success:
        raise Unavailable(f"the registry {login.host} refuses the login ({answer.status_code})")
    return _token(answer, login.host)


def _token(answer: httpx.Response, host: str) -> PullToken:
    try:
        members: Any = answer.json()
        text = members.get("token") or members["access_token"]
        seconds = int(members.get("expires_in") or _LIFE_SECONDS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"the registry {host} answered what is no token") from error
    return PullToken(str(text), seconds)


def _bearer(challenge: str) -> Mapping[str, str] | None:
    scheme, _, rest = challenge.partition(" ")
    parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
    return parameters if scheme.lower() == "bearer" and "realm" in parameters else None


def _checked_realm(realm: str, host: str) -> str:
    """The realm, if a password may go there."""
    parts = urlsplit(realm)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.netloc)):
        return realm
    raise Unavailable(f"the registry {host} asks for its password over an unprotected connection")


def _api_host(host: str) -> str:
    return "registry-1.docker.io" if host == "docker.io" else host


def _is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine, where Docker too speaks plain HTTP."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
