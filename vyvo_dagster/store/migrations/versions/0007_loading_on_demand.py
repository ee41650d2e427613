"""Loading on demand

Revision: 0007, after 0006
"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('assignments', sa.Column('on_demand', sa.Boolean(), server_default=sa.text('false'), nullable=False, comment='Made by the orchestrator, since jobs waited.'))


def downgrade() -> None:
    op.drop_column('assignments', 'on_demand')
