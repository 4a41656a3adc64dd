"""Sessions as they are reported, which of them were asked to stop, and what they teach."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from standby.errors import UnknownName
from standby.model.replica import ReplicaIdentity
from standby.model.report import MachineReport, SessionReport
from standby.server.retention import HISTORY, changed_share
from standby.server.store import tables
from standby.server.store.database import upsert
from standby.server.store.part import StorePart

_MY_SESSION: sa.BindParameter[str] = sa.bindparam("my_session")
_SESSION = sa.select(tables.sessions.c.id).where(tables.sessions.c.id == _MY_SESSION)
_STOP = tables.stop_requests.select().where(tables.stop_requests.c.session == _MY_SESSION)
_FIGURES = sa.select(tables.tasks.c.machine_id, tables.tasks.c.report).where(
    tables.tasks.c.session == _MY_SESSION, tables.tasks.c.outcome == ""
)
"""What `save_figures` recorded of VMs that are at work."""
_DROP_TASKS = tables.tasks.delete().where(tables.tasks.c.session == _MY_SESSION)


class Reports(StorePart):
    """The reports of sessions. Its methods are the store's."""

    def begin_session(self, report: SessionReport) -> None:
        """Record that the session has begun; until `save_session` with an end it is unfinished."""
        self.save_session(report)

    def save_session(self, report: SessionReport) -> None:
        """Record the session as `report` has it, replacing what was recorded before; but of a VM
        that has no outcome yet what `save_figures` recorded stays."""
        values = {
            "job": report.job,
            "started_at": report.started_at,
            "ended_at": report.ended_at,
            "outcome": report.outcome,
        }
        machines = list(report.machines)
        rows = [
            {"session": report.id, "position": position, **_task_values(machine)}
            for position, machine in enumerate(machines)
        ]
        is_bare = [not machine.outcome and not machine.disks for machine in machines]
        key = {"my_session": report.id}

        def write(connection: sa.Connection) -> None:
            upsert(connection, tables.sessions, {"id": report.id}, values)
            figures: dict[str, str] = {}
            if any(is_bare):
                told = connection.execute(_FIGURES, key)
                figures = {row.machine_id: row.report for row in told}
            connection.execute(_DROP_TASKS, key)
            kept = [
                {**row, "report": figures.get(row["machine_id"], row["report"])} if bare else row
                for row, bare in zip(rows, is_bare, strict=True)
            ]
            if kept:
                connection.execute(tables.tasks.insert(), kept)

        self._write_together(write)

    def save_figures(self, session: str, machine: MachineReport) -> None:
        """Record how far a VM is that is at work: of a session that is killed, the report says
        that. Nothing happens where the session does not list it, or it has an outcome. Durable with
        the next transaction that is: a power cut may cost it."""
        columns = tables.tasks.c
        with self._writing(is_durable=False) as connection:
            connection.execute(
                tables.tasks.update()
                .where(
                    columns.session == session,
                    columns.machine_id == machine.machine_id,
                    columns.outcome == "",
                )
                .values(report=msgspec.json.encode(machine).decode())
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
