"""what variants are on other classes of hosts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.create_table(
        "measurements",
        sa.Column("version_id", sa.String(36), nullable=False),
        sa.Column("variant", sa.String(100), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("metrics", json, nullable=False),
        sa.Column("latency", json, nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "variant", "host", name=op.f("pk_measurements")),
        sa.ForeignKeyConstraint(
            ["version_id", "variant"],
            ["variants.version_id", "variants.name"],
            ondelete="CASCADE",
            name=op.f("fk_measurements_version_id_variants"),
        ),
    )


def downgrade() -> None:
    op.drop_table("measurements")
