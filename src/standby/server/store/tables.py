"""The tables of the state database, and rows as values. Types are portable between databases."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from standby.model.machine import Checkpoint
from standby.model.replica import ReplicaIdentity

SCHEMA_VERSION = 1

metadata = sa.MetaData()

version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("job", sa.String(64), nullable=False, index=True),
    sa.Column("started_at", sa.String(40), nullable=False, index=True),
    sa.Column("ended_at", sa.String(40), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
)

tasks = sa.Table(
    "machine_tasks",
    metadata,
    sa.Column("session", sa.String(64), sa.ForeignKey("sessions.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("machine_id", sa.String(64), nullable=False, index=True),
    sa.Column("replica", sa.Text, nullable=False, index=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("changed_share", sa.Float),
    sa.Column("report", sa.Text, nullable=False),
)

intents = sa.Table(
    "checkpoint_intents",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("machine_id", sa.String(64), nullable=False),
    sa.Column("session", sa.String(64), nullable=False),
    sa.Column("recorded_at", sa.String(40), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("checkpoint", sa.Text, nullable=False),
)

alarms = sa.Table(
    "alarms",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("job", sa.String(64), nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("raised_at", sa.String(40), nullable=False),
    sa.Column("last_at", sa.String(40), nullable=False),
    sa.Column("acknowledged_at", sa.String(40), nullable=False),
)

stop_requests = sa.Table(
    "stop_requests",
    metadata,
    sa.Column("session", sa.String(64), primary_key=True),
    sa.Column("asked_at", sa.String(40), nullable=False),
)

replicas = sa.Table(
    "replicas",
    metadata,
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
