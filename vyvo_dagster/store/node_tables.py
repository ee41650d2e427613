"""The tables of nodes and of what is loaded on them; see `tables` for what holds of all."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.store.columns import TIME as _TIME
from vyvo_dagster.store.columns import UUID as _UUID
from vyvo_dagster.store.columns import id_column as _id
from vyvo_dagster.store.columns import metadata
from vyvo_dagster.store.columns import now_column as _now
from vyvo_dagster.store.columns import one_of as _one_of

__all__ = ["assignments", "node_capabilities", "node_events", "nodes"]

nodes = sa.Table(
    "nodes",
    metadata,
    _id(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("boot_id", _UUID, nullable=False),
    sa.Column("cordoned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("drain_started_at", _TIME),
    sa.Column("drain_deadline_at", _TIME, comment="Then its jobs are ended; null waits for them."),
    sa.Column("drained_at", _TIME, comment="When nothing was left, or at the deadline."),
    sa.Column("suspicions", sa.Integer, nullable=False, server_default="0"),
    sa.Column("suspect_at", _TIME, comment="When it last became suspect."),
    sa.Column("heard_since", _TIME, comment="First heartbeat after its last gap."),
    sa.Column("labels", JSONB, nullable=False, server_default="{}"),
    sa.Column(
        "metrics", JSONB, nullable=False, server_default="{}", comment="Of the last heartbeat."
    ),
    sa.Column("last_heartbeat_at", _TIME, nullable=False),
    sa.Column("clock_skew_seconds", sa.Double, nullable=False, server_default="0"),
    _now(),
    _one_of("state", NodeState),
)

node_capabilities = sa.Table(
    "node_capabilities",
    metadata,
    sa.Column("node_id", _UUID, sa.ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("capabilities", JSONB, nullable=False),
    _now("updated_at"),
)

node_events = sa.Table(
    "node_events",
    metadata,
    _id(),
    sa.Column("node_id", _UUID, sa.ForeignKey("nodes.id", ondelete="CASCADE"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("detail", JSONB, nullable=False, server_default="{}"),
    _now(),
    sa.Index(None, "node_id", "id"),
)

assignments = sa.Table(
    "assignments",
    metadata,
    _id(),
    sa.Column("node_id", _UUID, sa.ForeignKey("nodes.id", ondelete="CASCADE"), nullable=False),
    sa.Column("version_id", _UUID, sa.ForeignKey("model_versions.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("detail", sa.Text),
    sa.Column("slots", sa.Integer, nullable=False, server_default="1"),
    _now(),
    _now("updated_at"),
    sa.Column("ready_at", _TIME),
    sa.Column(
        "on_demand",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="Made by the orchestrator, since jobs waited.",
    ),
    sa.Column("replaced_by", _UUID, comment="Its successor elsewhere, while it drains."),
    sa.Column("used_at", _TIME, comment="Last dispatch there, of those on demand; to 10 s."),
    _one_of("state", AssignmentState),
    # One assignment in force per node and version; removed ones stay as history.
    sa.Index(
        "assignments_in_force_key",
        "node_id",
        "version_id",
        unique=True,
        postgresql_where=sa.text("state <> 'removed'"),
    ),
)
