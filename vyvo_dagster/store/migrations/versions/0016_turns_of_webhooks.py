"""Webhooks of tenants take turns

Revision: 0016, after 0015
"""

import sqlalchemy as sa
from alembic import op

revision = '0016'
down_revision = '0015'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f('webhook_deliveries_due_idx'), table_name='webhook_deliveries')
    op.create_index('webhook_deliveries_due_idx', 'webhook_deliveries', ['tenant', 'next_try_at'], unique=False, postgresql_where=sa.text("state = 'pending'"))


def downgrade() -> None:
    op.drop_index('webhook_deliveries_due_idx', table_name='webhook_deliveries')
    op.create_index('webhook_deliveries_due_idx', 'webhook_deliveries', ['next_try_at'], unique=False, postgresql_where=sa.text("state = 'pending'"))
