"""pages of jobs of one state in the order of the index, instead of a sort of all of them."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_state", "jobs", ["state", "id"])
    op.drop_index("ix_jobs_lease", "jobs")


def downgrade() -> None:
    op.create_index("ix_jobs_lease", "jobs", ["state", "lease_until"])
    op.drop_index("ix_jobs_state", "jobs")
