"""Queue of builds, rebuilds, collection

Revision: 0017, after 0016
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0017'
down_revision = '0016'
branch_labels = None
depends_on = None

_OPEN = "state in ('queued', 'building', 'pushing')"


def upgrade() -> None:
    op.add_column('model_versions', sa.Column('collected_at', sa.DateTime(timezone=True), nullable=True, comment='When its image was removed; it cannot serve again.'))
    op.add_column('runner_builds', sa.Column('host', sa.Text(), nullable=True, comment='Where it is executed.'))
    op.add_column('runner_builds', sa.Column('attempt', sa.Integer(), server_default='0', nullable=False, comment='Runs that have taken it, one after another.'))
    op.add_column('runner_builds', sa.Column('rebuild_of', sa.UUID(), nullable=True, comment='The version that it builds once more.'))
    op.add_column('runner_builds', sa.Column('unchanged', sa.Boolean(), server_default=sa.text('false'), nullable=False, comment='A rebuild that came to the digest that the version has.'))
    op.add_column('runner_builds', sa.Column('input_schema', postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="Of the built runner; the version's, once ready."))
    op.add_column('runner_builds', sa.Column('output_schema', postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_foreign_key(op.f('runner_builds_rebuild_of_fkey'), 'runner_builds', 'model_versions', ['rebuild_of'], ['id'])
    op.create_index('runner_builds_at_work_idx', 'runner_builds', ['id'], unique=False, postgresql_where=sa.text("state in ('building', 'pushing')"))
    op.create_index('runner_builds_rebuild_key', 'runner_builds', ['rebuild_of'], unique=True, postgresql_where=sa.text(_OPEN))
    op.create_table('collected',
    sa.Column('id', sa.UUID(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False, comment='Image by digest, or folder.'),
    sa.Column('place', sa.Text(), nullable=False, comment='Registry, engine or build host.'),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint("kind in ('registry_image', 'engine_image', 'environment', 'wheelhouse')", name=op.f('collected_kind_check')),
    sa.PrimaryKeyConstraint('id', name=op.f('collected_pkey'))
    )


def downgrade() -> None:
    op.drop_table('collected')
    op.drop_index('runner_builds_rebuild_key', table_name='runner_builds')
    op.drop_index('runner_builds_at_work_idx', table_name='runner_builds')
    op.drop_constraint(op.f('runner_builds_rebuild_of_fkey'), 'runner_builds', type_='foreignkey')
    for column in ('output_schema', 'input_schema', 'unchanged', 'rebuild_of', 'attempt', 'host'):
        op.drop_column('runner_builds', column)
    op.drop_column('model_versions', 'collected_at')
