"""Who runs a task's transfers stands in `journeys` alone: three columns that nobody wrote go."""

from __future__ import annotations

from alembic import op

from standby.server.store.migrations import refuse_downgrade

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Drop them."""
    for name in ("source_mover", "target_mover", "transfers"):
        op.drop_column("task_runs", name)
    op.execute("UPDATE schema_version SET version = 4")


def downgrade() -> None:
    """Refused."""
    refuse_downgrade(revision)
