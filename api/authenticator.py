"""Who a request comes from: tokens to principals, with a short cache."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.errors import InvalidInput, Unauthenticated
from vyvo_dagster.security.keys import TokenKind, digest_of, matches, parse_token
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import KeyLimits

__all__ = ["Authenticator", "Principal"]

# A key revoked through another api process works for at most this long.
_CACHE_SECONDS: Final = 5.0
_CACHE_SIZE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a credential that was proven."""

    key_id: UUID
    prefix: str
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
    """Proves tokens against the rows; positive answers are kept for a few seconds.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[bytes, tuple[Principal, float]] = {}
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

    async def authenticate(self, text: str) -> Principal:
        """The principal of a token.

        Raises:
            Unauthenticated: malformed, unknown, expired or revoked; the detail does not say which.
        """
        token = parse_token(text)
        if token is None:
            raise Unauthenticated("the API key is malformed; it looks like vyk_xxxxxxxx_...")
        digest = digest_of(text)
        kept = self._known.get(digest)
        if kept is not None and kept[1] > self._clock():
            principal = kept[0]
        else:
            async with self._database.transaction() as store:
                found = await store.keys.find(token.prefix)
            if found is None or not matches(token, found[1]) or found[0].revoked_at is not None:
                self._known.pop(digest, None)
                raise _unknown()
            key = found[0]
            principal = Principal(
                key.id, key.prefix, key.tenant, key.scopes, key.node_id, key.expires_at,
                key.limits,
            )  # fmt: skip
            if len(self._known) >= _CACHE_SIZE:
                self._known.clear()
            self._known[digest] = (principal, self._clock() + _CACHE_SECONDS)
            self._used.add(key.prefix)
        if principal.expires_at is not None and principal.expires_at <= datetime.now(UTC):
            raise _unknown()
        return principal

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


def _unknown() -> Unauthenticated:
    return Unauthenticated("the API key is unknown, expired or revoked")
