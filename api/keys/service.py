"""Making and replacing API keys."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from api.audit.record import audit
from api.auth import Principal
from api.context import Context
from api.keys.schemas import KeyCreate, KeyRotate
from vyvo_dagster.errors import Conflict, NotFound
from vyvo_dagster.security.keys import Token, TokenKind, mint, parse_token
from vyvo_dagster.store.records import ApiKey

__all__ = ["create", "rotate"]


async def create(context: Context, principal: Principal, body: KeyCreate) -> tuple[ApiKey, Token]:
    """A new key, and the token that is shown once."""
    token = mint(TokenKind.KEY)
    expires_at = None
    if body.expires_in_seconds is not None:
        expires_at = datetime.now(UTC) + timedelta(seconds=body.expires_in_seconds)
    async with context.database.transaction() as store:
        key = await store.keys.add(
            id=uuid7(), prefix=token.prefix, secret_sha256=token.digest, name=body.name,
            tenant=body.tenant, scopes=body.scopes, expires_at=expires_at, limits=body.limits.kept(),
        )  # fmt: skip
        await audit(
            store,
            principal,
            "key_create",
            token.prefix,
            {"tenant": body.tenant, "scopes": sorted(body.scopes)},
        )
    return key, token


async def rotate(
    context: Context, principal: Principal, key_id: UUID, body: KeyRotate
) -> tuple[ApiKey, Token]:
    """A key's successor, with its name, tenant, scopes and limits; the key itself ends after the overlap.

    Raises:
        NotFound: no such key.
        Conflict: it has ended already, or is the one that VYVO_ADMIN_KEY names.
    """
    now, token = datetime.now(UTC), mint(TokenKind.KEY)
    async with context.database.transaction() as store:
        old = await store.keys.get(key_id)
        if old is None:
            raise NotFound("no such key")
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise Conflict("the key is revoked or has expired; make a new one")
        if old.prefix == _configured(context):
            raise Conflict(
                "this key is set by VYVO_ADMIN_KEY and comes back at each start; set another there"
            )
        key = await store.keys.add(
            id=uuid7(), prefix=token.prefix, secret_sha256=token.digest, name=old.name,
            tenant=old.tenant, scopes=old.scopes, expires_at=_end(old, body, now), limits=old.limits,
        )  # fmt: skip
        await store.keys.end_by(old.prefix, now + timedelta(seconds=body.overlap_seconds))
        await audit(
            store,
            principal,
            "key_rotate",
            old.prefix,
            {"to": token.prefix, "overlap_seconds": body.overlap_seconds},
        )
    context.authenticator.forget(key_id=key_id)
    return key, token


def _end(old: ApiKey, body: KeyRotate, now: datetime) -> datetime | None:
    """The successor's end: as asked, else after as long a life as the key was given."""
    if body.expires_in_seconds is not None:
        return now + timedelta(seconds=body.expires_in_seconds)
    return None if old.expires_at is None else now + (old.expires_at - old.created_at)


def _configured(context: Context) -> str | None:
    key = context.settings.admin_key
    token = None if key is None else parse_token(key.get_secret_value())
    return None if token is None else token.prefix
