"""The API's operations, which were in a server's memory only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from standby.server.store.migrations import refuse_downgrade

revision = "0003"
down_revision = "0002"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    kind = sa.Text if length is None else sa.String
    return kind(length).with_variant(kind(length, collation="C"), "postgresql")


def _column(name: str, length: int | None = None) -> sa.Column[str]:
    return sa.Column(name, _text(length), nullable=False)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "api_operations",
        sa.Column("id", _text(64), primary_key=True),
        _column("kind", 32),
        _column("name"),
        _column("started_by", 128),
        sa.Column("started_at", _text(40), nullable=False, index=True),
        sa.Column("ended_at", _text(40), nullable=False),
        _column("state", 16),
        _column("steps"),
        _column("outcome"),
        _column("owner", 128),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("is_asked_to_end", sa.Integer, nullable=False),
    )
    op.execute("UPDATE schema_version SET version = 3")


def downgrade() -> None:
    """Refused."""
    refuse_downgrade(revision)
