"""What a build was made of, and the backend github_actions

Revision: 0011, after 0010
"""

import sqlalchemy as sa
from alembic import op

revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('runner_builds', sa.Column('ref', sa.Text(), nullable=True, comment='Branch, tag or commit as asked; null is the default branch.'))
    op.add_column('runner_builds', sa.Column('source_commit', sa.Text(), nullable=True, comment='What the ref meant when it was built.'))
    op.add_column('runner_builds', sa.Column('lock_url', sa.Text(), nullable=True, comment='The lock in S3.'))
    op.add_column('runner_builds', sa.Column('sbom_url', sa.Text(), nullable=True, comment='The CycloneDX bill of materials in S3.'))
    op.add_column('runner_builds', sa.Column('base_digest', sa.Text(), nullable=True))
    op.add_column('runner_builds', sa.Column('template_hash', sa.Text(), nullable=True))
    op.alter_column('runner_builds', 'backend', comment='As asked.', existing_comment='As asked: auto, buildx, venv.', existing_type=sa.Text(), existing_nullable=False)
    op.drop_constraint(op.f('runner_builds_backend_check'), 'runner_builds', type_='check')
    op.create_check_constraint(
        op.f('runner_builds_backend_check'), 'runner_builds',
        "backend in ('auto', 'buildx', 'github_actions', 'venv')",
    )


def downgrade() -> None:
    op.execute("UPDATE runner_builds SET backend = 'buildx' WHERE backend = 'github_actions'")
    op.drop_constraint(op.f('runner_builds_backend_check'), 'runner_builds', type_='check')
    op.create_check_constraint(
        op.f('runner_builds_backend_check'), 'runner_builds', "backend in ('auto', 'buildx', 'venv')"
    )
    op.alter_column('runner_builds', 'backend', comment='As asked: auto, buildx, venv.', existing_comment='As asked.', existing_type=sa.Text(), existing_nullable=False)
    for column in ('template_hash', 'base_digest', 'sbom_url', 'lock_url', 'source_commit', 'ref'):
        op.drop_column('runner_builds', column)
