"""All tables. Every statement that touches them is in this package.

Ids are UUIDv7, made by the caller so that a retry names the same row. Times are timestamptz, UTC,
by the clock of the server that writes. States are text checked against their StrEnum.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.retention import ArtifactState, SweepState
from vyvo_dagster.domain.webhook import DeliveryState
from vyvo_dagster.store.build_tables import model_versions, models, runner_builds
from vyvo_dagster.store.columns import TIME as _TIME
from vyvo_dagster.store.columns import UUID as _UUID
from vyvo_dagster.store.columns import id_column as _id
from vyvo_dagster.store.columns import metadata
from vyvo_dagster.store.columns import now_column as _now
from vyvo_dagster.store.columns import one_of as _one_of

__all__ = [
    "api_keys",
    "artifact_sweeps",
    "artifacts",
    "audit_log",
    "fair_shares",
    "idempotency_keys",
    "job_attempts",
    "jobs",
    "metadata",
    "model_versions",
    "models",
    "outbox",
    "runner_builds",
]

jobs = sa.Table(
    "jobs",
    metadata,
    _id(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("version_id", _UUID, sa.ForeignKey("model_versions.id"), nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("priority", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("input", JSONB, nullable=False),
    sa.Column("output", JSONB),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column(
        "attempt", sa.Integer, nullable=False, server_default="0", comment="The fencing token."
    ),
    sa.Column("handed_back", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("node_id", _UUID),
    sa.Column("assignment_id", _UUID),
    sa.Column("lease_expires_at", _TIME),
    sa.Column("expires_at", _TIME, nullable=False, comment="End of its life in the queue."),
    sa.Column("retry_at", _TIME, comment="It waits, in no stream before then."),
    sa.Column("timeout_seconds", sa.Integer, nullable=False, server_default="3600"),
    sa.Column("cancel_requested_at", _TIME),
    sa.Column("progress", sa.Double),
    sa.Column("timings", JSONB, nullable=False, server_default="{}"),
    sa.Column("traceparent", sa.Text),
    sa.Column("key_id", _UUID, comment="The API key, where it limits how many jobs may wait."),
    sa.Column("webhook", JSONB, comment="url, events (ends of the job); null for none."),
    sa.Column("workflow_step_id", _UUID, comment="The step that it is an attempt of."),
    sa.Column("workflow_step_attempt", sa.Integer),
    _now(),
    sa.Column("dispatched_at", _TIME),
    sa.Column("started_at", _TIME),
    sa.Column("completed_at", _TIME),
    sa.Column("requeued_at", _TIME, comment="When a person last queued it again after its end."),
    _one_of("state", JobState),
    _one_of("priority", Priority),
    sa.Index(None, "tenant", "id"),
    sa.Index(
        "jobs_queued_idx",
        "model_id",
        "priority",
        "id",
        postgresql_where=sa.text("state = 'queued'"),
    ),
    sa.Index(
        "jobs_retry_idx",
        "retry_at",
        postgresql_where=sa.text("state = 'queued' and retry_at is not null"),
    ),
    sa.Index(
        "jobs_in_flight_idx",
        "node_id",
        postgresql_where=sa.text("state in ('dispatched', 'running')"),
    ),
    sa.Index(
        "jobs_quota_idx",
        "key_id",
        postgresql_where=sa.text("state = 'queued' and key_id is not null"),
    ),
    sa.Index("jobs_failed_idx", "id", postgresql_where=sa.text("state = 'failed'")),
    # An attempt of a step has one job, whoever submits it and however often.
    sa.Index(
        "jobs_workflow_step_key",
        "workflow_step_id",
        "workflow_step_attempt",
        unique=True,
        postgresql_where=sa.text("workflow_step_id is not null"),
    ),
)

job_attempts = sa.Table(
    "job_attempts",
    metadata,
    sa.Column("job_id", _UUID, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("node_id", _UUID, nullable=False),
    sa.Column("assignment_id", _UUID, nullable=False),
    sa.Column("outcome", sa.Text, comment="An AttemptStatus, or lost; null while under way."),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    _now("dispatched_at"),
    sa.Column("ended_at", _TIME),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    _id(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("job_id", _UUID, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False, comment="Place in the job's output, from 0."),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("mime_type", sa.Text, nullable=False),
    sa.Column("expires_at", _TIME),
    _now(),
    sa.Column("state", sa.Text, nullable=False, server_default=ArtifactState.STORED),
    sa.Column("checked_at", _TIME, comment="When its object was last looked for."),
    sa.Column("deleted_at", _TIME),
    sa.Column("delete_error", sa.Text, comment="Why its object could not be deleted so far."),
    sa.UniqueConstraint("job_id", "position"),
    _one_of("state", ArtifactState),
    sa.Index(None, "tenant", "id"),
    # Equality is all that is asked of it, and a key may be long.
    sa.Index("artifacts_url_idx", "url", postgresql_using="hash"),
    sa.Index(
        "artifacts_due_idx",
        "expires_at",
        postgresql_where=sa.text("state in ('stored', 'missing')"),
    ),
    sa.Index("artifacts_expired_idx", "id", postgresql_where=sa.text("state = 'expired'")),
)

artifact_sweeps = sa.Table(
    "artifact_sweeps",
    metadata,
    _id(),
    sa.Column("requested_by", sa.Text, comment="Prefix of a key; null for the schedule."),
    sa.Column("dry_run", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, comment="The Dagster run that does it."),
    sa.Column("report", JSONB),
    sa.Column("error", sa.Text),
    _now(),
    sa.Column("started_at", _TIME),
    sa.Column("finished_at", _TIME),
    _one_of("state", SweepState),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    _id(),
    sa.Column("prefix", sa.Text, nullable=False, unique=True),
    sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False),
    sa.Column("node_id", _UUID, sa.ForeignKey("nodes.id", ondelete="CASCADE")),
    _now(),
    sa.Column("expires_at", _TIME),
    sa.Column("last_used_at", _TIME),
    sa.Column("rate_per_second", sa.Double, comment="Jobs a second; null is no limit."),
    sa.Column("burst", sa.Integer, comment="Jobs at once; set with rate_per_second."),
    sa.Column("max_queued", sa.Integer, comment="Jobs that may wait; null is no limit."),
    sa.Column("revoked_at", _TIME),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("answer", JSONB, nullable=False),
    _now(),
)

dead_entries = sa.Table(
    "dead_entries",
    metadata,
    _id(),
    sa.Column("stream", sa.Text, nullable=False),
    sa.Column("entry_id", sa.Text, nullable=False, comment="Its id in the stream."),
    sa.Column("fields", JSONB, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    _now(),
    sa.UniqueConstraint("stream", "entry_id"),
)

webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("secret", sa.Text, nullable=False, comment="Signs, so it cannot be kept as a hash."),
    sa.Column("previous", sa.Text),
    _now("set_at"),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    _id(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("job_id", _UUID, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("payload", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    _now("next_try_at"),
    sa.Column("last_status", sa.Integer, comment="HTTP status of the last try, if it got one."),
    sa.Column("last_error", sa.Text),
    _now(),
    sa.Column("delivered_at", _TIME),
    _one_of("state", DeliveryState),
    sa.Index(None, "job_id"),
    sa.Index(
        "webhook_deliveries_due_idx",
        "tenant",
        "next_try_at",
        postgresql_where=sa.text("state = 'pending'"),
    ),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("stream", sa.Text, nullable=False),
    sa.Column("fields", JSONB, nullable=False),
    sa.Column("held_until", _TIME, comment="Until then its writer brings it to the stream itself."),
    _now(),
)

fair_shares = sa.Table(
    "fair_shares",
    metadata,
    _id(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column(
        "model_id",
        sa.Text,
        sa.ForeignKey("models.model_id"),
        comment="Null for all models that have none of their own.",
    ),
    sa.Column("weight", sa.Double, nullable=False),
    _now("updated_at"),
    sa.CheckConstraint("weight > 0 and weight <= 1000", name="weight"),
    sa.UniqueConstraint("tenant", "model_id", postgresql_nulls_not_distinct=True),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    _id(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", JSONB, nullable=False, server_default="{}"),
    _now(),
)
