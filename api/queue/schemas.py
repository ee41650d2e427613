"""What the queue looks like over REST."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from api.fields import Body
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.tenant import TENANT
from vyvo_dagster.store.shares import FairShare

__all__ = ["Queue", "QueueView", "Tenant", "WeightPut", "WeightView", "Weights", "weight_view"]

Tenant = Annotated[str, Field(pattern=TENANT, examples=["acme"])]


class Queue(BaseModel):
    """Jobs of one version, priority class and tenant that wait or are in flight."""

    model_id: str
    version: str
    priority: Priority
    tenant: str
    depth: int = Field(description="Jobs that wait.")
    oldest_seconds: float | None = Field(description="Age of the oldest that waits.")
    in_flight: int
    weight: float = Field(description="The tenant's, for this model.")


class QueueView(BaseModel):
    """The queues that are not empty, the deepest first."""

    items: list[Queue]
    truncated: bool = Field(description="There are more than were asked for.")


class WeightPut(Body):
    """A weight to set. A tenant's share of a version is its weight over the sum of those that wait."""

    tenant: Tenant
    model_id: str | None = Field(
        None,
        examples=["lab/digits"],
        description="Null: for all models that have none of their own.",
    )
    weight: float = Field(strict=True, ge=0.001, le=1000, allow_inf_nan=False, examples=[4])


class WeightView(BaseModel):
    """A weight that was set; where none is, it is 1."""

    tenant: str
    model_id: str | None
    weight: float
    updated_at: datetime


class Weights(BaseModel):
    """All weights that were set, by tenant."""

    items: list[WeightView]


def weight_view(share: FairShare) -> WeightView:
    """A weight's row as it is shown."""
    return WeightView(
        tenant=share.tenant, model_id=share.model_id, weight=share.weight,
        updated_at=share.updated_at,
    )  # fmt: skip
