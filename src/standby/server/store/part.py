"""What the parts of the store share: the database, the time, and the lease that guards writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC

import sqlalchemy as sa

from standby.clock import Clock
from standby.server.store.database import Database
from standby.server.store.joint import AT_ONCE, JointWrites, Write
from standby.server.store.lease import ServerLease


class StorePart:
    """One subject of the state database; `Store` is all of them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lease: ServerLease | None = None
        self._write_jointly()

    def check(self) -> None:
        """Raise ServerFenced where this is a `guarded` store and another server is active now."""
        if self._lease is not None:
            with self._database.writing(is_durable=False) as connection:
                self._lease.guard(connection)

    @contextlib.contextmanager
    def _writing(self, *, wakes: bool = False, is_durable: bool = True) -> Iterator[sa.Connection]:
        with self._database.writing(wakes=wakes, is_durable=is_durable) as connection:
            if self._lease is not None:
                self._lease.guard(connection)
            yield connection

    def _write_jointly(self) -> None:
        """Begin lines of joint writes: those of one line look at one lease."""
        self._joint = JointWrites(self._write_all, self._at_once)

    @property
    def _at_once(self) -> int:
        return 1 if self._database.is_sqlite else AT_ONCE

    def _write_together(self, write: Write) -> None:
        """As `_writing` does, durably, in one transaction with what other threads write."""
        self._joint.put(write)

    def _write_all(self, writes: Sequence[Write]) -> None:
        with self._writing() as connection:
            for write in writes:
                write(connection)

    def _now(self) -> str:
        return self._clock.now().astimezone(UTC).isoformat()
