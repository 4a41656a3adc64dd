"""Sessions as they are reported, which of them were asked to stop, and what they teach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from standby.errors import UnknownName
from standby.model.replica import ReplicaIdentity
from standby.model.report import MachineReport, SessionReport
from standby.server.retention import HISTORY, changed_share
from standby.server.store import tables
from standby.server.store.database import upsert, upsert_all
from standby.server.store.part import StorePart

_MY_SESSION: sa.BindParameter[str] = sa.bindparam("my_session")
_SESSION = sa.select(tables.sessions.c.id).where(tables.sessions.c.id == _MY_SESSION)
_STOP = tables.stop_requests.select().where(tables.stop_requests.c.session == _MY_SESSION)
_FIGURES = sa.select(tables.tasks.c.machine_id, tables.tasks.c.report).where(
    tables.tasks.c.session == _MY_SESSION, tables.tasks.c.outcome == ""
)
"""What `save_figures` recorded of VMs that are at work."""
_SAVE_FIGURES = (
    tables.tasks.update()
    .where(
        tables.tasks.c.session == _MY_SESSION,
        tables.tasks.c.machine_id == sa.bindparam("my_machine"),
        tables.tasks.c.outcome == "",
    )
    .values(report=sa.bindparam("new_report"))
)
_DROP_TASKS = tables.tasks.delete().where(tables.tasks.c.session == _MY_SESSION)


class Reports(StorePart):
    """The reports of sessions. Its methods are the store's."""

    def begin_session(self, report: SessionReport) -> None:
        """Record that the session has begun; until `save_session` with an end it is unfinished."""
        self.save_session(report)

    def save_session(self, report: SessionReport) -> None:
        """Record the session as `report` has it, replacing what was recorded before; but of a VM
        that has no outcome yet what `save_figures` recorded stays."""
        self._line.write_all(_save_sessions, _Saved(report))

    def save_figures(self, session: str, machine: MachineReport) -> None:
        """Record how far a VM is that is at work: of a session that is killed, the report says
        that. Nothing happens where the session does not list it, or it has an outcome. Durable with
        the next transaction that is: a power cut may cost it."""
        values = {
            "my_session": session,
            "my_machine": machine.machine_id,
            "new_report": msgspec.json.encode(machine).decode(),
        }

        def write(connection: sa.Connection) -> None:
            connection.execute(_SAVE_FIGURES, values)

        self._line.write(write, is_durable=False)

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

    def has_session(self, session: str) -> bool:
        """Whether there is one of that id."""
        with self._database.asking() as connection:
            return connection.execute(_SESSION, {"my_session": session}).first() is not None

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
        with self._database.asking() as connection:
            return connection.execute(_STOP, {"my_session": session}).first() is not None

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


def _task_values(machine: MachineReport) -> dict[str, Any]:
    return {
        "machine": machine.machine,
        "machine_id": machine.machine_id,
        "replica": machine.replica,
        "outcome": machine.outcome,
        "changed_share": changed_share(machine) if machine.outcome == "done" else None,
        "report": msgspec.json.encode(machine).decode(),
    }


class _Saved:
    """A session's rows."""

    def __init__(self, report: SessionReport) -> None:
        self.key = {"my_session": report.id}
        self.row = {
            "id": report.id,
            "job": report.job,
            "started_at": report.started_at,
            "ended_at": report.ended_at,
            "outcome": report.outcome,
        }
        machines = list(report.machines)
        self.tasks = [
            {"session": report.id, "position": position, **_task_values(machine)}
            for position, machine in enumerate(machines)
        ]
        self.is_bare = [not machine.outcome and not machine.disks for machine in machines]
        """Of which tasks nothing is known yet."""

    def kept(self, connection: sa.Connection) -> list[dict[str, Any]]:
        """The tasks, with the figures that the state database has of those."""
        if not any(self.is_bare):
            return self.tasks
        told = connection.execute(_FIGURES, self.key)
        figures = {row.machine_id: row.report for row in told}
        return [
            {**row, "report": figures.get(row["machine_id"], row["report"])} if bare else row
            for row, bare in zip(self.tasks, self.is_bare, strict=True)
        ]


def _save_sessions(connection: sa.Connection, saved: Sequence[_Saved]) -> Sequence[None]:
    """Each session once, as it was saved last, and always in one order: two transactions that save
    the same ones do not wait for each other in a ring."""
    latest = {session.row["id"]: session for session in saved}
    sessions = [latest[name] for name in sorted(latest)]
    upsert_all(connection, tables.sessions, ("id",), [session.row for session in sessions])
    tasks = [row for session in sessions for row in session.kept(connection)]
    connection.execute(_DROP_TASKS, [session.key for session in sessions])
    if tasks:
        connection.execute(tables.tasks.insert(), tasks)
    return [None] * len(saved)
