"""Checkpoints that may still be there, and transfers that another process can go on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from standby.clock import Clock, new_uuid
from standby.errors import UnknownName
from standby.model.machine import Checkpoint
from standby.server.store import statements, tables
from standby.server.store.database import Database
from standby.server.store.joint import AT_ONCE, JointWrites
from standby.server.store.part import StorePart
from standby.server.store.runs import encoded
from standby.server.store.tables import CheckpointIntent

_OF_A_VM = (
    tables.journeys.c.job == sa.bindparam("my_job"),
    tables.journeys.c.machine_id == sa.bindparam("my_machine"),
)
_JOURNEY = sa.select(tables.journeys.c.journey).where(*_OF_A_VM)
_DROP_JOURNEY = tables.journeys.delete().where(*_OF_A_VM)

_Told = tuple[str, str, Callable[[], tuple[str, str]]]
"""A journey that waits to be recorded: job, VM, and how to get (intent, journey)."""


class Checkpoints(StorePart):
    """Checkpoint intents and journeys. Its methods are the store's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__(database, clock)
        self._join_journeys()

    # --- checkpoint intents ------------------------------------------------------------------

    def record_intent(self, host: str, machine_id: str, session: str, recorded_at: str) -> str:
        """Record, before a checkpoint is made, that it will be; the intent's id."""
        intent = str(new_uuid())
        values = {
            "id": intent,
            "host": host,
            "machine_id": machine_id,
            "session": session,
            "recorded_at": recorded_at,
            "state": "intent",
            "checkpoint": "",
        }

        def write(connection: sa.Connection) -> None:
            connection.execute(tables.intents.insert(), values)

        self._line.write(write)
        return intent

    def checkpoint_made(self, intent: str, checkpoint: Checkpoint) -> None:
        """Record what was made for the intent."""
        text = msgspec.json.encode(checkpoint).decode()
        self._set_intent(intent, state="made", checkpoint=text)

    def checkpoint_released(self, intent: str) -> None:
        """Record that nothing is left of it; harmless when repeated."""
        self._set_intent(intent, state="released", checkpoint="")

    def _set_intent(self, intent: str, **values: str) -> None:
        def write(connection: sa.Connection) -> None:
            done = connection.execute(
                tables.intents.update().where(tables.intents.c.id == intent).values(**values)
            )
            if done.rowcount == 0:
                raise UnknownName("checkpoint intent", intent)

        self._line.write(write)

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

    def save_journey(
        self, job: str, machine_id: str, newest: Callable[[], tuple[str, str]]
    ) -> None:
        """Record how far the VM's transfer by movers of other machines is, so that another process
        can go on with it. One per job and VM, and one call at a time for it. `newest()` is the
        checkpoint's intent and the journey as text; it is asked for when the transaction begins, in
        whatever thread, and may be again."""
        told = (job, machine_id, newest)
        if self._database.is_sqlite or self._lease is None:
            self._line.write_all(self._save_journeys, told)
        else:
            self._joint_journeys.put(told)

    def _journeys(self, told: Sequence[_Told]) -> str:
        """Their rows as JSON."""
        now = self._now()
        rows = []
        for job, machine_id, newest in told:
            intent, journey = newest()
            row = {"job": job, "machine_id": machine_id, "intent": intent, "journey": journey}
            rows.append({**row, "changed_at": now})
        return encoded(rows)

    def _save_journeys(self, connection: sa.Connection, told: Sequence[_Told]) -> Sequence[None]:
        statement = statements.SAVE_JOURNEYS[connection.dialect.name]
        connection.execute(statement, {"rows": self._journeys(told)})
        return [None] * len(told)

    def _join_journeys(self) -> None:
        """Begin a line for those under the lease in PostgreSQL."""
        self._joint_journeys: JointWrites[_Told, None] = JointWrites(self._save_mine, AT_ONCE)

    def _save_mine(self, told: Sequence[_Told]) -> Sequence[None]:
        """One statement, because every dispatch waits for this."""
        assert self._lease is not None
        values: dict[str, Any] = {
            "rows": self._journeys(told),
            "my_server": self._lease.server,
            "my_generation": self._lease.generation,
        }
        with self._database.asking() as connection:
            if connection.execute(statements.SAVE_MY_JOURNEYS, values).rowcount:
                return [None] * len(told)
        with self._writing() as connection:  # where the lease is lost: raises
            return self._save_journeys(connection, told)

    def journey(self, job: str, machine_id: str) -> str:
        """What `save_journey` recorded last, '' for nothing."""
        key = {"my_job": job, "my_machine": machine_id}
        with self._database.asking() as connection:
            return str(connection.execute(_JOURNEY, key).scalar() or "")

    def journey_intents(self) -> dict[str, tuple[str, str]]:
        """(job, time of recording) of each checkpoint intent that a journey needs."""
        query = sa.select(
            tables.journeys.c.intent, tables.journeys.c.job, tables.journeys.c.changed_at
        )
        with self._database.reading() as connection:
            return {row.intent: (row.job, row.changed_at) for row in connection.execute(query)}

    def drop_journey(self, job: str, machine_id: str) -> None:
        """The transfer has ended, or is not gone on with."""
        key = {"my_job": job, "my_machine": machine_id}
        self._line.write_all(_drop_journeys, key)


def _drop_journeys(connection: sa.Connection, keys: Sequence[dict[str, str]]) -> Sequence[None]:
    connection.execute(_DROP_JOURNEY, list(keys))
    return [None] * len(keys)
