"""Predictions, and what people said of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(120), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("version", sa.String(100), nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("probability", sa.Double),
        sa.Column("probabilities", sa.LargeBinary),
        sa.Column("embedding", sa.LargeBinary),
        sa.Column("is_unknown", sa.Boolean, nullable=False),
        sa.Column("abstains", sa.Boolean, nullable=False),
        sa.Column("similarity", sa.Double),
        sa.Column("quality", sa.JSON, nullable=False),
        sa.Column("milliseconds", sa.Double, nullable=False),
        sa.Column("photo", sa.LargeBinary),
    )
    op.create_index("predictions_by_time", "predictions", ["model", "at"])
    op.create_table(
        "feedback",
        sa.Column("prediction_id", sa.String(120), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("verdict", sa.String(20), nullable=False),
        sa.Column("label", sa.Text),
    )
    op.create_index("feedback_by_time", "feedback", ["at"])


def downgrade() -> None:
    """Remove both tables."""
    op.drop_table("feedback")
    op.drop_table("predictions")
