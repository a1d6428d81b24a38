"""an alias that is removed leaves an entry in its history: a move to no version."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("alias_moves") as batch_op:
        batch_op.alter_column("version", existing_type=sa.Integer(), nullable=True)


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM alias_moves WHERE version IS NULL"))
    with op.batch_alter_table("alias_moves") as batch_op:
        batch_op.alter_column("version", existing_type=sa.Integer(), nullable=False)
