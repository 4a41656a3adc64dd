"""The tables of the state database, and rows as values. Types are portable between databases.

A change here needs a revision in `migrations/versions`: a new database is made from these tables,
an older one by the revisions, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from standby.model.machine import Checkpoint
from standby.model.replica import ReplicaIdentity

SCHEMA_VERSION = 4
"""The revision `migrations/versions` ends with."""

metadata = sa.MetaData()


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    """A text, ordered by its bytes on every database: times in ISO 8601 and names are compared."""
    kind = sa.Text if length is None else sa.String
    return kind(length).with_variant(kind(length, collation="C"), "postgresql")


def _time(name: str) -> sa.Column[str]:
    """A time as ISO 8601 text in UTC, '' for none."""
    return sa.Column(name, _text(40), nullable=False, server_default="")


version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))
"""One row. Also what 0.1.0 looks at, which knows 1 only and refuses what is newer."""

revision = sa.Table(
    "alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True)
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", _text(64), primary_key=True),
    sa.Column("job", _text(64), nullable=False, index=True),
    sa.Column("started_at", _text(40), nullable=False, index=True),
    sa.Column("ended_at", _text(40), nullable=False),
    sa.Column("outcome", _text(16), nullable=False),
)

tasks = sa.Table(
    "machine_tasks",
    metadata,
    sa.Column("session", _text(64), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("machine", _text(), nullable=False),
    sa.Column("machine_id", _text(64), nullable=False, index=True),
    sa.Column("replica", _text(), nullable=False, index=True),
    sa.Column("outcome", _text(16), nullable=False),
    sa.Column("changed_share", sa.Float),
    sa.Column("report", _text(), nullable=False),
)

intents = sa.Table(
    "checkpoint_intents",
    metadata,
    sa.Column("id", _text(36), primary_key=True),
    sa.Column("host", _text(64), nullable=False),
    sa.Column("machine_id", _text(64), nullable=False),
    sa.Column("session", _text(64), nullable=False),
    sa.Column("recorded_at", _text(40), nullable=False),
    sa.Column("state", _text(16), nullable=False, index=True),
    sa.Column("checkpoint", _text(), nullable=False),
)

alarms = sa.Table(
    "alarms",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", _text(32), nullable=False),
    sa.Column("job", _text(64), nullable=False),
    sa.Column("machine", _text(), nullable=False),
    sa.Column("text", _text(), nullable=False),
    sa.Column("raised_at", _text(40), nullable=False),
    sa.Column("last_at", _text(40), nullable=False),
    sa.Column("acknowledged_at", _text(40), nullable=False),
)
IS_OPEN_ALARM = sa.text("acknowledged_at = ''")
sa.Index(
    "one_open_alarm",
    alarms.c.kind,
    alarms.c.job,
    alarms.c.machine,
    unique=True,
    sqlite_where=IS_OPEN_ALARM,
    postgresql_where=IS_OPEN_ALARM,
)

stop_requests = sa.Table(
    "stop_requests",
    metadata,
    sa.Column("session", _text(64), primary_key=True),
    sa.Column("asked_at", _text(40), nullable=False),
)

replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("installation", _text(64), primary_key=True),
    sa.Column("source_host", _text(64), primary_key=True),
    sa.Column("machine_id", _text(64), primary_key=True),
    sa.Column("job", _text(64), primary_key=True),
    sa.Column("name", _text(), nullable=False),
    sa.Column("path", _text(), nullable=False),
    sa.Column("state", _text(16), nullable=False),
    sa.Column("newest_point", _text(64), nullable=False),
    sa.Column("points", sa.Integer, nullable=False),
    sa.Column("seen_at", _text(40), nullable=False),
)

lease = sa.Table(
    "server_lease",
    metadata,
    sa.Column("name", _text(16), primary_key=True),
    sa.Column("server", _text(128), nullable=False),
    sa.Column("address", _text(), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)
"""One row, there from the start. `expires_at` in seconds of the database's clock."""

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("counter", sa.Integer, nullable=False),
)
"""One row: counted up with each change that wakes servers, where the database cannot notify."""

