"""The audit log, as it is read; it is written by `KeyRepository.audit` beside what it tells of."""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.store.records import AuditEntry
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import audit_log

__all__ = ["AuditRepository"]


class AuditRepository:
    """SQL over audit_log."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def browse(
        self, cursor: UUID | None, limit: int, *, action: str | None = None,
        subject: str | None = None, key_prefix: str | None = None,
    ) -> list[AuditEntry]:  # fmt: skip
        """Entries, newest first; each filter that is given must be met."""
        query = sa.select(audit_log)
        for column, wanted in (
            (audit_log.c.action, action),
            (audit_log.c.subject, subject),
            (audit_log.c.key_prefix, key_prefix),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        found = await self._connection.execute(page(query, audit_log.c.id, cursor, limit))
        return [record(AuditEntry, row) for row in found.mappings()]

    async def of_model(self, model_id: str, cursor: UUID | None, limit: int) -> list[AuditEntry]:
        """What was done to a model or a version of it, newest first; one more than `limit`."""
        subject = audit_log.c.subject
        query = sa.select(audit_log).where(
            sa.or_(subject == model_id, subject.startswith(f"{model_id}@", autoescape=True))
        )
        rows = await self._connection.execute(page(query, audit_log.c.id, cursor, limit))
        return [record(AuditEntry, row) for row in rows.mappings()]
