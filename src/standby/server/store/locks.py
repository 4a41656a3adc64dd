"""One session per job: a lock that ends with the process that holds it.

With SQLite it is a lock on a file beside the database, with PostgreSQL an advisory lock on a
connection of its own: PostgreSQL gives it up when that connection ends, at the latest when
keep-alives find the machine gone. Either only keeps two sessions from doing the same work; that
two never write one replica is the replica's own lock (RULES 3).
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from standby.files import ByteLock, is_byte_locked, is_range_locked, is_there
from standby.server.store.database import Database


class JobLock(Protocol):
    """A job's lock."""

    def acquire(self) -> bool:
        """Take it; False when another one has it."""
        ...

    def release(self) -> None:
        """Give it up; a second call does nothing."""
        ...

    def is_taken(self) -> bool:
        """Whether anybody holds it now, this object included. Where the system can tell without
        taking the lock, a session that begins at this instant is not disturbed."""
        ...


def job_lock(database: Database, job: str) -> JobLock:
    """The job's lock in that database, not taken."""
    if database.file is not None:
        return FileLock(database.file.parent / f".{database.file.name}.{job}.lock")
    return AdvisoryLock(database, job)


class FileLock:
    """A JobLock on a file, which is never removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = ByteLock(path)

    def acquire(self) -> bool:
        """Take it; False when another one has it."""
        return self._lock.acquire()

    def release(self) -> None:
        """Give it up; a second call does nothing."""
        self._lock.release()

    def is_taken(self) -> bool:
        """Whether anybody holds it now."""
        if not is_there(self._path):
            return False
        if sys.platform == "win32":
            return self._lock.is_held or is_byte_locked(self._path)
        return is_range_locked(self._path, 0, 1)


class AdvisoryLock:
    """A JobLock in PostgreSQL."""

    def __init__(self, database: Database, job: str) -> None:
        digest = hashlib.blake2b(f"standby job {job}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big", signed=True)
        self._database = database
        self._held: contextlib.ExitStack | None = None

    def acquire(self) -> bool:
        """Take it; False when another one has it."""
        assert self._held is None
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._database.own_connection())
            if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._key))).scalar():
                return False
            self._held = stack.pop_all()
            return True

    def release(self) -> None:
        """Give it up; a second call does nothing."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def is_taken(self) -> bool:
        """Whether anybody holds it now."""
        high, low = divmod(self._key & (1 << 64) - 1, 1 << 32)
        query = sa.text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND classid = :high AND objid = :low AND objsubid = 1"
        )
        with self._database.reading() as connection:
            return bool(connection.execute(query, {"high": high, "low": low}).scalar())
