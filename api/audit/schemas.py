"""What the audit log looks like over REST."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from vyvo_dagster.store.records import AuditEntry

__all__ = ["AuditView", "audit_view"]


class AuditView(BaseModel):
    """One action. `key_prefix` is that of the key that did it, or `jwt:` and the token's subject."""

    id: UUID
    tenant: str = Field(examples=["acme"])
    key_prefix: str = Field(examples=["0123abcd"])
    action: str = Field(examples=["promote"])
    subject: str = Field(examples=["vyvo/digits"])
    detail: dict[str, Any]
    created_at: datetime


def audit_view(entry: AuditEntry) -> AuditView:
    """A row as it is shown."""
    return AuditView(
        id=entry.id, tenant=entry.tenant, key_prefix=entry.key_prefix, action=entry.action,
        subject=entry.subject, detail=dict(entry.detail), created_at=entry.created_at,
    )  # fmt: skip
