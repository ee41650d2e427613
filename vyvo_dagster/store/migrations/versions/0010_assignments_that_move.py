"""Assignments that move

Revision: 0010, after 0009
"""

import sqlalchemy as sa
from alembic import op

revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('assignments', sa.Column('replaced_by', sa.UUID(), nullable=True, comment='Its successor elsewhere, while it drains.'))


def downgrade() -> None:
    op.drop_column('assignments', 'replaced_by')
