"""where a data set version was fetched from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("dataset_versions", sa.Column("source", json, nullable=True))
    op.add_column("dataset_versions", sa.Column("fetch_uri", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("dataset_versions") as batch_op:
        batch_op.drop_column("fetch_uri")
        batch_op.drop_column("source")
