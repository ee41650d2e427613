"""Answers kept under a caller's Idempotency-Key for 24 hours."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.errors import Conflict
from vyvo_dagster.store.tables import idempotency_keys

__all__ = ["IdempotencyRepository"]

KEPT = timedelta(hours=24)


class IdempotencyRepository:
    """SQL over idempotency_keys. A failed request rolls back, and its key with it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def claim(
        self, tenant: str, key: str, route: str, request_sha256: bytes, answer: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Keep `answer` under the key, or return the answer kept there before.

        A concurrent request with the same key waits here for the first one's transaction.

        Raises:
            Conflict: the key was used for another request.
        """
        t = idempotency_keys
        await self._connection.execute(
            sa.delete(t).where(
                t.c.tenant == tenant, t.c.key == key, t.c.created_at < sa.func.now() - KEPT
            )
        )
        inserted = await self._connection.execute(
            insert(t)
            .values(
                tenant=tenant, key=key, route=route, request_sha256=request_sha256, answer=answer
            )
            .on_conflict_do_nothing()
            .returning(t.c.key)
        )
        if inserted.scalar() is not None:
            return None
        kept = (
            (
                await self._connection.execute(
                    sa.select(t).where(t.c.tenant == tenant, t.c.key == key)
                )
            )
            .mappings()
            .one()
        )
        if kept["route"] != route or bytes(kept["request_sha256"]) != request_sha256:
            raise Conflict("this Idempotency-Key was used for another request; send a new key")
        return dict(kept["answer"])

    async def settle(self, tenant: str, key: str, answer: dict[str, Any]) -> None:
        """Replace the answer of a key claimed in this transaction: it is known only now."""
        t = idempotency_keys
        await self._connection.execute(
            sa.update(t).where(t.c.tenant == tenant, t.c.key == key).values(answer=answer)
        )

    async def forget(self, tenant: str, key: str) -> None:
        """Let a key be used again, since what it stood for failed."""
        t = idempotency_keys
        await self._connection.execute(sa.delete(t).where(t.c.tenant == tenant, t.c.key == key))

    async def purge(self) -> int:
        """Forget keys past their 24 hours; returns how many."""
        t = idempotency_keys
        result = await self._connection.execute(
            sa.delete(t).where(t.c.created_at < sa.func.now() - KEPT)
        )
        return result.rowcount
