"""The tables of node pools; see `tables` for what holds of all."""

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID

from vyvo_dagster.domain.pool import OPERATION, OperationState, ScalerKind
from vyvo_dagster.store.tables import metadata

__all__ = ["node_pool_operations", "node_pools"]

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)


def _list(values: Iterable[str]) -> str:
    return ", ".join(sorted(f"'{value}'" for value in values))


node_pools: Final = sa.Table(
    "node_pools",
    metadata,
    sa.Column("id", _UUID, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("scaler", sa.Text, nullable=False),
    sa.Column("config", JSONB, nullable=False, comment="Of its scaler."),
    sa.Column("host", sa.Text, comment="Machine of a local pool; null where any may scale it."),
    sa.Column("models", JSONB, nullable=False, comment="Whose queues count; empty for all."),
    sa.Column("min_size", sa.Integer, nullable=False),
    sa.Column("max_size", sa.Integer, nullable=False),
    sa.Column("queue_depth_target", sa.Integer, comment="Null leaves the size to people."),
    sa.Column("cool_down_seconds", sa.Integer, nullable=False),
    sa.Column("drain_seconds", sa.Integer, nullable=False),
    sa.Column("join_seconds", sa.Integer, nullable=False),
    sa.Column("members", JSONB, nullable=False, server_default="[]", comment="Names of its nodes."),
    sa.Column("scaled_at", _TIME, comment="When its size last changed."),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("updated_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint(f"scaler in ({_list(ScalerKind)})", name="scaler"),
    sa.CheckConstraint("0 <= min_size and min_size <= max_size", name="size"),
)

node_pool_operations: Final = sa.Table(
    "node_pool_operations",
    metadata,
    sa.Column("id", _UUID, primary_key=True),
    sa.Column("pool_id", _UUID, sa.ForeignKey("node_pools.id", ondelete="CASCADE"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("dry_run", sa.Boolean, nullable=False),
    sa.Column("from_size", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False, comment="As asked for."),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False, comment="Prefix of a key, or policy."),
    sa.Column("plan", JSONB, nullable=False, server_default="{}"),
    sa.Column("log", sa.Text, nullable=False, server_default=""),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("claimed_by", _UUID, comment="The worker that has it."),
    sa.Column("lease_expires_at", _TIME, comment="Then another may take it over."),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("started_at", _TIME),
    sa.Column("finished_at", _TIME),
    sa.CheckConstraint(f"state in ({_list(OperationState)})", name="state"),
    sa.Index(None, "pool_id", "id"),
    # One at a time for each pool.
    sa.Index(
        "node_pool_operations_open_key",
        "pool_id",
        unique=True,
        postgresql_where=sa.text(f"state not in ({_list(OPERATION.terminal)})"),
    ),
)
