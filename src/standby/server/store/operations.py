"""The API's operations on record: how each ended is known after the server that began it is gone.

Whoever runs one says every few seconds that it still does (`beat`), by the database's clock; one
that nobody spoke of for `SILENCE_S` ended with its server. Any server on the database may ask for
its end (`ask_to_cancel`): who runs it hears of that at its next beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from standby.clock import Clock
from standby.errors import UnknownName
from standby.server.store import tables
from standby.server.store.database import Database

SILENCE_S = 30.0
KEPT = 200
"""How many are remembered."""

RUNNING = "running"
_COLUMNS = tables.operations.c


@dataclass(frozen=True, slots=True)
class StoredOperation:
    """An operation as the database has it. `steps` are [label, done, total]; `outcome` is the JSON
    text of its result or, where it did not end well, of its error. `is_silent`: it is on record as
    running, and nobody runs it any more."""

    id: str
    kind: str
    name: str
    started_by: str
    started_at: str
    ended_at: str
    state: str
    steps: list[tuple[str, int, int]]
    outcome: str
    is_silent: bool


class OperationBook:
    """Operations by id. Thread-safe."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def begin(self, owner: str, id: str, kind: str, name: str, by: str) -> str:
        """Record that `owner`, a server's process, begins it; the time. The oldest that have ended
        are forgotten."""
        now = self._clock.now().isoformat()
        with self._database.writing() as connection:
            connection.execute(
                tables.operations.insert().values(
                    id=id,
                    kind=kind,
                    name=name,
                    started_by=by,
                    started_at=now,
                    ended_at="",
                    state=RUNNING,
                    steps="[]",
                    outcome="",
                    owner=owner,
                    seen_at=self._database.now_s(),
                    is_asked_to_end=0,
                )
            )
            newest = sa.select(_COLUMNS.id).order_by(_COLUMNS.started_at.desc()).limit(KEPT)
            connection.execute(
                tables.operations.delete().where(
                    _COLUMNS.state != RUNNING, _COLUMNS.id.not_in(newest)
                )
            )
        return now

    def beat(self, owner: str, going: Mapping[str, list[tuple[str, int, int]]]) -> set[str]:
        """That the owner still runs these, and how far each is; those that are asked to end."""
        with self._database.writing(is_durable=False) as connection:
            for id, steps in going.items():
                connection.execute(
                    tables.operations.update()
                    .where(_COLUMNS.id == id, _COLUMNS.owner == owner)
                    .values(
                        seen_at=self._database.now_s(), steps=msgspec.json.encode(steps).decode()
                    )
                )
            asked = sa.select(_COLUMNS.id).where(
                _COLUMNS.owner == owner, _COLUMNS.state == RUNNING, _COLUMNS.is_asked_to_end == 1
            )
            return set(connection.execute(asked).scalars())

    def end(
        self, id: str, state: str, outcome: str, steps: list[tuple[str, int, int]] | None = None
    ) -> str:
        """Record how a running one ended; the time, of the first end where it had one."""
        now = self._clock.now().isoformat()
        values = {"state": state, "outcome": outcome, "ended_at": now}
        if steps is not None:
            values["steps"] = msgspec.json.encode(steps).decode()
        with self._database.writing() as connection:
            connection.execute(
                tables.operations.update()
                .where(_COLUMNS.id == id, _COLUMNS.state == RUNNING)
                .values(values)
            )
            found = connection.execute(sa.select(_COLUMNS.ended_at).where(_COLUMNS.id == id))
            return str(found.scalar() or now)

    def ask_to_cancel(self, id: str) -> None:
        """Have whoever runs it end it."""
        with self._database.writing() as connection:
            connection.execute(
                tables.operations.update().where(_COLUMNS.id == id).values(is_asked_to_end=1)
            )

    def get(self, id: str) -> StoredOperation:
        """The operation of that id, or UnknownName."""
        with self._database.reading() as connection:
            row = connection.execute(self._query().where(_COLUMNS.id == id)).first()
        if row is None:
            raise UnknownName("operation", id, tuple(item.id for item in self.all(5)))
        return _operation_of(row)

    def all(self, limit: int = KEPT) -> list[StoredOperation]:
        """Newest first."""
        query = self._query().order_by(_COLUMNS.started_at.desc(), _COLUMNS.id).limit(limit)
        with self._database.reading() as connection:
            return [_operation_of(row) for row in connection.execute(query)]

    def _query(self) -> sa.Select[Any]:
        silence = (self._database.now_s() - _COLUMNS.seen_at).label("silence")
        return sa.select(tables.operations, silence)


def _operation_of(row: sa.Row[Any]) -> StoredOperation:
    return StoredOperation(
        row.id,
        row.kind,
        row.name,
        row.started_by,
        row.started_at,
        row.ended_at,
        row.state,
        msgspec.json.decode(row.steps, type=list[tuple[str, int, int]]),
        row.outcome,
        row.state == RUNNING and row.silence > SILENCE_S,
    )
