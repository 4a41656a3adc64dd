"""The engine of the state database: opening, schema, transactions, one door for its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy import event

from standby.errors import StateDatabaseError
from standby.files import make_folder_durably
from standby.server.store import tables

BUSY_TIMEOUT_S = 60
"""Every transaction here takes milliseconds; a longer wait means something is wrong."""

_WRITES = "standby_writes"


class Database:
    """A SQLite file, or a database URL. Thread-safe."""

    def __init__(self, database: Path | str) -> None:
        """Open, and make the tables where there are none; StateDatabaseError for a file that is
        damaged, another program's, or of another schema."""
        if isinstance(database, Path):
            make_folder_durably(database.absolute().parent)
            url = sa.URL.create("sqlite", database=str(database.absolute()))
        else:
            url = sa.make_url(database)
        self.name = url.database or str(url)
        self._engine = _engine(url)
        try:
            self._prepare()
        except BaseException:
            self._engine.dispose()
            raise

    def _prepare(self) -> None:
        with self.writing() as connection:
            names = sa.inspect(connection).get_table_names()
            if names and tables.version.name not in names:
                raise StateDatabaseError(
                    self.name,
                    "is another program's database",
                    "Choose another file as state_database in [standby]",
                )
            tables.metadata.create_all(connection)
            version = connection.execute(sa.select(tables.version.c.version)).scalar()
            if version is None:
                connection.execute(tables.version.insert().values(version=tables.SCHEMA_VERSION))
            elif version != tables.SCHEMA_VERSION:
                raise StateDatabaseError(
                    self.name,
                    f"has schema {version}, this release knows {tables.SCHEMA_VERSION}",
                    "Use the release that wrote it",
                )

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        self._engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection in a transaction: all statements see one state."""
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """All statements inside take effect together, on stable storage, or not at all."""
        with self._errors(), self._engine.connect() as connection:
            with connection.execution_options(**{_WRITES: True}).begin():
                yield connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.DBAPIError as exc:
            raise StateDatabaseError(
                self.name,
                str(exc.orig),
                "If it is damaged, move it away: sessions and alarms are lost with it, replicas"
                " are not",
            ) from exc


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        # SQLAlchemy says when transactions begin; the driver's own guesses are off.
        connection.isolation_level = None
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}").close()

    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # A transaction that turns from reading to writing can be refused without waiting, so
        # writers say what they are.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def put(
    connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]
) -> None:
    """Update the row of `key`, or insert it: the portable form of an upsert."""
    conditions = [table.c[name] == value for name, value in key.items()]
    if connection.execute(table.update().where(*conditions).values(**values)).rowcount == 0:
        connection.execute(table.insert().values(**key, **values))
