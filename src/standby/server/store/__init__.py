"""What the backup server remembers: sessions, checkpoint intents, alarms, replicas it has seen.

State only; the configuration is standby.toml, and the truth about a replica stands at the target.
SQLAlchemy Core with portable types: SQLite by default, PostgreSQL by URL with the same code.
Times are ISO 8601 texts in UTC. This package is the only place that knows SQLAlchemy.

`Store` is the door: its own methods are about reports, checkpoints, replicas and alarms;
`store.queue` about sessions that are to run, `store.dispatch(lease)` is what the active server
does to them, `store.tokens` the API's tokens, `store.job_lock` one session per job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from standby.clock import SYSTEM_CLOCK, Clock, new_uuid
from standby.errors import UnknownName
from standby.model.machine import Checkpoint
from standby.model.replica import ReplicaIdentity
from standby.model.report import MachineReport, SessionReport
from standby.server.retention import HISTORY, changed_share
from standby.server.store import tables
from standby.server.store.database import Database, insert, upsert
from standby.server.store.dispatch import Dispatch, TaskMove
from standby.server.store.lease import LEASE_S, LeaseHolder, LeaseKeeper, ServerLease
from standby.server.store.locks import JobLock, job_lock
from standby.server.store.operations import OperationBook
from standby.server.store.queue import SessionQueue
from standby.server.store.tables import Alarm, ApiToken, CheckpointIntent, KnownReplica
from standby.server.store.tokens import Tokens
from standby.server.store.wakeups import Wakeups

__all__ = [
    "CHANGED_SHARE",
    "Alarm",
    "ApiToken",
    "CheckpointIntent",
    "Dispatch",
    "JobLock",
    "KnownReplica",
    "LeaseHolder",
    "LeaseKeeper",
    "ServerLease",
    "SessionQueue",
    "Store",
    "TaskMove",
    "Tokens",
    "Wakeups",
]

CHANGED_SHARE = "changed share"
"""The kind of alarm that holds retention until it is acknowledged (RULES 17)."""


class Store:
    """The state database. Thread-safe; several processes may use one SQLite file.

    Every method is one transaction, durable when it returns, and raises StateDatabaseError where
    the database refuses.
    """

    def __init__(self, database: Path | str, clock: Clock = SYSTEM_CLOCK) -> None:
        """Open a SQLite file (made where missing) or a database URL; an older schema is upgraded,
        a SQLite file copied beside itself before that."""
        self._clock = clock
        self._database = Database(database)
        self._lease: ServerLease | None = None
        self.queue = SessionQueue(self._database, clock)
        self.tokens = Tokens(self._database, clock)
        self.operations = OperationBook(self._database, clock)

    @property
    def name(self) -> str:
        """What messages call the database; no part of it is secret."""
        return self._database.name

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- several servers -----------------------------------------------------------------------

    def lease(
        self,
        server: str,
        *,
        address: str = "",
        duration_s: float = LEASE_S,
        least_generation: int = 0,
    ) -> ServerLease:
        """This process's claim to be the active server, not acquired. `server` names this very
        process: another start needs another id."""
        return ServerLease(
            self._database,
            server,
            address=address,
            duration_s=duration_s,
            least_generation=least_generation,
            clock=self._clock,
        )

    def dispatch(self, lease: ServerLease) -> Dispatch:
        """What the active server does to sessions and tasks."""
        return Dispatch(self._database, lease, self._clock)

    def guarded(self, lease: ServerLease) -> Store:
        """The same store (close only one of them), whose every write raises ServerFenced and
        changes nothing unless `lease` is the active server's."""
        store = copy(self)
        store._lease = lease
        return store

    def check(self) -> None:
        """Raise ServerFenced where this is a `guarded` store and another server is active now."""
        if self._lease is not None:
            with self._database.writing(is_durable=False) as connection:
                self._lease.guard(connection)

    def wakeups(self) -> Wakeups:
        """Something to wait on until something is queued, asked or ended, by whatever process.
        Close it."""
        return Wakeups(self._database)

    def job_lock(self, job: str) -> JobLock:
        """The lock that a session of the job holds while its process lives; not taken."""
        return job_lock(self._database, job)

    @contextlib.contextmanager
    def _writing(self, *, wakes: bool = False) -> Iterator[sa.Connection]:
        with self._database.writing(wakes=wakes) as connection:
            if self._lease is not None:
                self._lease.guard(connection)
            yield connection

    # --- sessions ----------------------------------------------------------------------------

    def begin_session(self, report: SessionReport) -> None:
        """Record that the session has begun; until `save_session` with an end it is unfinished."""
        self.save_session(report)

    def save_session(self, report: SessionReport) -> None:
        """Record the session as `report` has it, replacing what was recorded before."""
        values = {
            "job": report.job,
            "started_at": report.started_at,
            "ended_at": report.ended_at,
            "outcome": report.outcome,
        }
        with self._writing() as connection:
            upsert(connection, tables.sessions, {"id": report.id}, values)
            connection.execute(tables.tasks.delete().where(tables.tasks.c.session == report.id))
            for position, machine in enumerate(report.machines):
                connection.execute(
                    tables.tasks.insert().values(
                        session=report.id, position=position, **_task_values(machine)
                    )
                )

    def sessions(self, job: str | None = None, limit: int = 50) -> list[SessionReport]:
        """Sessions (of one job), newest first."""
        query = tables.sessions.select().order_by(
            tables.sessions.c.started_at.desc(), tables.sessions.c.id.desc()
        )
        if job is not None:
            query = query.where(tables.sessions.c.job == job)
        return self._reports(query.limit(limit))

    def ended_sessions(self, after: str, limit: int) -> list[SessionReport]:
        """Sessions that ended after that time (ISO 8601 in UTC), the first that did first."""
        columns = tables.sessions.c
        query = tables.sessions.select().where(columns.ended_at > after)
        return self._reports(query.order_by(columns.ended_at, columns.id).limit(limit))

    def session(self, session: str) -> SessionReport:
        """The session of that id, or UnknownName with the newest ones."""
        found = self._reports(tables.sessions.select().where(tables.sessions.c.id == session))
        if not found:
            raise UnknownName("session", session, tuple(r.id for r in self.sessions(limit=5)))
        return found[0]

    def unfinished_sessions(self) -> list[SessionReport]:
        """Sessions without an end: running, or killed. Oldest first."""
        query = tables.sessions.select().where(tables.sessions.c.ended_at == "")
        return self._reports(query.order_by(tables.sessions.c.started_at))

    def ask_to_stop(self, session: str) -> None:
        """Record that the session is to end; its process looks for that (`stopping`)."""
        with self._writing(wakes=True) as connection:
            upsert(
                connection, tables.stop_requests, {"session": session}, {"asked_at": self._now()}
            )

    def is_asked_to_stop(self, session: str) -> bool:
        """Whether somebody asked the session to end."""
        query = tables.stop_requests.select().where(tables.stop_requests.c.session == session)
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def _reports(self, query: sa.Select[Any]) -> list[SessionReport]:
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            tasks: dict[str, list[MachineReport]] = {row.id: [] for row in rows}
            found = connection.execute(
                sa.select(tables.tasks.c.session, tables.tasks.c.report)
                .where(tables.tasks.c.session.in_(list(tasks)))
                .order_by(tables.tasks.c.session, tables.tasks.c.position)
            )
            for session, text in found:
                tasks[session].append(msgspec.json.decode(text, type=MachineReport))
        return [
            SessionReport(row.id, row.job, row.started_at, row.ended_at, row.outcome, tasks[row.id])
            for row in rows
        ]

    def changed_share_history(self, replica: str, count: int = HISTORY) -> list[float]:
        """Changed shares of the replica's last `count` points that were compared with an earlier
        one, newest last: what `retention.is_changed_share_unusual` takes."""
        query = (
            sa.select(tables.tasks.c.changed_share)
            .join(tables.sessions, tables.sessions.c.id == tables.tasks.c.session)
            .where(tables.tasks.c.replica == replica, tables.tasks.c.changed_share.is_not(None))
            .order_by(tables.sessions.c.started_at.desc(), tables.sessions.c.id.desc())
            .limit(count)
        )
        with self._database.reading() as connection:
            return [float(share) for (share,) in connection.execute(query)][::-1]

    def changed_history(
        self, identity: ReplicaIdentity, count: int = HISTORY
    ) -> dict[str, tuple[int, ...]]:
        """Per disk id, the changed bytes of its last incremental tasks within the VM's last
        `count` points, newest last: what a plan forecasts from."""
        query = (
            sa.select(tables.tasks.c.report)
            .join(tables.sessions, tables.sessions.c.id == tables.tasks.c.session)
            .where(
                tables.tasks.c.machine_id == identity.machine_id,
                tables.sessions.c.job == identity.job,
                tables.tasks.c.outcome == "done",
            )
            .order_by(tables.sessions.c.started_at.desc(), tables.sessions.c.id.desc())
            .limit(count)
        )
        with self._database.reading() as connection:
            texts = [text for (text,) in connection.execute(query)][::-1]
        history: dict[str, tuple[int, ...]] = {}
        for text in texts:
            for disk in msgspec.json.decode(text, type=MachineReport).disks:
                if disk.mode == "incremental":
                    history[disk.disk_id] = (*history.get(disk.disk_id, ()), disk.changed)
        return history

    # --- checkpoint intents ------------------------------------------------------------------

    def record_intent(self, host: str, machine_id: str, session: str, recorded_at: str) -> str:
        """Record, before a checkpoint is made, that it will be; the intent's id."""
        intent = str(new_uuid())
        with self._writing() as connection:
            connection.execute(
                tables.intents.insert().values(
                    id=intent,
                    host=host,
                    machine_id=machine_id,
                    session=session,
                    recorded_at=recorded_at,
                    state="intent",
                    checkpoint="",
                )
            )
        return intent

    def checkpoint_made(self, intent: str, checkpoint: Checkpoint) -> None:
        """Record what was made for the intent."""
        text = msgspec.json.encode(checkpoint).decode()
        self._set_intent(intent, state="made", checkpoint=text)

    def checkpoint_released(self, intent: str) -> None:
        """Record that nothing is left of it; harmless when repeated."""
        self._set_intent(intent, state="released", checkpoint="")

    def _set_intent(self, intent: str, **values: str) -> None:
        with self._writing() as connection:
            done = connection.execute(
                tables.intents.update().where(tables.intents.c.id == intent).values(**values)
            )
            if done.rowcount == 0:
                raise UnknownName("checkpoint intent", intent)

    def open_intents(self, host: str | None = None) -> list[CheckpointIntent]:
        """Intents whose checkpoint may still be there, oldest first."""
        query = tables.intents.select().where(tables.intents.c.state != "released")
        if host is not None:
            query = query.where(tables.intents.c.host == host)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(tables.intents.c.recorded_at)).all()
        return [
            CheckpointIntent(
                row.id,
                row.host,
                row.machine_id,
                row.session,
                row.recorded_at,
                row.state,
                msgspec.json.decode(row.checkpoint, type=Checkpoint) if row.checkpoint else None,
            )
            for row in rows
        ]

    # --- transfers under way -----------------------------------------------------------------

    def save_journey(self, job: str, machine_id: str, intent: str, journey: str) -> None:
        """Record how far the VM's transfer by movers of other machines is, as text, so that another
        process can go on with it. One per job and VM."""
        values = {"intent": intent, "journey": journey, "changed_at": self._now()}
        with self._writing() as connection:
            upsert(connection, tables.journeys, {"job": job, "machine_id": machine_id}, values)

    def journey(self, job: str, machine_id: str) -> str:
        """What `save_journey` recorded last, '' for nothing."""
        query = sa.select(tables.journeys.c.journey).where(
            tables.journeys.c.job == job, tables.journeys.c.machine_id == machine_id
        )
        with self._database.reading() as connection:
            return str(connection.execute(query).scalar() or "")

    def journey_intents(self) -> dict[str, tuple[str, str]]:
        """(job, time of recording) of each checkpoint intent that a journey needs."""
        query = sa.select(
            tables.journeys.c.intent, tables.journeys.c.job, tables.journeys.c.changed_at
        )
        with self._database.reading() as connection:
            return {row.intent: (row.job, row.changed_at) for row in connection.execute(query)}

    def drop_journey(self, job: str, machine_id: str) -> None:
        """The transfer has ended, or is not gone on with."""
        with self._writing() as connection:
            connection.execute(
                tables.journeys.delete().where(
                    tables.journeys.c.job == job, tables.journeys.c.machine_id == machine_id
                )
            )

    # --- replicas ----------------------------------------------------------------------------

    def known_replica(self, identity: ReplicaIdentity) -> KnownReplica | None:
        """The replica as last seen; None when it never was."""
        query = tables.replicas.select().where(*_is(identity))
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _known(row)

    def known_replicas(self, job: str | None = None) -> list[KnownReplica]:
        """All replicas seen (of one job), in order of name."""
        query = tables.replicas.select().order_by(tables.replicas.c.name, tables.replicas.c.path)
        if job is not None:
            query = query.where(tables.replicas.c.job == job)
        with self._database.reading() as connection:
            return [_known(row) for row in connection.execute(query)]

    def remember_replica(
        self,
        identity: ReplicaIdentity,
        name: str,
        path: str,
        state: str,
        newest_point: str,
        points: int,
    ) -> None:
        """Record the replica as seen now."""
        values = {
            "name": name,
            "path": path,
            "state": state,
            "newest_point": newest_point,
            "points": points,
            "seen_at": self._now(),
        }
        with self._writing() as connection:
            upsert(connection, tables.replicas, _key(identity), values)

    def forget_replica(self, identity: ReplicaIdentity) -> None:
        """Forget it, after a permanent failover or a delete."""
        with self._writing() as connection:
            connection.execute(tables.replicas.delete().where(*_is(identity)))

    # --- alarms ------------------------------------------------------------------------------

    def raise_alarm(self, kind: str, job: str, machine: str, text: str) -> Alarm:
        """Open an alarm; one of the same kind, job and VM that is open is renewed instead."""
        now = self._now()
        key = {"kind": kind, "job": job, "machine": machine, "acknowledged_at": ""}
        with self._writing() as connection:
            statement = insert(connection, tables.alarms).values(
                text=text, raised_at=now, last_at=now, **key
            )
            statement = statement.on_conflict_do_update(
                index_elements=["kind", "job", "machine"],
                index_where=tables.IS_OPEN_ALARM,
                set_={"text": text, "last_at": now},
            )
            return Alarm(*connection.execute(statement.returning(tables.alarms)).one())

    def alarms(self, *, open_only: bool = True, job: str | None = None) -> list[Alarm]:
        """Alarms, newest first."""
        query = tables.alarms.select().order_by(tables.alarms.c.id.desc())
        if open_only:
            query = query.where(tables.alarms.c.acknowledged_at == "")
        if job is not None:
            query = query.where(tables.alarms.c.job == job)
        with self._database.reading() as connection:
            return [Alarm(*row) for row in connection.execute(query)]

    def acknowledge(
        self, alarm: int | None = None, *, job: str | None = None, machine: str | None = None
    ) -> list[Alarm]:
        """Close the open alarms that match everything given; those closed by this call."""
        conditions = [tables.alarms.c.acknowledged_at == ""]
        for column, value in (("id", alarm), ("job", job), ("machine", machine)):
            if value is not None:
                conditions.append(tables.alarms.c[column] == value)
        now = self._now()
        with self._writing() as connection:
            rows = connection.execute(tables.alarms.select().where(*conditions)).all()
            connection.execute(
                tables.alarms.update()
                .where(tables.alarms.c.id.in_([row.id for row in rows]))
                .values(acknowledged_at=now)
            )
        return [replace(Alarm(*row), acknowledged_at=now) for row in rows]

    def holds_retention(self, identity: ReplicaIdentity) -> bool:
        """Whether an open changed-share alarm concerns this replica's VM: it is found by the names
        that the job's sessions knew the VM under."""
        names = (
            sa.select(tables.tasks.c.machine)
            .join(tables.sessions, tables.sessions.c.id == tables.tasks.c.session)
            .where(
                tables.tasks.c.machine_id == identity.machine_id,
                tables.sessions.c.job == identity.job,
            )
        )
        query = sa.select(tables.alarms.c.id).where(
            tables.alarms.c.kind == CHANGED_SHARE,
            tables.alarms.c.job == identity.job,
            tables.alarms.c.acknowledged_at == "",
            sa.or_(
                tables.alarms.c.machine.in_(names), tables.alarms.c.machine == identity.machine_id
            ),
        )
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def _now(self) -> str:
        return self._clock.now().astimezone(UTC).isoformat()


def _key(identity: ReplicaIdentity) -> dict[str, str]:
    return {
        "installation": identity.installation,
        "source_host": identity.source_host,
        "machine_id": identity.machine_id,
        "job": identity.job,
    }


def _is(identity: ReplicaIdentity) -> list[sa.ColumnElement[bool]]:
    return [tables.replicas.c[name] == value for name, value in _key(identity).items()]


def _known(row: sa.Row[Any]) -> KnownReplica:
    identity = ReplicaIdentity(row.installation, row.source_host, row.machine_id, row.job)
    return KnownReplica(
        identity, row.name, row.path, row.state, row.newest_point, row.points, row.seen_at
    )


def _task_values(machine: MachineReport) -> dict[str, Any]:
    return {
        "machine": machine.machine,
        "machine_id": machine.machine_id,
        "replica": machine.replica,
        "outcome": machine.outcome,
        "changed_share": changed_share(machine) if machine.outcome == "done" else None,
        "report": msgspec.json.encode(machine).decode(),
    }
