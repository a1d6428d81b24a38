"""the data set that a job was to make, which every job that fails or is cancelled asks for."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_dataset_versions_job_id", "dataset_versions", ["job_id"])


def downgrade() -> None:
    op.drop_index("ix_dataset_versions_job_id", "dataset_versions")