session_runs = sa.Table(
    "session_runs",
    metadata,
    sa.Column("id", _text(64), primary_key=True),
    sa.Column("job", _text(64), nullable=False),
    sa.Column("state", _text(16), nullable=False),
    sa.Column("reason", _text(16), nullable=False),
    sa.Column("slot", _text(40), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("machines", _text(), nullable=False),
    sa.Column("options", _text(), nullable=False),
    sa.Column("asked_by", _text(128), nullable=False),
    sa.Column("after", _text(64), nullable=False),
    sa.Column("queued_at", _text(40), nullable=False),
    _time("started_at"),
    _time("ended_at"),
    sa.Column("changed_at", _text(40), nullable=False),
    sa.Column("server", _text(128), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("detail", _text(), nullable=False),
)
HAS_SLOT = sa.text("slot <> ''")
sa.Index(
    "one_session_per_slot",
    session_runs.c.job,
    session_runs.c.slot,
    unique=True,
    sqlite_where=HAS_SLOT,
    postgresql_where=HAS_SLOT,
)
IS_RUN = sa.text("state IN ('running', 'stopping')")
sa.Index(
    "one_running_session_per_job",
    session_runs.c.job,
    unique=True,
    sqlite_where=IS_RUN,
    postgresql_where=IS_RUN,
)
sa.Index("session_runs_of_job", session_runs.c.job, session_runs.c.queued_at)
sa.Index(
    "session_runs_to_take",
    session_runs.c.state,
    session_runs.c.priority.desc(),
    session_runs.c.queued_at,
    session_runs.c.id,
)

task_runs = sa.Table(
    "task_runs",
    metadata,
    sa.Column("id", _text(36), primary_key=True),
    sa.Column("session", _text(64), sa.ForeignKey("session_runs.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("machine", _text(), nullable=False),
    sa.Column("machine_id", _text(64), nullable=False),
    sa.Column("state", _text(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    _time("next_attempt_at"),
    _time("started_at"),
    _time("ended_at"),
    sa.Column("changed_at", _text(40), nullable=False),
    sa.Column("server", _text(128), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("detail", _text(), nullable=False),
)
sa.Index("task_runs_of_session", task_runs.c.session, task_runs.c.position, unique=True)
IS_OPEN_TASK = sa.text("state IN ('queued', 'waiting', 'running')")
sa.Index(
    "open_task_runs",
    task_runs.c.session,
    task_runs.c.position,
    sqlite_where=IS_OPEN_TASK,
    postgresql_where=IS_OPEN_TASK,
)

requests = sa.Table(
    "session_requests",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("session", _text(64), sa.ForeignKey("session_runs.id"), nullable=False, index=True),
    sa.Column("machine", _text(), nullable=False),
    sa.Column("kind", _text(16), nullable=False),
    sa.Column("asked_by", _text(128), nullable=False),
    _time("asked_at"),
    sa.Column("handled_at", _text(40), nullable=False, server_default="", index=True),
    sa.Column("handled_by", _text(128), nullable=False),
    sa.Column("result", _text(), nullable=False),
)

journeys = sa.Table(
    "journeys",
    metadata,
    sa.Column("job", _text(64), primary_key=True),
    sa.Column("machine_id", _text(64), primary_key=True),
    sa.Column("intent", _text(36), nullable=False),
    sa.Column("journey", _text(), nullable=False),
    sa.Column("changed_at", _text(40), nullable=False),
)

tokens = sa.Table(
    "api_tokens",
    metadata,
    sa.Column("name", _text(64), primary_key=True),
    sa.Column("role", _text(16), nullable=False),
    sa.Column("hash", _text(128), nullable=False, unique=True),
    _time("created_at"),
    sa.Column("created_by", _text(128), nullable=False),
    _time("expires_at"),
    _time("last_used_at"),
    _time("revoked_at"),
)

operations = sa.Table(
    "api_operations",
    metadata,
    sa.Column("id", _text(64), primary_key=True),
    sa.Column("kind", _text(32), nullable=False),
    sa.Column("name", _text(), nullable=False),
    sa.Column("started_by", _text(128), nullable=False),
    sa.Column("started_at", _text(40), nullable=False, index=True),
    sa.Column("ended_at", _text(40), nullable=False),
    sa.Column("state", _text(16), nullable=False),
    sa.Column("steps", _text(), nullable=False),
    sa.Column("outcome", _text(), nullable=False),
    sa.Column("owner", _text(128), nullable=False),
    sa.Column("seen_at", sa.Float, nullable=False),
    sa.Column("is_asked_to_end", sa.Integer, nullable=False),
)
"""`seen_at` in seconds of the database's clock."""

FIRST_ROWS: tuple[tuple[sa.Table, dict[str, str | int | float]], ...] = (
    (version, {"version": SCHEMA_VERSION}),
    (revision, {"version_num": f"{SCHEMA_VERSION:04}"}),
    (
        lease,
        {"name": "active", "server": "", "address": "", "generation": 0, "expires_at": 0.0},
    ),
    (changes, {"id": 1, "counter": 0}),
)
"""What a new database begins with."""


@dataclass(frozen=True, slots=True)
class CheckpointIntent:
    """A checkpoint that was to be made (RULES 10). `state` is intent, made or released;
    `checkpoint` is there while it is made."""

    id: str
    host: str
    machine_id: str
    session: str
    recorded_at: str
    state: str
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should look at. Raised again while open, it only moves `last_at` and
    takes the new text. `acknowledged_at` '' means open."""

    id: int
    kind: str
    job: str
    machine: str
    text: str
    raised_at: str
    last_at: str
    acknowledged_at: str


@dataclass(frozen=True, slots=True)
class KnownReplica:
    """A replica as last seen at the target: a cache, read to notice that the target holds less
    than it did (RULES 6)."""

    identity: ReplicaIdentity
    name: str
    path: str
    state: str
    newest_point: str
    points: int
    seen_at: str


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token of the API. The token itself is nowhere, only its hash. Times '' where there is
    none: it never ends, was never used, is not revoked."""

    name: str
    role: str
    hash: str
    created_at: str
    created_by: str
    expires_at: str
    last_used_at: str
    revoked_at: str
