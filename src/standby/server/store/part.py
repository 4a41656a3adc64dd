"""What the parts of the store share: the database, the time, and the lease that guards writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC

import sqlalchemy as sa

from standby.clock import Clock
from standby.server.store.database import Database
from standby.server.store.lease import ServerLease
from standby.server.store.line import Line


class StorePart:
    """One subject of the state database; `Store` is all of them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lease: ServerLease | None = None

    def check(self) -> None:
        """Raise ServerFenced where this is a `guarded` store and another server is active now."""
        if self._lease is not None:
            with self._database.writing(is_durable=False) as connection:
                self._lease.guard(connection)

    @property
    def _line(self) -> Line:
        """Where changes are made in one transaction with those of other threads."""
        return self._database.line if self._lease is None else self._lease.line

    @contextlib.contextmanager
    def _writing(self, *, wakes: bool = False, is_durable: bool = True) -> Iterator[sa.Connection]:
        with self._database.writing(wakes=wakes, is_durable=is_durable) as connection:
            if self._lease is not None:
                self._lease.guard(connection)
            yield connection

    def _now(self) -> str:
        return self._clock.now().astimezone(UTC).isoformat()
