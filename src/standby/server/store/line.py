"""The one line in which a server's threads change the state database.

SQLite takes one writer at a time, and every statement and commit of it lets other threads go on in
between; so what several threads want to change goes into one transaction, with one look at the
lease and one commit, and nobody waits for more than the transaction under way and its own. Changes
that need no sync of the disk stand in the same line: those that do hold the file meanwhile.

PostgreSQL has many writers: there the durable ones are joined, and others wait for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from standby.server.store.joint import AT_ONCE, JointWrites

if TYPE_CHECKING:
    from standby.server.store.database import Database

Value = TypeVar("Value")
Found = TypeVar("Found")
Write = Callable[[sa.Connection], Found]
"""Changes rows over a connection, in any thread, and may be called again after a rollback."""
WriteAll = Callable[[sa.Connection, Sequence[Value]], Sequence[Found]]
"""The same for the values of several threads; what each of them gets, in that order."""


@dataclass(frozen=True, slots=True)
class _Change:
    write: WriteAll[Any, Any]
    value: Any
    is_durable: bool
    wakes: bool


class Line:
    """All changes of one process under one lease, or under none. Thread-safe."""

    def __init__(
        self, database: Database, guard: Callable[[sa.Connection], None] | None = None
    ) -> None:
        """`guard` is called in every transaction and raises where nothing may be changed."""
        self._database = database
        self._guard = guard
        self._joint: JointWrites[_Change, Any] = JointWrites(
            self._transact, 1 if database.is_sqlite else AT_ONCE
        )

    @property
    def waiting(self) -> int:
        """How many wait for the next transaction."""
        return self._joint.waiting

    def write(self, write: Write[Found], *, is_durable: bool = True, wakes: bool = False) -> Found:
        """What `write` returns, when its transaction has ended: on stable storage if `is_durable`;
        `wakes` as in `Database.writing`. Raises what it does."""
        found: Found = self.write_all(_each, write, is_durable=is_durable, wakes=wakes)
        return found

    def write_all(
        self,
        write: WriteAll[Value, Found],
        value: Value,
        *,
        is_durable: bool = True,
        wakes: bool = False,
    ) -> Found:
        """As `write`, of something that is done for several threads at once: `write` gets the
        values of all that call with it."""
        change = _Change(write, value, is_durable, wakes)
        found: Found
        if is_durable or self._database.is_sqlite:
            found = self._joint.put(change)
        else:
            (found,) = self._transact([change])
        return found

    def _transact(self, changes: Sequence[_Change]) -> list[Any]:
        """Have them all take effect in one transaction, or none; what each returns."""
        alike: dict[WriteAll[Any, Any], list[int]] = {}
        for place, change in enumerate(changes):
            alike.setdefault(change.write, []).append(place)
        found: list[Any] = [None] * len(changes)
        with self._database.writing(
            is_durable=any(change.is_durable for change in changes),
            wakes=any(change.wakes for change in changes),
        ) as connection:
            if self._guard is not None:
                self._guard(connection)
            for write, places in alike.items():
                results = write(connection, [changes[place].value for place in places])
                for place, result in zip(places, results, strict=True):
                    found[place] = result
        return found


def _each(connection: sa.Connection, writes: Sequence[Write[Any]]) -> list[Any]:
    """What each of them returns."""
    return [write(connection) for write in writes]
