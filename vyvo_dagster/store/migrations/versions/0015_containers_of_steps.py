"""Containers of steps

Revision: 0015, after 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0015'
down_revision = '0014'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('workflow_steps', sa.Column('placement', postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment='Of a container: host and devices, or why it waits.'))


def downgrade() -> None:
    op.drop_column('workflow_steps', 'placement')
