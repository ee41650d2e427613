"""States of artifacts, and passes that collect them

Revision: 0014, after 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0014'
down_revision = '0013'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('artifacts', sa.Column('state', sa.Text(), server_default='stored', nullable=False))
    op.add_column('artifacts', sa.Column('checked_at', sa.DateTime(timezone=True), nullable=True, comment='When its object was last looked for.'))
    op.add_column('artifacts', sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('artifacts', sa.Column('delete_error', sa.Text(), nullable=True, comment='Why its object could not be deleted so far.'))
    op.create_check_constraint(op.f('artifacts_state_check'), 'artifacts', "state in ('stored', 'expired', 'deleted', 'missing')")
    op.create_index('artifacts_url_idx', 'artifacts', ['url'], unique=False, postgresql_using='hash')
    op.create_index('artifacts_due_idx', 'artifacts', ['expires_at'], unique=False, postgresql_where=sa.text("state in ('stored', 'missing')"))
    op.create_index('artifacts_expired_idx', 'artifacts', ['id'], unique=False, postgresql_where=sa.text("state = 'expired'"))
    op.create_table('artifact_sweeps',
        sa.Column('id', sa.UUID(), nullable=False),
        sa.Column('requested_by', sa.Text(), nullable=True, comment='Prefix of a key; null for the schedule.'),
        sa.Column('dry_run', sa.Boolean(), nullable=False),
        sa.Column('state', sa.Text(), nullable=False),
        sa.Column('run_id', sa.Text(), nullable=True, comment='The Dagster run that does it.'),
        sa.Column('report', postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column('error', sa.Text(), nullable=True),
        sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
        sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('queued', 'running', 'succeeded', 'failed')", name=op.f('artifact_sweeps_state_check')),
        sa.PrimaryKeyConstraint('id', name=op.f('artifact_sweeps_pkey')),
    )


def downgrade() -> None:
    op.drop_table('artifact_sweeps')
    for index in ('artifacts_expired_idx', 'artifacts_due_idx', 'artifacts_url_idx'):
        op.drop_index(index, table_name='artifacts')
    op.drop_constraint(op.f('artifacts_state_check'), 'artifacts', type_='check')
    for column in ('delete_error', 'deleted_at', 'checked_at', 'state'):
        op.drop_column('artifacts', column)
