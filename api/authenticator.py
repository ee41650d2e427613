"""Who a request comes from: keys and JWTs to principals, with a short cache."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from uuid_utils.compat import uuid7

from api.failures import Failures
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.errors import InvalidInput, Unauthenticated
from vyvo_dagster.security.jwt_tokens import JwtVerifier, looks_like_jwt
from vyvo_dagster.security.keys import TokenKind, digest_of, matches, parse_token
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import KeyLimits

__all__ = ["KEPT_SECONDS", "Authenticator", "Principal"]

# A key revoked through another api process works for at most this long.
KEPT_SECONDS: Final = 5.0
_CACHE_SIZE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a credential that was proven."""

    key_id: UUID
    """Of the key's row; of a JWT derived from issuer and subject."""
    prefix: str
    """What the audit log calls it: a key's prefix, `jwt:` and a token's subject."""
    tenant: str
    scopes: frozenset[Scope]
    node_id: UUID | None
    expires_at: datetime | None
    limits: KeyLimits = field(default_factory=KeyLimits)

    @property
    def sees(self) -> str | None:
        """The tenant whose rows this one may see; None for all."""
        return None if Scope.ADMIN in self.scopes else self.tenant


class Authenticator:
    """Proves tokens against the rows and the issuer; positive answers are kept for a few seconds.

    Args:
        verifier: of JWTs; None takes none.
        failures: counts those that were refused.
        clock: monotonic seconds.
    """

    def __init__(
        self, database: Database, verifier: JwtVerifier | None = None,
        failures: Failures | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._database, self._verifier, self._failures = database, verifier, failures
        self._clock = clock
        self._known: dict[bytes, tuple[Principal, float]] = {}
        self._proven: dict[bytes, None] = {}
        """Digests of what was good once, the latest last: not refused for a neighbour's failures."""
        self._used: set[str] = set()

    async def ensure_admin_key(self, text: str) -> None:
        """Make `text` a key of the tenant `admin` with the scope admin, unrevoked.

        Raises:
            InvalidInput: it has not the form of a key.
        """
        token = parse_token(text)
        if token is None or token.kind is not TokenKind.KEY:
            raise InvalidInput(
                "VYVO_ADMIN_KEY must look like vyk_<8 hex digits>_<43 URL-safe characters>"
            )
        async with self._database.transaction() as store:
            await store.keys.add(
                id=uuid7(), prefix=token.prefix, secret_sha256=token.digest, name="admin key",
                tenant="admin", scopes=[Scope.ADMIN],
            )  # fmt: skip

    async def authenticate(
        self, text: str, address: str | None = None, kept_seconds: float = KEPT_SECONDS
    ) -> Principal:
        """The principal of a token.

        Args:
            address: where the request came from; failures are counted by it.
            kept_seconds: how long ago it may have been proven. More than the usual is for who
                looks at the row itself.

        Raises:
            Unauthenticated: malformed, unknown, expired or revoked; the detail does not say which.
            RateLimited: too many failures from the address.
            Unavailable: the database or the issuer's keys cannot be reached.
        """
        return await self._proven_once(text, address, lambda: self._prove(text), kept_seconds)

    async def of_session(
        self, prefix: str, text: str, proves: Callable[[bytes], bool], address: str | None = None
    ) -> Principal:
        """The holder of the key that a browser's session was made for.

        Args:
            prefix: of that key.
            text: the session's cookie.
            proves: whether it was made for a key with this hash.

        Raises:
            As `authenticate`; an end of the key ends its sessions.
        """

        async def prove() -> Principal:
            return await self._of_row(prefix, proves)

        return await self._proven_once(text, address, prove)

    async def hash_of(self, prefix: str) -> bytes:
        """The SHA-256 that the row of a key holds; Unauthenticated where there is none."""
        async with self._database.transaction() as store:
            found = await store.keys.find(prefix)
        if found is None:
            raise _unknown()
        return found[1]

    async def _proven_once(
        self, text: str, address: str | None, prove: Callable[[], Awaitable[Principal]],
        kept_seconds: float = KEPT_SECONDS,
    ) -> Principal:  # fmt: skip
        digest = digest_of(text)
        kept = self._known.get(digest)
        if kept is not None and self._clock() - kept[1] < kept_seconds and not _ended(kept[0]):
            return kept[0]
        if self._failures is not None and digest not in self._proven:
            self._failures.check(address)
        try:
            principal = await prove()
            if _ended(principal):
                raise _unknown()
        except Unauthenticated:
            self._known.pop(digest, None)
            self._proven.pop(digest, None)
            if self._failures is not None:
                await self._failures.note(address)
            raise
        self._keep(digest, principal)
        return principal

    async def _prove(self, text: str) -> Principal:
        token = parse_token(text)
        if token is not None:
            return await self._of_row(token.prefix, lambda digest: matches(token, digest))
        if self._verifier is not None and looks_like_jwt(text):
            claims = await self._verifier.verify(text)
            return Principal(
                uuid5(NAMESPACE_URL, f"{claims.issuer}#{claims.subject}"), f"jwt:{claims.subject}",
                claims.tenant, claims.scopes, None, claims.expires_at,
            )  # fmt: skip
        raise Unauthenticated("the API key is malformed; it looks like vyk_xxxxxxxx_...")

    async def _of_row(self, prefix: str, proves: Callable[[bytes], bool]) -> Principal:
        async with self._database.transaction() as store:
            found = await store.keys.find(prefix)
        if found is None or not proves(found[1]) or found[0].revoked_at is not None:
            raise _unknown()
        key = found[0]
        self._used.add(key.prefix)
        return Principal(
            key.id, key.prefix, key.tenant, key.scopes, key.node_id, key.expires_at, key.limits
        )

    def _keep(self, digest: bytes, principal: Principal) -> None:
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()
        self._known[digest] = (principal, self._clock())
        self._proven.pop(digest, None)
        self._proven[digest] = None
        if len(self._proven) > _CACHE_SIZE:
            del self._proven[next(iter(self._proven))]

    def forget(self, *, key_id: UUID | None = None, node_id: UUID | None = None) -> None:
        """Drop what is kept of a key, or of a node's credentials: they were revoked."""
        gone = [
            digest
            for digest, (principal, _) in self._known.items()
            if (key_id is not None and principal.key_id == key_id)
            or (node_id is not None and principal.node_id == node_id)
        ]
        for digest in gone:
            del self._known[digest]

    async def note_use(self) -> None:
        """Write when the keys seen since the last call were used."""
        used, self._used = self._used, set()
        if used:
            async with self._database.transaction() as store:
                await store.keys.touch(used)


def _ended(principal: Principal) -> bool:
    return principal.expires_at is not None and principal.expires_at <= datetime.now(UTC)


def _unknown() -> Unauthenticated:
    return Unauthenticated("the API key is unknown, expired or revoked")
