"""Why each attempt ended, when a job may be tried again, and how long it may run."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; jobs that are there already get the default limit."""
    op.add_column("job_attempts", sa.Column("error_message", sa.Text))
    waits = "It waits, in no stream before then."
    op.add_column("jobs", sa.Column("retry_at", sa.DateTime(timezone=True), comment=waits))
    op.add_column(
        "jobs", sa.Column("timeout_seconds", sa.Integer, nullable=False, server_default="3600")
    )
    op.create_index(
        "jobs_retry_idx",
        "jobs",
        ["retry_at"],
        postgresql_where=sa.text("state = 'queued' and retry_at is not null"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_index("jobs_retry_idx", "jobs")
    op.drop_column("jobs", "timeout_seconds")
    op.drop_column("jobs", "retry_at")
    op.drop_column("job_attempts", "error_message")
