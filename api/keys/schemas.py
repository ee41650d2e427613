"""What API keys look like over REST."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field, field_validator

from api.fields import Body, Text
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.store.records import ApiKey

__all__ = ["KeyCreate", "KeyCreated", "KeyView", "key_view"]


class KeyCreate(Body):
    """A key to make."""

    name: Text = Field(min_length=1, max_length=100, examples=["gateway"])
    tenant: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$", examples=["acme"])
    scopes: list[Scope] = Field(min_length=1, max_length=20, examples=[["jobs:write"]])
    expires_in_seconds: int | None = Field(None, gt=0, le=10 * 365 * 86400)

    @field_validator("scopes")
    @classmethod
    def _no_node(cls, scopes: list[Scope]) -> list[Scope]:
        if Scope.NODE in scopes:
            raise ValueError("the scope node belongs to credentials that nodes get by joining")
        return scopes


class KeyView(BaseModel):
    """A key without its secret."""

    id: UUID
    prefix: str
    name: str
    tenant: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyCreated(KeyView):
    """A new key. `key` is shown this once; only its hash is kept."""

    key: str = Field(examples=["vyk_0123abcd_..."])


def key_view(key: ApiKey) -> KeyView:
    """A key's row as it is shown."""
    return KeyView(
        id=key.id, prefix=key.prefix, name=key.name, tenant=key.tenant, scopes=sorted(key.scopes),
        created_at=key.created_at, expires_at=key.expires_at, last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )  # fmt: skip
