"""What node pools look like over REST."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, Field, model_validator

from api.fields import Body
from vyvo_dagster.domain.pool import Decision, Member, OperationState
from vyvo_dagster.scaling.config import ScalerConfig
from vyvo_dagster.store.pools import Operation, Pool

__all__ = [
    "OperationView",
    "PoolBody",
    "PoolView",
    "ScaleRequest",
    "operation_view",
    "pool_view",
]


class PoolBody(Body):
    """A pool as it should be. Its nodes stay; sizes out of the bounds are mended by the policy."""

    min_size: int = Field(0, ge=0, le=1024)
    max_size: int = Field(ge=0, le=1024, examples=[4])
    queue_depth_target: int | None = Field(
        None, ge=1, le=1_000_000,
        description="Waiting jobs meant for one node; null leaves the size to people.",
    )  # fmt: skip
    cool_down_seconds: int = Field(
        300, ge=0, le=86400, description="Least time between two changes by the policy."
    )
    drain_seconds: int = Field(
        600, ge=0, le=86400, description="How long a node that leaves may go on with its jobs."
    )
    join_seconds: int = Field(
        600, ge=1, le=86400, description="How long new nodes may take until they have joined."
    )
    models: list[str] = Field(
        default_factory=list, max_length=256,
        description="Whose waiting jobs count; empty counts all.", examples=[["vyvo/digits"]],
    )  # fmt: skip
    scaler: ScalerConfig

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError("min_size is above max_size")
        return self


class MemberView(BaseModel):
    """A node of a pool; not `ready` until it has joined."""

    name: str
    ready: bool
    cordoned: bool
    running: int


class PolicyView(BaseModel):
    """What the policy would do now."""

    size: int
    reason: str
    waiting: int


class PoolView(BaseModel):
    """A pool with its nodes. `size` counts those that it should have."""

    id: UUID
    name: str
    scaler: dict[str, Any]
    host: str | None
    min_size: int
    max_size: int
    queue_depth_target: int | None
    cool_down_seconds: int
    drain_seconds: int
    join_seconds: int
    models: list[str]
    size: int
    members: list[MemberView]
    policy: PolicyView
    scaled_at: datetime | None
    created_at: datetime
    updated_at: datetime


class ScaleRequest(Body):
    """A new size, or by how much the present one changes."""

    pool: str = Field(max_length=4096, examples=["gpu-a100"])
    size: int | None = Field(None, ge=0, le=1024)
    delta: int | None = Field(None, ge=-1024, le=1024)
    dry_run: bool = Field(False, description="Plan only: nothing is drained, made or removed.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.size is None) == (self.delta is None):
            raise ValueError("give either size or delta")
        return self


class OperationView(BaseModel):
    """A change of a pool's size: its progress, its plan, and how it ended."""

    id: UUID
    pool: str
    status: OperationState
    dry_run: bool
    from_size: int
    size: int
    reason: str
    requested_by: str = Field(description="Prefix of the key, or `policy`.")
    plan: dict[str, Any] = Field(
        description="Names to keep, add and remove, and what the scaler adds to that."
    )
    log: str = Field(description="From `log_offset` on; empty in lists.")
    log_size: int = Field(description="Characters of the whole log.")
    error_code: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def pool_view(pool: Pool, members: Sequence[Member], waiting: int, policy: Decision) -> PoolView:
    """A pool's row as it is shown."""
    return PoolView(
        id=pool.id, name=pool.name, scaler={"kind": pool.scaler, **pool.config}, host=pool.host,
        min_size=pool.min_size, max_size=pool.max_size, models=list(pool.models),
        queue_depth_target=pool.queue_depth_target, cool_down_seconds=pool.cool_down_seconds,
        drain_seconds=pool.drain_seconds, join_seconds=pool.join_seconds, size=len(members),
        members=[MemberView.model_validate(m, from_attributes=True) for m in members],
        policy=PolicyView(size=policy.size, reason=policy.reason, waiting=waiting),
        scaled_at=pool.scaled_at, created_at=pool.created_at, updated_at=pool.updated_at,
    )  # fmt: skip


def operation_view(pool: str, operation: Operation, log_offset: int | None = None) -> OperationView:
    """An operation's row as it is shown; no log without an offset."""
    return OperationView(
        id=operation.id, pool=pool, status=operation.state, dry_run=operation.dry_run,
        from_size=operation.from_size, size=operation.size, reason=operation.reason,
        requested_by=operation.requested_by, plan=dict(operation.plan),
        log="" if log_offset is None else operation.log[log_offset:], log_size=len(operation.log),
        error_code=operation.error_code, error=operation.error, created_at=operation.created_at,
        started_at=operation.started_at, finished_at=operation.finished_at,
    )  # fmt: skip
