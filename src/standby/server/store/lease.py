"""One active backup server of several that share a state database.

The active one holds the lease: a row with its id, its generation and the time at which it ends by
the database's clock. Whoever takes it over raises the generation, and every transaction that
changes state for the scheduler looks at the generation first (`guard`), so that a server that was
paused and wakes up late changes nothing: its transactions fail with ServerFenced.

Movers remember the highest generation they met, and refuse a lower one (RULES 18). So that a state
database that was lost, or restored from an older copy, makes no server that they refuse, a
generation is at least the seconds since `GENERATION_EPOCH`: a server that begins later has a higher
one, whatever its database knows. A clock that is behind costs nothing, for the database's own count
goes on from where it is; only one that was *ahead* when a database was lost leaves movers with a
generation from the future, and for that there is `least_generation`.

On PostgreSQL the look is a key-share lock on the row, which a renewal does not wait for and a
takeover does: a transaction is wholly before a takeover or fails. A server that stops inside of a
transaction is cut off by PostgreSQL (`IDLE_TRANSACTION_S`). On SQLite writers take turns anyway;
one that stops inside of a transaction, which lasts a millisecond, holds up the others of its
machine until it goes on or ends: for servers on several machines there is PostgreSQL.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ServerFenced, StandbyError, StateDatabaseUnreachable
from standby.server.store import statements, tables
from standby.server.store.database import Database
from standby.server.store.line import Line

LEASE_S = 15.0
"""How long a server that died stays the active one at most. A third of it is what a renewal may
take without harm."""

GENERATION_EPOCH = datetime(2026, 10, 1, tzinfo=UTC)
"""The seconds since then fit the database's 32-bit column until 2094."""

_LOCK_TIMEOUT = "2s"


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who is active: `server` is the id of a process, `address` where its API answers,
    `expires_in_s` by the database's clock, negative when it has run out."""

    server: str
    address: str
    generation: int
    expires_in_s: float


class ServerLease:
    """A server's claim to be the active one. Thread-safe."""

    def __init__(
        self,
        database: Database,
        server: str,
        *,
        address: str = "",
        duration_s: float = LEASE_S,
        least_generation: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`server` names this very process: another start needs another id. A generation that it
        acquires is `least_generation` or higher."""
        self._database = database
        self.server = server
        self.address = address
        self.duration_s = duration_s
        self._least_generation = least_generation
        self._clock = clock
        self._generation = 0
        self._renewed_at = 0.0
        self.line = Line(database, self.guard)
        """Of the changes that this lease guards."""

    @property
    def generation(self) -> int:
        """The generation that `acquire` got, 0 before."""
        return self._generation

    @property
    def is_held(self) -> bool:
        """Whether no other server can have taken over, as far as this process's clock tells. Only
        the guard of a transaction knows for certain."""
        held_s = self._clock.monotonic() - self._renewed_at
        return self._generation > 0 and held_s < self.duration_s

    def holder(self) -> LeaseHolder | None:
        """Who is active now, None when nobody ever was or the last one gave it up."""
        row = self._look(tables.lease.c.address)
        return (
            LeaseHolder(row.server, row.address, row.generation, row.left) if row.server else None
        )

    def _look(self, *more: sa.Column[Any]) -> sa.Row[Any]:
        query = sa.select(
            tables.lease.c.server,
            tables.lease.c.generation,
            (tables.lease.c.expires_at - self._database.now_s()).label("left"),
            *more,
        )
        with self._database.reading() as connection:
            return connection.execute(query).one()

    def acquire(self) -> bool:
        """Become the active server, if nobody is; True also when this one is already. The
        generation is raised, durably, when the lease changes hands."""
        looked_at = self._clock.monotonic()
        found = self._look()
        if found.server == self.server and found.generation == self._generation:
            self.renew()
            return True
        if found.server and found.left > 0:
            return False
        try:
            with self._database.writing(wakes=True) as connection:
                taken = self._take(connection)
        except StateDatabaseUnreachable:
            # The row is locked: by a transaction of the server that is gone, which PostgreSQL ends
            # soon, or by another one that takes over.
            return False
        if taken:
            self._generation = taken
            self._renewed_at = looked_at
        return taken > 0

    def _take(self, connection: sa.Connection) -> int:
        """The new generation, 0 when another one was faster."""
        if not self._database.is_sqlite:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        left = (tables.lease.c.expires_at - self._database.now_s()).label("left")
        query = sa.select(tables.lease.c.server, tables.lease.c.generation, left)
        row = connection.execute(query.with_for_update()).one()
        if row.server and row.left > 0:
            return 0
        since_epoch = self._clock.now() - GENERATION_EPOCH
        generation = max(
            int(row.generation) + 1, int(since_epoch.total_seconds()), self._least_generation
        )
        connection.execute(
            tables.lease.update().values(
                server=self.server,
                address=self.address,
                generation=generation,
                expires_at=self._database.now_s() + self.duration_s,
            )
        )
        return generation

    def renew(self) -> None:
        """Hold it for its whole duration from now; ServerFenced when another one has it."""
        looked_at = self._clock.monotonic()
        with self._database.writing(is_durable=False) as connection:
            done = connection.execute(
                tables.lease.update()
                .where(*self._is_ours())
                .values(expires_at=self._database.now_s() + self.duration_s)
            )
            if done.rowcount == 0:
                raise self._fenced(connection)
        self._renewed_at = looked_at

    def release(self) -> None:
        """Give it up, so that another one need not wait; nothing when it is not held."""
        with self._database.writing(wakes=True) as connection:
            connection.execute(
                tables.lease.update()
                .where(*self._is_ours())
                .values(server="", address="", expires_at=0.0)
            )
        self._generation = 0

    def guard(self, connection: sa.Connection) -> None:
        """Raise ServerFenced unless this server is the active one; it stays so until the
        transaction of `connection` has ended."""
        mine = {"my_server": self.server, "my_generation": self._generation}
        if connection.execute(statements.GUARD, mine).first() is None:
            raise self._fenced(connection)

    def _is_ours(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            tables.lease.c.server == self.server,
            tables.lease.c.generation == self._generation,
        )

    def _fenced(self, connection: sa.Connection) -> ServerFenced:
        row = connection.execute(sa.select(tables.lease.c.server, tables.lease.c.generation)).one()
        return ServerFenced(self.server, self._generation, row.generation, row.server)


class LeaseKeeper:
    """While entered, renews the lease every third of its duration from a thread of its own. Calls
    `on_lost` once when another server has taken over, or when the lease ran out without the
    database answering: whoever is active then must stop its work."""

    def __init__(self, lease: ServerLease, on_lost: Callable[[StandbyError], None]) -> None:
        self._lease = lease
        self._on_lost = on_lost
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease keeper", daemon=True)

    def _keep(self) -> None:
        while not self._end.wait(self._lease.duration_s / 3):
            try:
                self._lease.renew()
            except ServerFenced as exc:
                self._on_lost(exc)
                return
            except StandbyError as exc:
                if not self._lease.is_held:
                    self._on_lost(exc)
                    return

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        with contextlib.suppress(RuntimeError):  # on_lost may leave the block from that thread
            self._thread.join()
