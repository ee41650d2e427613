"""Builds and workflow runs know the trace that they belong to

Revision: 0013, after 0012
"""

import sqlalchemy as sa
from alembic import op

revision = '0013'
down_revision = '0012'
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ('runner_builds', 'workflow_runs'):
        op.add_column(table, sa.Column('traceparent', sa.Text(), nullable=True, comment='W3C trace context of the request.'))


def downgrade() -> None:
    for table in ('runner_builds', 'workflow_runs'):
        op.drop_column(table, 'traceparent')
