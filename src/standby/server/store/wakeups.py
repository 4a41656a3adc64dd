"""Waiting until something is queued, asked or ended, without asking the tables again and again.

PostgreSQL says so by itself (LISTEN). SQLite cannot: changes of this process wake at once, those
of others are seen by a look at the file's `data_version`, which is a read of a few bytes of shared
memory.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Any

import sqlalchemy as sa

from standby.errors import StandbyError
from standby.server.store import tables
from standby.server.store.database import CHANNEL, Database

LOOK_S = 0.25
"""How often SQLite's `data_version` is looked at; it costs some 5 µs."""

HEARD_TOGETHER_S = 0.02
"""What PostgreSQL tells within that is one change: each answer costs a round trip, and a server
that is busy tells itself a hundred times per second."""

RETRY_S = 2.0
"""How long after a lost connection the next one is tried."""


class Wakeups:
    """Use it from one waiting thread; `wake` from any. Its own thread listens from the start, so
    a change between two waits is not missed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = threading.Event()
        self._end = threading.Event()
        self._bell, self._hears_bell = socket.socketpair()
        listen = self._watch_file if database.is_sqlite else self._listen
        self._is_ready = threading.Event()
        database.add_listener(self.wake)
        self._thread = threading.Thread(target=listen, name="wakeups", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def wait(self, timeout_s: float | None) -> bool:
        """Return when something changed since the last call returned, True, or after `timeout_s`,
        False. May return early without cause: look, and wait again."""
        is_changed = self._changed.wait(timeout_s)
        self._changed.clear()
        return is_changed

    def wake(self) -> None:
        """Let the waiting thread look: something in this process changed (an end is asked for, a
        mover is free)."""
        self._changed.set()

    def close(self) -> None:
        """End the listening; a waiting thread returns."""
        if self._end.is_set():
            return
        self._end.set()
        self._bell.close()
        self._changed.set()
        self._database.remove_listener(self.wake)
        self._thread.join()
        self._hears_bell.close()

    def __enter__(self) -> Wakeups:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- PostgreSQL --------------------------------------------------------------------------

    def _listen(self) -> None:
        """A connection that was lost may have swallowed something: after each, the waiting thread
        looks."""
        while not self._end.is_set():
            with contextlib.suppress(StandbyError):
                self._listen_once()
            self._is_ready.set()
            self._changed.set()
            self._end.wait(RETRY_S)

    def _listen_once(self) -> None:
        with self._database.own_connection() as connection:
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            if self._is_ready.is_set():
                self._changed.set()  # connected again
            self._is_ready.set()
            driver: Any = connection.connection.dbapi_connection
            driver.add_notify_handler(lambda _: self._changed.set())
            with selectors.DefaultSelector() as selector:
                selector.register(driver.fileno(), selectors.EVENT_READ)
                selector.register(self._hears_bell, selectors.EVENT_READ)
                while not self._end.is_set():
                    selector.select()
                    self._end.wait(HEARD_TOGETHER_S)
                    if not self._end.is_set():
                        # The driver reads what arrived along with an answer, and says when the
                        # connection is gone.
                        connection.exec_driver_sql("SELECT 1")

    # --- SQLite ------------------------------------------------------------------------------

    def _watch_file(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(StandbyError):
                self._watch_file_once()
            self._is_ready.set()
            self._changed.set()
            self._end.wait(RETRY_S)

    def _watch_file_once(self) -> None:
        with self._database.own_connection() as connection:
            known = self._counter()
            version = None
            while True:
                self._is_ready.set()
                if self._end.wait(LOOK_S):
                    return
                found = connection.exec_driver_sql("PRAGMA data_version").scalar()
                if found != version:
                    version = found
                    known, before = self._counter(), known
                    if known != before:
                        self._changed.set()

    def _counter(self) -> int:
        with self._database.reading() as connection:
            return int(connection.execute(sa.select(tables.changes.c.counter)).scalar_one())
