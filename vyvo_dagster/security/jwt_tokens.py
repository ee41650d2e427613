"""Access tokens of an issuer (JWT, RFC 7519 and 9068): whose they are and what they may do.

What RFC 8725 warns of is refused: an algorithm that is not that of the key, `none`, keys that a
token brings or points to, and headers that would have to be understood.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from urllib.parse import urlsplit

import jwt

from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.domain.tenant import TENANT
from vyvo_dagster.errors import InvalidInput, Unauthenticated
from vyvo_dagster.security.jwks import ALGORITHMS, KeySet
from vyvo_dagster.settings import Settings

__all__ = ["Claims", "JwtPolicy", "JwtVerifier", "looks_like_jwt"]

_MAX_CHARS: Final = 8192
_MAX_SUBJECT: Final = 200
_SEGMENTS: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_ACCEPTED: Final = frozenset(ALGORITHMS.values())
# Keys that the token itself brings, and extensions that must be understood.
_REFUSED_HEADERS: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip"})
_TYPES: Final = frozenset({"JWT", "AT+JWT", "APPLICATION/AT+JWT"})
_TENANT: Final = re.compile(TENANT)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a proven token says."""

    issuer: str
    subject: str
    tenant: str
    scopes: frozenset[Scope]
    expires_at: datetime
    """With the clock skew that is allowed."""


@dataclass(frozen=True, slots=True)
class JwtPolicy:
    """Whose tokens are taken, and how their claims are read."""

    jwks_url: str
    issuer: str
    audience: str
    leeway_seconds: int
    scope_claim: str
    tenant_claim: str

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The policy that is set; None where no tokens are taken.

        Raises:
            InvalidInput: only a part of it is set, or the keys' URL is not protected.
        """
        url, issuer, audience = settings.jwt_jwks_url, settings.jwt_issuer, settings.jwt_audience
        if url is None and issuer is None and audience is None:
            return None
        if not (url and issuer and audience):
            raise InvalidInput(
                "VYVO_JWT_JWKS_URL, VYVO_JWT_ISSUER and VYVO_JWT_AUDIENCE go together; set all three"
            )
        if not _is_protected(url):
            raise InvalidInput("VYVO_JWT_JWKS_URL must be an https URL (http on loopback only)")
        return cls(
            url, issuer, audience, settings.jwt_leeway_seconds, settings.jwt_scope_claim,
            settings.jwt_tenant_claim,
        )  # fmt: skip


def looks_like_jwt(text: str) -> bool:
    """Whether `text` has the form of a signed token; nothing is decoded."""
    return len(text) <= _MAX_CHARS and _SEGMENTS.fullmatch(text) is not None


class JwtVerifier:
    """Proves tokens of one issuer."""

    def __init__(self, policy: JwtPolicy, keys: KeySet) -> None:
        self._policy, self._keys = policy, keys

    async def verify(self, text: str) -> Claims:
        """What a token says.

        Raises:
            Unauthenticated: it is not to be trusted; the detail says no more than its kind of fault.
            Unavailable: the issuer's keys cannot be had.
        """
        if not looks_like_jwt(text):
            raise _refused("malformed")
        try:
            header: Mapping[str, Any] = jwt.get_unverified_header(text)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise _refused("malformed") from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in _ACCEPTED:
            raise _refused("not signed by RS256, ES256 or EdDSA")
        if _REFUSED_HEADERS & header.keys() or str(header.get("typ", "JWT")).upper() not in _TYPES:
            raise _refused("one with headers that are not taken")
        if not isinstance(kid, str) or not 0 < len(kid) <= 256:
            raise _refused("without a key id")
        key = await self._keys.find(kid)
        # The key says the algorithm, never the token.
        if key is None or key.algorithm != algorithm:
            raise _refused("signed by no key of the issuer")
        return self._claims(text, key.key, algorithm)

    def _claims(self, text: str, key: Any, algorithm: str) -> Claims:
        policy = self._policy
        try:
            payload: Mapping[str, Any] = jwt.decode(
                text, key, algorithms=[algorithm], issuer=policy.issuer, audience=policy.audience,
                leeway=policy.leeway_seconds, options={"require": ["exp", "iss", "aud", "sub"]},
            )  # fmt: skip
            ends = datetime.fromtimestamp(int(payload["exp"]), UTC)
            ends += timedelta(seconds=policy.leeway_seconds)
        except jwt.ExpiredSignatureError as error:
            raise _refused("expired") from error
        except (
            jwt.PyJWTError,
            ValueError,
            TypeError,
            OverflowError,
            OSError,
            RecursionError,
        ) as error:
            raise _refused("not to be trusted") from error
        subject, tenant = payload["sub"], payload.get(policy.tenant_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT:
            raise _refused("without a usable subject")
        if not subject.isprintable():
            raise _refused("without a usable subject")
        if not isinstance(tenant, str) or _TENANT.fullmatch(tenant) is None:
            raise _refused(f"without a tenant (its claim {policy.tenant_claim!r})")
        return Claims(
            policy.issuer, subject, tenant, _scopes(payload.get(policy.scope_claim)), ends
        )


def _scopes(claim: Any) -> frozenset[Scope]:
    """The scopes of a claim, a string with spaces or a list; unknown ones grant nothing.

    `node` is no token's: it belongs to the credential that a node gets by joining.
    """
    given: list[Any] = claim.split(" ") if isinstance(claim, str) else claim
    if not isinstance(given, list):
        return frozenset()
    known = {str(scope): scope for scope in Scope if scope is not Scope.NODE}
    return frozenset(known[each] for each in given if isinstance(each, str) and each in known)


def _refused(what: str) -> Unauthenticated:
    return Unauthenticated(f"the token is {what}")


def _is_protected(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return bool(host)
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return parts.scheme == "http" and loopback
