"""What API keys look like over REST."""

import math
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field, field_validator, model_validator

from api.fields import Body, Text
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.domain.tenant import TENANT
from vyvo_dagster.store.records import ApiKey, KeyLimits

__all__ = ["KeyChange", "KeyCreate", "KeyCreated", "KeyRotate", "KeyView", "Limits", "key_view"]


class Limits(Body):
    """What a key may submit; unset or null is no limit."""

    rate_per_second: float | None = Field(
        default=None, ge=0.01, le=1e6, description="Jobs a second, each of a batch counted."
    )
    burst: int | None = Field(
        default=None, ge=1, le=1_000_000,
        description="Jobs at once; unset: two seconds of the rate, at least one.",
    )  # fmt: skip
    max_queued: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Jobs of this key that may wait at a time."
    )

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> "Limits":
        if self.burst is not None and self.rate_per_second is None:
            raise ValueError("burst goes with rate_per_second")
        return self

    def kept(self) -> KeyLimits:
        """As they are stored."""
        burst = self.burst
        if self.rate_per_second is not None and burst is None:
            burst = max(math.ceil(2 * self.rate_per_second), 1)
        return KeyLimits(self.rate_per_second, burst, self.max_queued)


class LimitsView(BaseModel):
    """What a key may submit; null is no limit."""

    rate_per_second: float | None
    burst: int | None
    max_queued: int | None


class KeyChange(Body):
    """What may change of a key. The limits are replaced as a whole."""

    limits: Limits


class KeyCreate(Body):
    """A key to make."""

    name: Text = Field(min_length=1, max_length=100, examples=["gateway"])
    tenant: str = Field(pattern=TENANT, examples=["acme"])
    scopes: list[Scope] = Field(min_length=1, max_length=20, examples=[["jobs:write"]])
    expires_in_seconds: int | None = Field(None, gt=0, le=10 * 365 * 86400)
    limits: Limits = Field(default_factory=Limits)

    @field_validator("scopes")
    @classmethod
    def _no_node(cls, scopes: list[Scope]) -> list[Scope]:
        if Scope.NODE in scopes:
            raise ValueError("the scope node belongs to credentials that nodes get by joining")
        return scopes


class KeyRotate(Body):
    """How a key is replaced."""

    overlap_seconds: int = Field(
        default=86400, ge=0, le=30 * 86400,
        description="How long the key before goes on, unless it ends sooner.",
    )  # fmt: skip
    expires_in_seconds: int | None = Field(
        default=None, gt=0, le=10 * 365 * 86400,
        description="Unset: as long a life as the key before was given.",
    )  # fmt: skip


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
    limits: LimitsView


class KeyCreated(KeyView):
    """A new key. `key` is shown this once; only its hash is kept."""

    key: str = Field(examples=["vyk_0123abcd_..."])


def key_view(key: ApiKey) -> KeyView:
    """A key's row as it is shown."""
    return KeyView(
        id=key.id, prefix=key.prefix, name=key.name, tenant=key.tenant, scopes=sorted(key.scopes),
        created_at=key.created_at, expires_at=key.expires_at, last_used_at=key.last_used_at,
        revoked_at=key.revoked_at, limits=LimitsView(**asdict(key.limits)),
    )  # fmt: skip
