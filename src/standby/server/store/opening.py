"""How a state database is named: a SQLite file, or PostgreSQL by URL; and its engine.

A URL may hold a password, so none is ever shown: messages carry the host and the database's name.
"""

from __future__ import annotations

import importlib
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy import event

from standby.clock import SYSTEM_CLOCK
from standby.errors import ConfigurationError, StateDatabaseError

POOL = {"pool_size": 10, "max_overflow": 5}
"""Connections that stay, and that come and go beside them. With SQLAlchemy's 5 and 10, sixteen
sessions of ten disks made and ended PostgreSQL connections all the time."""

BUSY_TIMEOUT_S = 60
"""Every transaction here takes milliseconds; a longer wait means something is wrong."""

BUSY_PAUSE_S = 0.01
"""Between two tries where SQLite does not wait by itself."""

IDLE_TRANSACTION_S = 10
"""PostgreSQL ends the connection of a server that stops in the middle of a transaction (paused,
cut off), so that its locks do not outlive it."""

TRUSTED_S = 1.0
"""How long a pooled connection that lay idle is taken to be alive without asking."""

QUICK_LOG_PAGES = 8192
"""Pages (32 MiB) in SQLite's log before a commit that is not durable copies them into the file,
which costs it the two syncs it was to be spared. The durable ones wait for a sync anyway and do so
from 1000 pages on, as ever; others write on meanwhile."""

WRITES = "standby_writes"
ASKS = "standby_asks"
"""What a connection is for: a transaction that writes, one statement without any."""


def database_url(database: Path | str) -> sa.URL:
    """`database`, a SQLite file or a URL, as a URL with the driver this release uses.
    StateDatabaseError for a database that is none of the two, or whose driver is missing."""
    if isinstance(database, Path):
        return sa.URL.create("sqlite", database=str(database.absolute()))
    try:
        url = sa.make_url(database)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Not even as a cause: the message may repeat the URL.
        raise ConfigurationError(
            "[standby] state_database",
            "is no usable URL",
            'write "postgresql://user@host:5432/database", or a reference to one that holds a '
            "password",
        ) from None
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database:
        return url
    if kind not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "[standby] state_database",
            f"{kind} is not supported",
            "Use a SQLite file or postgresql://…",
        )
    try:
        importlib.import_module("psycopg")
    except ImportError as exc:  # also where libpq is missing
        raise StateDatabaseError(
            database_name(url),
            "the PostgreSQL driver is not installed",
            "Install the extra from the checkout: pip install '.[postgresql]'",
        ) from exc
    return url.set(drivername="postgresql+psycopg")


def database_name(url: sa.URL) -> str:
    """What messages call the database: nothing of it is secret."""
    if url.get_backend_name() == "sqlite":
        return url.database or "in memory"
    host = url.host or url.query.get("host") or "localhost"
    if not isinstance(host, str):
        host = ",".join(host)
    return f"{url.database or ''} on {host}"


def make_engine(url: sa.URL, *, is_durable: bool) -> sa.Engine:
    """An engine. Unless `is_durable`, a power cut may lose the last commits (never their order,
    and never half of one); a killed process loses nothing either way."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, is_durable)
    return _postgresql_engine(url, is_durable)


def _sqlite_engine(url: sa.URL, is_durable: bool) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, **POOL)
    settings = ["foreign_keys = ON"]
    if is_durable:
        settings.append("synchronous = FULL")
    else:
        settings += ["synchronous = NORMAL", f"wal_autocheckpoint = {QUICK_LOG_PAGES}"]

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        # SQLAlchemy says when transactions begin; the driver's own guesses are off.
        connection.isolation_level = None
        _keep_a_log(connection)
        for setting in settings:
            connection.execute(f"PRAGMA {setting}").close()

    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # A transaction that turns from reading to writing can be refused without waiting, so
        # writers say what they are.
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT" and not options.get(ASKS):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(WRITES) else "BEGIN")

    return engine


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Give the file a log (WAL), which it has for good. SQLite refuses that at once while another
    connection of a file without one is about to write, busy timeout or not: so it is asked again
    where several processes open a new database, or a copy, together."""
    give_up = SYSTEM_CLOCK.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as exc:
            is_busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the primary code
            if not is_busy or SYSTEM_CLOCK.monotonic() > give_up:
                raise
        SYSTEM_CLOCK.sleep(BUSY_PAUSE_S)


def _postgresql_engine(url: sa.URL, is_durable: bool) -> sa.Engine:
    engine = sa.create_engine(
        url, connect_args={"connect_timeout": 10, "application_name": "standby"}, **POOL
    )

    @event.listens_for(engine, "checkin")
    def put_back(_: Any, record: Any) -> None:
        record.info["idle_since"] = SYSTEM_CLOCK.monotonic()

    @event.listens_for(engine, "checkout")
    def taken(connection: Any, record: Any, _: object) -> None:
        # A restarted PostgreSQL costs a new connection, not an error; but to ask before each
        # transaction would be a round trip in six.
        idle_s = SYSTEM_CLOCK.monotonic() - record.info.get("idle_since", 0.0)
        try:
            if "idle_since" in record.info and idle_s > TRUSTED_S:
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as exc:
            raise sqlalchemy.exc.DisconnectionError from exc

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        settings = {
            "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION_S}s",
            "lock_timeout": f"{BUSY_TIMEOUT_S}s",
            "statement_timeout": f"{2 * BUSY_TIMEOUT_S}s",
            "synchronous_commit": "on" if is_durable else "off",
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "timezone": "UTC",
        }
        text = "; ".join(f"SET {name} = '{value}'" for name, value in settings.items())
        connection.autocommit = True
        try:
            connection.execute(text)
        finally:
            connection.autocommit = False

    return engine
