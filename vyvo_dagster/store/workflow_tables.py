"""The tables of workflows and their runs; see `tables` for what holds of all."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from vyvo_dagster.domain.workflow.state import RUN, STEP, RunState, StepState, TriggerKind
from vyvo_dagster.store.columns import TIME, UUID, id_column, now_column, one_of
from vyvo_dagster.store.tables import metadata

__all__ = [
    "workflow_runs",
    "workflow_steps",
    "workflow_triggers",
    "workflow_versions",
    "workflows",
]


def _among(states: frozenset[RunState] | frozenset[StepState]) -> str:
    return ", ".join(sorted(f"'{state}'" for state in states))


workflows: Final = sa.Table(
    "workflows",
    metadata,
    id_column(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("latest_version", sa.Integer, nullable=False),
    sa.Column(
        "paused", sa.Boolean, nullable=False, server_default=sa.false(),
        comment="Its triggers start nothing; who asks for a run gets one.",
    ),
    now_column(),
    now_column("updated_at"),
    sa.UniqueConstraint("tenant", "name"),
)  # fmt: skip

workflow_versions: Final = sa.Table(
    "workflow_versions",
    metadata,
    id_column(),
    sa.Column(
        "workflow_id", UUID, sa.ForeignKey("workflows.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("version", sa.Integer, nullable=False, comment="From 1; never changed."),
    sa.Column("definition", JSONB, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False, comment="Of the definition's content."),
    sa.Column("created_by", sa.Text, nullable=False, comment="Prefix of a key."),
    now_column(),
    sa.UniqueConstraint("workflow_id", "version"),
)

workflow_runs: Final = sa.Table(
    "workflow_runs",
    metadata,
    id_column(),
    sa.Column(
        "workflow_id", UUID, sa.ForeignKey("workflows.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("version_id", UUID, sa.ForeignKey("workflow_versions.id"), nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("inputs", JSONB, nullable=False),
    sa.Column("outputs", JSONB),
    sa.Column("trigger_kind", sa.Text, nullable=False),
    sa.Column("trigger_key", sa.Text, comment="A workflow has one run for each; null is none."),
    sa.Column("dagster_run_id", sa.Text, unique=True, comment="The run that shows it in Dagster."),
    sa.Column("priority", sa.Text, comment="Of all its jobs; null leaves it to the definition."),
    sa.Column("cancel_requested_at", TIME),
    sa.Column("retry_of", UUID, sa.ForeignKey("workflow_runs.id", ondelete="SET NULL")),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("engine_id", UUID, comment="The engine that has it."),
    sa.Column("lease_expires_at", TIME, comment="Then another may take it over."),
    sa.Column(
        "revision", sa.BigInteger, nullable=False, server_default="0",
        comment="Raised by every change of the run or its steps.",
    ),
    sa.Column(
        "reported_revision", sa.BigInteger, nullable=False, server_default="-1",
        comment="Up to where Dagster was told.",
    ),
    sa.Column("traceparent", sa.Text, comment="W3C trace context of the request."),
    now_column(),
    sa.Column("started_at", TIME),
    sa.Column("completed_at", TIME),
    one_of("state", RunState),
    one_of("trigger_kind", TriggerKind),
    sa.UniqueConstraint("workflow_id", "trigger_key"),
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "workflow_id", "id"),
    sa.Index(None, "retry_of"),
    sa.Index(
        "workflow_runs_open_idx", "lease_expires_at", "id",
        postgresql_where=sa.text(f"state not in ({_among(RUN.terminal)})"),
    ),
    sa.Index(
        "workflow_runs_unreported_idx", "id",
        postgresql_where=sa.text("revision > reported_revision"),
    ),
)  # fmt: skip

workflow_steps: Final = sa.Table(
    "workflow_steps",
    metadata,
    id_column(),
    sa.Column(
        "run_id", UUID, sa.ForeignKey("workflow_runs.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("key", sa.Text, nullable=False, comment="The name, or name[3] of a mapped step."),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("map_index", sa.Integer),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("job_id", UUID, comment="Of the latest attempt; a retry's may be an earlier run's."),
    sa.Column("placement", JSONB, comment="Of a container: host and devices, or why it waits."),
    sa.Column("input", JSONB),
    sa.Column("output", JSONB),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("retry_at", TIME),
    sa.Column("attempts", JSONB, nullable=False, server_default="[]", comment="Earlier ones."),
    now_column(),
    sa.Column("submitted_at", TIME),
    sa.Column("started_at", TIME),
    sa.Column("completed_at", TIME),
    one_of("state", StepState),
    sa.UniqueConstraint("run_id", "key"),
    sa.Index(
        "workflow_steps_job_idx", "job_id",
        postgresql_where=sa.text(f"job_id is not null and state not in ({_among(STEP.terminal)})"),
    ),
)  # fmt: skip

workflow_triggers: Final = sa.Table(
    "workflow_triggers",
    metadata,
    id_column(),
    sa.Column(
        "workflow_id", UUID, sa.ForeignKey("workflows.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("inputs", JSONB, nullable=False, comment="May hold expressions that read the event."),
    sa.Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("next_at", TIME, comment="Of cron: when it fires next."),
    sa.Column("last_fired_at", TIME),
    sa.Column("seen_until", TIME, comment="Of events: those before were looked at."),
    now_column(),
    sa.UniqueConstraint("workflow_id", "name"),
    one_of("kind", TriggerKind),
    sa.Index(
        "workflow_triggers_due_idx", "next_at",
        postgresql_where=sa.text("enabled and next_at is not null"),
    ),
)  # fmt: skip
