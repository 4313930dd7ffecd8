"""Retrainings of a model, and what was done in each: one that was interrupted goes on, and none is begun twice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "retrainings",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("began", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("outcome", sa.String(20)),
        sa.Column("place", sa.Text, nullable=False),
    )
    # Of each model one retraining at a time, whoever begins it.
    op.create_index(
        "one_open_retraining", "retrainings", ["model"], unique=True,
        sqlite_where=sa.text("ended IS NULL"), postgresql_where=sa.text("ended IS NULL"),
    )  # fmt: skip
    op.create_table(
        "retraining_steps",
        sa.Column("retraining", sa.String(20), primary_key=True),
        sa.Column("step", sa.String(20), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("values", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("retraining_steps")
    op.drop_index("one_open_retraining", "retrainings")
    op.drop_table("retrainings")
