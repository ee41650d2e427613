"""API keys, node credentials among them, and the audit log of what admins did."""

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.store.records import ApiKey, KeyLimits
from vyvo_dagster.store.rows import page
from vyvo_dagster.store.tables import api_keys, audit_log

__all__ = ["KeyRepository"]


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(
        id=row["id"],
        prefix=row["prefix"],
        name=row["name"],
        tenant=row["tenant"],
        scopes=frozenset(Scope(s) for s in row["scopes"]),
        node_id=row["node_id"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
        revoked_at=row["revoked_at"],
        limits=KeyLimits(row["rate_per_second"], row["burst"], row["max_queued"]),
    )


class KeyRepository:
    """SQL over api_keys and audit_log."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(
        self,
        *,
        id: UUID,
        prefix: str,
        secret_sha256: bytes,
        name: str,
        tenant: str,
        scopes: Iterable[Scope],
        node_id: UUID | None = None,
        expires_at: datetime | None = None,
        limits: KeyLimits | None = None,
    ) -> ApiKey:
        """Store a key; a key with the same prefix is replaced (the admin key ensured at start)."""
        values = {
            "prefix": prefix,
            "secret_sha256": secret_sha256,
            "name": name,
            "tenant": tenant,
            "scopes": sorted(str(s) for s in scopes),
            "node_id": node_id,
            "expires_at": expires_at,
            **dataclasses.asdict(limits or KeyLimits()),
        }
        row = await self._connection.execute(
            insert(api_keys)
            .values(id=id, **values)
            .on_conflict_do_update(index_elements=["prefix"], set_={**values, "revoked_at": None})
            .returning(api_keys)
        )
        return _key(row.mappings().one())

    async def find(self, prefix: str) -> tuple[ApiKey, bytes] | None:
        """The key of a prefix and the SHA-256 of its secret."""
        row = (
            (await self._connection.execute(sa.select(api_keys).where(api_keys.c.prefix == prefix)))
            .mappings()
            .first()
        )
        return None if row is None else (_key(row), bytes(row["secret_sha256"]))

    async def touch(self, prefixes: Iterable[str]) -> None:
        """Note that these keys were used now; called in batches, not on every request."""
        await self._connection.execute(
            sa.update(api_keys)
            .where(api_keys.c.prefix.in_(list(prefixes)))
            .values(last_used_at=sa.func.now())
        )

    async def browse(
        self, cursor: UUID | None, limit: int, *, prefix: str | None = None,
        tenant: str | None = None,
    ) -> list[ApiKey]:  # fmt: skip
        """Keys that are no node's, newest first; `prefix` is what their prefixes begin with."""
        query = sa.select(api_keys).where(api_keys.c.node_id.is_(None))
        if prefix is not None:
            query = query.where(api_keys.c.prefix.startswith(prefix, autoescape=True))
        if tenant is not None:
            query = query.where(api_keys.c.tenant == tenant)
        found = await self._connection.execute(page(query, api_keys.c.id, cursor, limit))
        return [_key(row) for row in found.mappings()]

    async def get(self, id: UUID) -> ApiKey | None:
        """A key that is no node's; locked until this transaction ends."""
        query = sa.select(api_keys).where(api_keys.c.id == id, api_keys.c.node_id.is_(None))
        row = (await self._connection.execute(query.with_for_update())).mappings().first()
        return None if row is None else _key(row)

    async def set_limits(self, id: UUID, limits: KeyLimits) -> ApiKey:
        """Replace the limits of a key that `get` has found."""
        row = await self._connection.execute(
            sa.update(api_keys)
            .where(api_keys.c.id == id)
            .values(**dataclasses.asdict(limits))
            .returning(api_keys)
        )
        return _key(row.mappings().one())

    async def revoke(self, id: UUID) -> bool:
        """Revoke a key; False when there is none. Repeats change nothing."""
        result = await self._connection.execute(
            sa.update(api_keys)
            .where(api_keys.c.id == id)
            .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.now()))
        )
        return result.rowcount > 0

    async def revoke_node(self, node_id: UUID) -> None:
        """Revoke all credentials of a node."""
        await self._connection.execute(
            sa.update(api_keys)
            .where(api_keys.c.node_id == node_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=sa.func.now())
        )

    async def end_by(self, prefix: str, at: datetime) -> None:
        """Let a key end at `at`, unless it ends before."""
        ends = api_keys.c.expires_at
        await self._connection.execute(
            sa.update(api_keys)
            .where(api_keys.c.prefix == prefix)
            .values(expires_at=sa.func.least(sa.func.coalesce(ends, at), at))
        )

    async def drop_node_but(self, node_id: UUID, prefixes: Iterable[str]) -> None:
        """Delete a node's credentials, those revoked long ago among them, but these."""
        await self._connection.execute(
            sa.delete(api_keys).where(
                api_keys.c.node_id == node_id, api_keys.c.prefix.not_in(list(prefixes))
            )
        )

    async def audited(self, action: str, subject: str, limit: int) -> list[Mapping[str, Any]]:
        """Details of the latest such actions, newest first."""
        t = audit_log.c
        query = (
            sa.select(t.detail)
            .where(t.action == action, t.subject == subject)
            .order_by(t.id.desc())
            .limit(limit)
        )
        return list((await self._connection.execute(query)).scalars())

    async def audit(
        self,
        *,
        id: UUID,
        tenant: str,
        key_prefix: str,
        action: str,
        subject: str,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Record an admin's action, in the same transaction as the action."""
        await self._connection.execute(
            sa.insert(audit_log).values(
                id=id,
                tenant=tenant,
                key_prefix=key_prefix,
                action=action,
                subject=subject,
                detail=dict(detail or {}),
            )
        )
