"""Fair shares

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('fair_shares',
    sa.Column('id', sa.UUID(), nullable=False),
    sa.Column('tenant', sa.Text(), nullable=False),
    sa.Column('model_id', sa.Text(), nullable=True, comment='Null for all models that have none of their own.'),
    sa.Column('weight', sa.Double(), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint('weight > 0 and weight <= 1000', name=op.f('fair_shares_weight_check')),
    sa.ForeignKeyConstraint(['model_id'], ['models.model_id'], name=op.f('fair_shares_model_id_fkey')),
    sa.PrimaryKeyConstraint('id', name=op.f('fair_shares_pkey')),
    sa.UniqueConstraint('tenant', 'model_id', name=op.f('fair_shares_tenant_model_id_key'), postgresql_nulls_not_distinct=True)
    )
    # Queues have other names now; Redis is rebuilt from the rows.
    op.execute("delete from outbox where stream like 'vyvo:jobs:%' and not fields ? 'at'")


def downgrade() -> None:
    op.drop_table('fair_shares')
