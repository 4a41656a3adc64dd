"""The schema of release 0.1.0: sessions, tasks, checkpoint intents, alarms, replicas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from standby.server.store.migrations import refuse_downgrade

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, nullable=False))
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(64), nullable=False, index=True),
        sa.Column("started_at", sa.String(40), nullable=False, index=True),
        sa.Column("ended_at", sa.String(40), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
    )
    op.create_table(
        "machine_tasks",
        sa.Column("session", sa.String(64), sa.ForeignKey("sessions.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("machine_id", sa.String(64), nullable=False, index=True),
        sa.Column("replica", sa.Text, nullable=False, index=True),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("changed_share", sa.Float),
        sa.Column("report", sa.Text, nullable=False),
    )
    op.create_table(
        "checkpoint_intents",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("host", sa.String(64), nullable=False),
        sa.Column("machine_id", sa.String(64), nullable=False),
        sa.Column("session", sa.String(64), nullable=False),
        sa.Column("recorded_at", sa.String(40), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("checkpoint", sa.Text, nullable=False),
    )
    op.create_table(
        "alarms",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("raised_at", sa.String(40), nullable=False),
        sa.Column("last_at", sa.String(40), nullable=False),
        sa.Column("acknowledged_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "stop_requests",
        sa.Column("session", sa.String(64), primary_key=True),
        sa.Column("asked_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "replicas",
        sa.Column("installation", sa.String(64), primary_key=True),
        sa.Column("source_host", sa.String(64), primary_key=True),
        sa.Column("machine_id", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("newest_point", sa.String(64), nullable=False),
        sa.Column("points", sa.Integer, nullable=False),
        sa.Column("seen_at", sa.String(40), nullable=False),
    )
    op.execute("INSERT INTO schema_version (version) VALUES (1)")


def downgrade() -> None:
    """Refused: there is nothing before it."""
    refuse_downgrade(revision)
