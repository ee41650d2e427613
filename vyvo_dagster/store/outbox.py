"""Stream entries still to be written: committed with the row that they announce."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.store.records import OutboxEntry
from vyvo_dagster.store.rows import record
from vyvo_dagster.store.tables import outbox

__all__ = ["OutboxRepository"]


class OutboxRepository:
    """SQL over outbox."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, stream: str, fields: Mapping[str, str]) -> None:
        """Announce one entry."""
        await self.add_many([(stream, fields)])

    async def add_many(self, entries: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        """Announce entries, in order, in one statement."""
        if entries:
            await self._connection.execute(
                sa.insert(outbox), [{"stream": s, "fields": dict(f)} for s, f in entries]
            )

    async def take(self, limit: int) -> list[OutboxEntry]:
        """Take the oldest entries; they are gone when the transaction commits.

        Rows that another relay holds, or that their writer still holds, are passed over. A crash between the
        stream's write and the commit writes an entry twice; readers claim by row and do not mind.
        """
        oldest = (
            sa.select(outbox.c.id)
            .where(sa.or_(outbox.c.held_until.is_(None), outbox.c.held_until < sa.func.now()))
            .order_by(outbox.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = await self._connection.execute(
            sa.delete(outbox).where(outbox.c.id.in_(oldest)).returning(outbox)
        )
        return sorted((record(OutboxEntry, r) for r in rows.mappings()), key=lambda e: e.id)

    async def lag_seconds(self) -> float:
        """Age of the oldest entry, 0 when there is none."""
        age = sa.func.extract("epoch", sa.func.now() - sa.func.min(outbox.c.created_at))
        return float((await self._connection.execute(sa.select(age))).scalar() or 0.0)
