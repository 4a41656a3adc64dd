"""The engine of the state database: opening, transactions, one door for its errors."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc

from standby.errors import StateDatabaseError, StateDatabaseUnreachable
from standby.files import make_folder_durably
from standby.server.store import schema, statements
from standby.server.store.line import Line
from standby.server.store.opening import (
    ASKS,
    BUSY_TIMEOUT_S,
    WRITES,
    database_name,
    database_url,
    make_engine,
)

CHANNEL = "standby"
"""The channel of PostgreSQL's notifications: something was queued, asked or ended."""


class Database:
    """A SQLite file, or a database by URL. Thread-safe."""

    def __init__(self, database: Path | str) -> None:
        """Open, make the tables where there are none, upgrade an older schema; StateDatabaseError
        for a file that is damaged, another program's, or of a newer schema."""
        if isinstance(database, Path):
            make_folder_durably(database.absolute().parent)
        url = database_url(database)
        self.url = url
        self.name = database_name(url)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.file = Path(url.database) if self.is_sqlite and url.database else None
        self._listeners: list[Callable[[], None]] = []
        self._turn = threading.Lock()
        self.line = Line(self)
        """Of changes that no lease guards."""
        self._engine = make_engine(url, is_durable=True)
        self._quick_engine = make_engine(url, is_durable=False)
        # Options of an engine cost its connections nothing.
        asking: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
        reading: dict[str, Any] = {
            "isolation_level": "REPEATABLE READ",
            "postgresql_readonly": True,
        }
        if self.is_sqlite:
            asking, reading = {ASKS: True}, {}
        self._asking_engine = self._engine.execution_options(**asking)
        self._reading_engine = self._engine.execution_options(**reading)
        self._writing_engines = {
            True: self._engine.execution_options(**{WRITES: True}),
            False: self._quick_engine.execution_options(**{WRITES: True}),
        }
        try:
            with self.errors():
                schema.prepare(self._engine, self.name, self.file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        self._engine.dispose()
        self._quick_engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection in a transaction: all statements see one state."""
        with self.errors(), self._reading_engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def asking(self) -> Iterator[sa.Connection]:
        """A connection for one statement: as `reading`, where the database is asked once instead of
        being told of a transaction's begin and end too. With PostgreSQL it may write, durably."""
        with self.errors(), self._asking_engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, *, is_durable: bool = True, wakes: bool = False) -> Iterator[sa.Connection]:
        """All statements inside take effect together or not at all. On stable storage when the
        block has ended; without `is_durable`, on that of the next durable one. `wakes` whoever
        waits for changes (`Wakeups`), of any process."""
        engine = self._writing_engines[is_durable]
        with self._in_turn(), self.errors(), engine.connect() as connection:
            with connection.begin():
                yield connection
                if wakes:
                    self._count_change(connection)
        if wakes:
            for listener in list(self._listeners):
                listener()

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """SQLite takes one writer at a time; the others sleep and look again, 100 ms each time at
        the end, while those that come later pass them by. So threads of one process stand in line,
        but for no longer than SQLite waits for other processes."""
        if not self.is_sqlite:
            yield
            return
        is_ours = self._turn.acquire(timeout=BUSY_TIMEOUT_S)
        try:
            yield
        finally:
            if is_ours:
                self._turn.release()

    def _count_change(self, connection: sa.Connection) -> None:
        if self.is_sqlite:
            connection.execute(statements.COUNT_CHANGE)
        else:
            connection.exec_driver_sql(f"NOTIFY {CHANNEL}")

    @contextlib.contextmanager
    def own_connection(self) -> Iterator[sa.Connection]:
        """A connection of its own outside of any transaction and of the pool: what it holds on the
        database's side (locks, listening) ends with the block, or with the process."""
        with self.errors():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                connection.detach()
                yield connection
            finally:
                connection.close()

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each transaction of this process that wakes."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """No longer."""
        self._listeners.remove(listener)

    def now_s(self) -> sa.ColumnElement[float]:
        """The database's own time, in seconds: the same for all servers that share it."""
        if self.is_sqlite:
            return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float)
        return sa.literal_column(
            "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)", sa.Float
        )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of the database as ours."""
        try:
            yield
        except sqlalchemy.exc.DBAPIError as exc:
            raise self._as_ours(exc) from exc
        except sqlalchemy.exc.TimeoutError as exc:
            raise StateDatabaseUnreachable(self.name, "all connections are busy") from exc

    def _as_ours(self, exc: sqlalchemy.exc.DBAPIError) -> StateDatabaseError:
        text = " ".join(str(exc.orig).split())
        if self.is_sqlite:
            return StateDatabaseError(
                self.name,
                text,
                "If it is damaged, move it away: sessions and alarms are lost with it, replicas"
                " are not",
            )
        # Whatever is not about a statement of ours: refused, restarted, cut off, timed out.
        if exc.connection_invalidated or isinstance(exc, sqlalchemy.exc.OperationalError):
            return StateDatabaseUnreachable(
                self.name, text, "Is PostgreSQL running, and is the URL right?"
            )
        return StateDatabaseError(self.name, text)


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT that knows ON CONFLICT, which both databases spell alike."""
    return _insert(connection.dialect.name, table)


def _insert(dialect: str, table: sa.Table) -> Any:
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite  # the one that is needed, for each takes 50 ms

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def upsert(
    connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]
) -> None:
    """Insert the row of `key` (the table's primary key), or update it: one statement, so that two
    processes cannot come between each other."""
    upsert_all(connection, table, tuple(key), [{**key, **values}])


def upsert_all(
    connection: sa.Connection, table: sa.Table, key: tuple[str, ...], rows: list[dict[str, Any]]
) -> None:
    """The same for several rows, each with its key; all name the same columns."""
    values = tuple(name for name in rows[0] if name not in key)
    statement = _upsert(connection.dialect.name, table, key, values)
    connection.execute(statement, rows[0] if len(rows) == 1 else rows)


@functools.cache
def _upsert(dialect: str, table: sa.Table, key: tuple[str, ...], values: tuple[str, ...]) -> Any:
    """Built once: that costs more than running it."""
    statement = _insert(dialect, table)
    return statement.on_conflict_do_update(
        index_elements=[table.c[name] for name in key],
        set_={name: statement.excluded[name] for name in values},
    )
