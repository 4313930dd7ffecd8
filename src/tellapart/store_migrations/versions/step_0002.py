"""Which version of an A/B test answered, for whom; and what a challenger said in shadow of a stored prediction."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; what is stored already belongs to no test."""
    op.add_column("predictions", sa.Column("test", sa.String(20)))
    op.add_column("predictions", sa.Column("subject", sa.String(120)))
    op.create_table(
        "shadows",
        sa.Column("prediction_id", sa.String(120), primary_key=True),
        sa.Column("test", sa.String(20), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("probability", sa.Double),
    )
    op.create_index("predictions_by_test", "predictions", ["test", "at"])


def downgrade() -> None:
    """Remove them."""
    op.drop_table("shadows")
    op.drop_index("predictions_by_test", "predictions")
    op.drop_column("predictions", "subject")
    op.drop_column("predictions", "test")
