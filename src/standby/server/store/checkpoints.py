"""Checkpoints that may still be there, and transfers that another process can go on with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from standby.clock import new_uuid
from standby.errors import UnknownName
from standby.model.machine import Checkpoint
from standby.server.store import statements, tables
from standby.server.store.database import upsert
from standby.server.store.joint import JointWrites
from standby.server.store.part import StorePart
from standby.server.store.tables import CheckpointIntent

_OF_A_VM = (
    tables.journeys.c.job == sa.bindparam("my_job"),
    tables.journeys.c.machine_id == sa.bindparam("my_machine"),
)
_JOURNEY = sa.select(tables.journeys.c.journey).where(*_OF_A_VM)
_JOURNEY_COLUMNS = tuple(column.name for column in tables.journeys.c)
_DROP_JOURNEY = tables.journeys.delete().where(*_OF_A_VM)


class Checkpoints(StorePart):
    """Checkpoint intents and journeys. Its methods are the store's."""

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

        self._write_together(write)
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

        self._write_together(write)

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
        self._journeys.put((job, machine_id, intent, journey, self._now()))

    def _write_jointly(self) -> None:
        super()._write_jointly()
        self._journeys = JointWrites(self._save_journeys, self._at_once)

    def _save_journeys(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Every dispatch waits for this."""
        columns = dict(zip(_JOURNEY_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        if not self._database.is_sqlite and self._lease is not None:
            mine = {"my_server": self._lease.server, "my_generation": self._lease.generation}
            with self._database.asking() as connection:
                saved = connection.execute(statements.SAVE_JOURNEYS, {**columns, **mine}).all()
            if saved:
                return
        with self._writing() as connection:  # where the lease is lost: raises
            for row in rows:
                values = dict(zip(_JOURNEY_COLUMNS, row, strict=True))
                key = {name: values.pop(name) for name in ("job", "machine_id")}
                upsert(connection, tables.journeys, key, values)

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

        def write(connection: sa.Connection) -> None:
            connection.execute(_DROP_JOURNEY, key)

        self._write_together(write)
