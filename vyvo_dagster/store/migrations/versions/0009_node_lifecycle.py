"""Drains with a deadline, damped suspicion, and when a version on demand was last used

Revision: 0009, after 0008
"""

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('nodes', sa.Column('drain_started_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('nodes', sa.Column('drain_deadline_at', sa.DateTime(timezone=True), nullable=True, comment='Then its jobs are ended; null waits for them.'))
    op.add_column('nodes', sa.Column('drained_at', sa.DateTime(timezone=True), nullable=True, comment='When nothing was left, or at the deadline.'))
    op.add_column('nodes', sa.Column('suspicions', sa.Integer(), server_default='0', nullable=False))
    op.add_column('nodes', sa.Column('suspect_at', sa.DateTime(timezone=True), nullable=True, comment='When it last became suspect.'))
    op.add_column('nodes', sa.Column('heard_since', sa.DateTime(timezone=True), nullable=True, comment='First heartbeat after its last gap.'))
    op.add_column('assignments', sa.Column('used_at', sa.DateTime(timezone=True), nullable=True, comment='Last dispatch there, of those on demand; to 10 s.'))


def downgrade() -> None:
    op.drop_column('assignments', 'used_at')
    for column in ('heard_since', 'suspect_at', 'suspicions', 'drained_at', 'drain_deadline_at', 'drain_started_at'):
        op.drop_column('nodes', column)
