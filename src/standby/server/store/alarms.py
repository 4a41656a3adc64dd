"""Alarms: open until a person acknowledges them."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from standby.model.replica import ReplicaIdentity
from standby.server.store import tables
from standby.server.store.database import insert
from standby.server.store.part import StorePart
from standby.server.store.tables import Alarm

CHANGED_SHARE = "changed share"
TRACKER = "tracker"
"""The kind of alarm that holds retention until it is acknowledged (RULES 17)."""

_LATER = (
    tables.alarms.select()
    .where(tables.alarms.c.id > sa.bindparam("known"), tables.alarms.c.acknowledged_at == "")
    .order_by(tables.alarms.c.id)
)


class Alarms(StorePart):
    """The alarms. Its methods are the store's."""

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

    def alarms_after(self, alarm: int) -> list[Alarm]:
        """Open alarms with a higher id than that, the oldest first."""
        with self._database.asking() as connection:
            return [Alarm(*row) for row in connection.execute(_LATER, {"known": alarm})]

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

    def tracker_distrust(self, job: str, machine: str) -> str:
        """Why the host's change tracker is not believed for the VM, '' where it may be: an open
        alarm says so."""
        for alarm in self.alarms(job=job):
            if (alarm.kind, alarm.machine) == (TRACKER, machine):
                return f"the host's change tracker lied on {alarm.raised_at[:10]}; see the alarm"
        return ""

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
