"""Sessions and tasks that a backup server runs from a queue, requests to them, the lease of the
active server, API tokens; texts ordered by their bytes on PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from standby.server.store.migrations import refuse_downgrade

revision = "0002"
down_revision = "0001"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    kind = sa.Text if length is None else sa.String
    return kind(length).with_variant(kind(length, collation="C"), "postgresql")


def _column(name: str, length: int | None = None, *more: sa.ForeignKey) -> sa.Column[str]:
    return sa.Column(name, _text(length), *more, nullable=False)


def _time(name: str) -> sa.Column[str]:
    return sa.Column(name, _text(40), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def upgrade() -> None:
    """Order texts by bytes, then make the new tables."""
    if op.get_bind().dialect.name == "postgresql":
        _order_by_bytes()
    _one_open_alarm()
    _make_lease()
    _make_runs()
    _make_requests_and_tokens()
    op.execute("UPDATE schema_version SET version = 2")


def _order_by_bytes() -> None:
    found = op.get_bind().execute(
        sa.text(
            "SELECT table_name, column_name, character_maximum_length"
            " FROM information_schema.columns WHERE table_schema = current_schema()"
            " AND data_type IN ('character varying', 'text') AND collation_name IS NULL"
            " AND table_name <> 'alembic_version' ORDER BY 1, 2"
        )
    )
    for table, column, length in found.all():
        kind = f"VARCHAR({length})" if length else "TEXT"
        op.execute(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE {kind} COLLATE "C"')


def _one_open_alarm() -> None:
    # Two processes may have opened the same alarm at once: the newest stays open.
    op.execute(
        "UPDATE alarms SET acknowledged_at = last_at WHERE acknowledged_at = '' AND EXISTS"
        " (SELECT 1 FROM alarms AS newer WHERE newer.acknowledged_at = '' AND newer.id > alarms.id"
        " AND newer.kind = alarms.kind AND newer.job = alarms.job"
        " AND newer.machine = alarms.machine)"
    )
    is_open = sa.text("acknowledged_at = ''")
    op.create_index(
        "one_open_alarm",
        "alarms",
        ["kind", "job", "machine"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )


def _make_lease() -> None:
    op.create_table(
        "server_lease",
        sa.Column("name", _text(16), primary_key=True),
        _column("server", 128),
        _column("address"),
        _number("generation"),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.execute(
        "INSERT INTO server_lease (name, server, address, generation, expires_at)"
        " VALUES ('active', '', '', 0, 0)"
    )
    op.create_table("changes", sa.Column("id", sa.Integer, primary_key=True), _number("counter"))
    op.execute("INSERT INTO changes (id, counter) VALUES (1, 0)")


def _make_runs() -> None:
    op.create_table(
        "session_runs",
        sa.Column("id", _text(64), primary_key=True),
        _column("job", 64),
        _column("state", 16),
        _column("reason", 16),
        _column("slot", 40),
        _number("priority"),
        _column("machines"),
        _column("options"),
        _column("asked_by", 128),
        _column("after", 64),
        _column("queued_at", 40),
        _time("started_at"),
        _time("ended_at"),
        _column("changed_at", 40),
        _column("server", 128),
        _number("generation"),
        _column("detail"),
    )
    for name, columns, condition in (
        ("one_session_per_slot", ["job", "slot"], "slot <> ''"),
        ("one_running_session_per_job", ["job"], "state IN ('running', 'stopping')"),
    ):
        op.create_index(
            name,
            "session_runs",
            columns,
            unique=True,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
    op.create_index("session_runs_of_job", "session_runs", ["job", "queued_at"])
    op.create_index(
        "session_runs_to_take",
        "session_runs",
        ["state", sa.text("priority DESC"), "queued_at", "id"],
    )
    op.create_table(
        "task_runs",
        sa.Column("id", _text(36), primary_key=True),
        _column("session", 64, sa.ForeignKey("session_runs.id")),
        _number("position"),
        _column("machine"),
        _column("machine_id", 64),
        _column("state", 16),
        _number("attempt"),
        _time("next_attempt_at"),
        _column("source_mover", 64),
        _column("target_mover", 64),
        _column("transfers"),
        _time("started_at"),
        _time("ended_at"),
        _column("changed_at", 40),
        _column("server", 128),
        _number("generation"),
        _column("detail"),
    )
    op.create_index("task_runs_of_session", "task_runs", ["session", "position"], unique=True)
    is_open = sa.text("state IN ('queued', 'waiting', 'running')")
    op.create_index(
        "open_task_runs",
        "task_runs",
        ["session", "position"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )


def _make_requests_and_tokens() -> None:
    op.create_table(
        "session_requests",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "session", _text(64), sa.ForeignKey("session_runs.id"), nullable=False, index=True
        ),
        _column("machine"),
        _column("kind", 16),
        _column("asked_by", 128),
        _time("asked_at"),
        sa.Column("handled_at", _text(40), nullable=False, server_default="", index=True),
        _column("handled_by", 128),
        _column("result"),
    )
    op.create_table(
        "journeys",
        sa.Column("job", _text(64), primary_key=True),
        sa.Column("machine_id", _text(64), primary_key=True),
        _column("intent", 36),
        _column("journey"),
        sa.Column("changed_at", _text(40), nullable=False),
    )
    op.create_table(
        "api_tokens",
        sa.Column("name", _text(64), primary_key=True),
        _column("role", 16),
        sa.Column("hash", _text(128), nullable=False, unique=True),
        _time("created_at"),
        _column("created_by", 128),
        _time("expires_at"),
        _time("last_used_at"),
        _time("revoked_at"),
    )


def downgrade() -> None:
    """Refused: it would lose what is new."""
    refuse_downgrade(revision)
