"""API keys and the audit log by the client: `client.keys.create("gateway", "acme", ["jobs:write"])`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from vyvo_dagster.client.calls import Call, Id, Json
from vyvo_dagster.client.models import Page

__all__ = ["ApiKey", "AsyncKeys", "AuditEntry", "Keys", "NewApiKey"]

T = TypeVar("T")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ApiKey(_Answer):
    """A key without its secret. `limits` has `rate_per_second`, `burst` and `max_queued`."""

    id: UUID
    prefix: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    limits: dict[str, Any] = Field(default_factory=dict[str, Any])


class NewApiKey(ApiKey):
    """A key that was just made: `key` is what is sent, and is shown this once."""

    key: str = Field(repr=False)


class AuditEntry(_Answer):
    """What was done, by which key, to what."""

    id: UUID
    tenant: str
    key_prefix: str
    action: str
    subject: str
    detail: dict[str, Any]
    created_at: datetime


def _given(**values: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in values.items() if value is not None}


def _path(key_id: Id, *rest: str) -> str:
    return "/".join(["/api/keys", quote(str(key_id), safe=""), *rest])


def _list(
    prefix: str | None, tenant: str | None, cursor: str | None, limit: int
) -> Call[Page[ApiKey]]:
    params = _given(prefix=prefix, tenant=tenant, cursor=cursor, limit=limit)
    return Call("GET", "/api/keys", Page[ApiKey].model_validate, params=params)


def _create(
    name: str, tenant: str, scopes: Sequence[str], expires_in_seconds: int | None,
    limits: Json | None,
) -> Call[NewApiKey]:  # fmt: skip
    body: dict[str, Any] = {"name": name, "tenant": tenant, "scopes": list(scopes)}
    body |= _given(expires_in_seconds=expires_in_seconds)
    if limits:
        body["limits"] = dict(limits)
    return Call("POST", "/api/keys", NewApiKey.model_validate, body)


def _rotate(
    key_id: Id, overlap_seconds: int | None, expires_in_seconds: int | None
) -> Call[NewApiKey]:
    body = _given(overlap_seconds=overlap_seconds, expires_in_seconds=expires_in_seconds)
    return Call("POST", _path(key_id, "rotate"), NewApiKey.model_validate, body)


def _revoke(key_id: Id) -> Call[None]:
    return Call("DELETE", _path(key_id), lambda _: None)


def _audit(
    action: str | None, subject: str | None, key_prefix: str | None, cursor: str | None, limit: int
) -> Call[Page[AuditEntry]]:
    params = _given(
        action=action, subject=subject, key_prefix=key_prefix, cursor=cursor, limit=limit
    )
    return Call("GET", "/api/audit", Page[AuditEntry].model_validate, params=params)


class _Sync(Protocol):
    def send(self, call: Call[T]) -> T: ...


class _Async(Protocol):
    async def send(self, call: Call[T]) -> T: ...


class Keys:
    """API keys and the audit log, by a Client's connections. Needs an admin's key."""

    def __init__(self, client: _Sync) -> None:
        self._client = client

    def list(
        self, *, prefix: str | None = None, tenant: str | None = None, cursor: str | None = None,
        limit: int = 50,
    ) -> Page[ApiKey]:  # fmt: skip
        """A page of keys, newest first; `prefix` is what their prefixes begin with."""
        return self._client.send(_list(prefix, tenant, cursor, limit))

    def create(
        self, name: str, tenant: str, scopes: Sequence[str], *,
        expires_in_seconds: int | None = None, limits: Json | None = None,
    ) -> NewApiKey:  # fmt: skip
        """Make a key. Not tried again by itself, since its answer holds the secret."""
        return self._client.send(_create(name, tenant, scopes, expires_in_seconds, limits))

    def rotate(
        self, key_id: Id, *, overlap_seconds: int | None = None,
        expires_in_seconds: int | None = None,
    ) -> NewApiKey:  # fmt: skip
        """A successor of a key, which itself goes on for `overlap_seconds` (a day)."""
        return self._client.send(_rotate(key_id, overlap_seconds, expires_in_seconds))

    def revoke(self, key_id: Id) -> None:
        """End a key at once."""
        self._client.send(_revoke(key_id))

    def audit(
        self, *, action: str | None = None, subject: str | None = None,
        key_prefix: str | None = None, cursor: str | None = None, limit: int = 50,
    ) -> Page[AuditEntry]:  # fmt: skip
        """A page of the audit log, newest first."""
        return self._client.send(_audit(action, subject, key_prefix, cursor, limit))


class AsyncKeys:
    """As Keys, awaited, by an AsyncClient's connections."""

    def __init__(self, client: _Async) -> None:
        self._client = client

    async def list(
        self, *, prefix: str | None = None, tenant: str | None = None, cursor: str | None = None,
        limit: int = 50,
    ) -> Page[ApiKey]:  # fmt: skip
        """A page of keys, newest first; `prefix` is what their prefixes begin with."""
        return await self._client.send(_list(prefix, tenant, cursor, limit))

    async def create(
        self, name: str, tenant: str, scopes: Sequence[str], *,
        expires_in_seconds: int | None = None, limits: Json | None = None,
    ) -> NewApiKey:  # fmt: skip
        """Make a key. Not tried again by itself, since its answer holds the secret."""
        return await self._client.send(_create(name, tenant, scopes, expires_in_seconds, limits))

    async def rotate(
        self, key_id: Id, *, overlap_seconds: int | None = None,
        expires_in_seconds: int | None = None,
    ) -> NewApiKey:  # fmt: skip
        """A successor of a key, which itself goes on for `overlap_seconds` (a day)."""
        return await self._client.send(_rotate(key_id, overlap_seconds, expires_in_seconds))

    async def revoke(self, key_id: Id) -> None:
        """End a key at once."""
        await self._client.send(_revoke(key_id))

    async def audit(
        self, *, action: str | None = None, subject: str | None = None,
        key_prefix: str | None = None, cursor: str | None = None, limit: int = 50,
    ) -> Page[AuditEntry]:  # fmt: skip
        """A page of the audit log, newest first."""
        return await self._client.send(_audit(action, subject, key_prefix, cursor, limit))
