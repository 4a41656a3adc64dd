"""The SQLite file of a repository: opening, schema, transactions, one door for its errors."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from standby.clock import SYSTEM_CLOCK
from standby.errors import DiskFull, DiskIO, RepositoryBusy, RepositoryError
from standby.files import free_bytes, is_folder, is_there, make_folder_durably

FILE_NAME = "repository.sqlite"

APPLICATION_ID = 0x53424450
"""'SBDP' (standby digest pages), at offset 68 of the file: the format's magic."""

FORMAT_VERSION = 1
"""At offset 60 of the file, SQLite's user_version."""

REBUILD = (
    "It can be rebuilt: move the folder away and start the job again; the digests are then taken "
    "from the target's own"
)

BUSY_TIMEOUT_S = 60
"""How long a writer waits for another one. The longest transaction is a commit: about a second
for a disk of 1 TiB."""

SCHEMA = """
CREATE TABLE replicas (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE disks (
    id INTEGER PRIMARY KEY,
    replica_id INTEGER NOT NULL REFERENCES replicas (id),
    name TEXT NOT NULL,
    UNIQUE (replica_id, name)
);
CREATE TABLE states (
    disk_id INTEGER NOT NULL REFERENCES disks (id),
    sequence INTEGER NOT NULL,
    point_id TEXT NOT NULL,
    root BLOB NOT NULL CHECK (length(root) = 16),
    virtual_size INTEGER NOT NULL,
    PRIMARY KEY (disk_id, sequence),
    UNIQUE (disk_id, point_id)
) WITHOUT ROWID;
CREATE TABLE leaves (
    id INTEGER PRIMARY KEY,
    data BLOB NOT NULL CHECK (length(data) = 32768)
);
CREATE TABLE pages (
    disk_id INTEGER NOT NULL REFERENCES disks (id),
    page INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    node BLOB CHECK (length(node) = 16),
    leaves_id INTEGER,
    PRIMARY KEY (disk_id, page, sequence),
    CHECK ((node IS NULL) = (leaves_id IS NULL))
) WITHOUT ROWID;
CREATE TABLE stagings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    disk_id INTEGER NOT NULL UNIQUE REFERENCES disks (id),
    session TEXT NOT NULL,
    point_id TEXT NOT NULL,
    virtual_size INTEGER NOT NULL,
    base_sequence INTEGER,
    mark_checkpoint TEXT NOT NULL DEFAULT '',
    mark_offset INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE staged_pages (
    staging_id INTEGER NOT NULL REFERENCES stagings (id),
    page INTEGER NOT NULL,
    node BLOB CHECK (length(node) = 16),
    leaves_id INTEGER,
    PRIMARY KEY (staging_id, page),
    CHECK ((node IS NULL) = (leaves_id IS NULL))
) WITHOUT ROWID;
"""

TEMPORARY = "CREATE TEMP TABLE IF NOT EXISTS doomed (leaves_id INTEGER)"


class Database:
    """One connection to the file; threads take turns, processes take turns at writing."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        """Open `<folder>/repository.sqlite`, making folder and file if `create`. Raises
        RepositoryError for a missing, foreign, damaged or newer file, which stays untouched."""
        self.folder = folder
        self.path = folder / FILE_NAME
        self.lock = threading.RLock()
        try:
            if is_there(folder) and not is_folder(folder):
                raise RepositoryError(str(folder), "is a file; a repository is a folder")
            is_new = not is_there(self.path)
        except DiskIO as exc:
            raise RepositoryError(str(folder), f"cannot be read: {exc.reason}") from exc
        if is_new:
            if not create:
                raise RepositoryError(
                    str(folder), f"does not exist (no {FILE_NAME} in it); check the path"
                )
            try:
                make_folder_durably(folder)
            except DiskIO as exc:
                raise RepositoryError(str(folder), exc.message()) from exc
        with self._errors():
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=64,
            )
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        connection = self._connection
        is_empty = self._check_identity()
        self._become_wal()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA temp_store = MEMORY")
        if is_empty:
            with self.writing():
                if self._check_identity():
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute(TEMPORARY)

    def _check_identity(self) -> bool:
        """True for an empty file, to be filled; raises where it is not ours to use."""
        application_id, version, tables = self._connection.execute(
            "SELECT a.application_id, u.user_version, (SELECT count(*) FROM sqlite_master)"
            " FROM pragma_application_id AS a, pragma_user_version AS u"
        ).fetchone()
        if application_id == 0 and tables == 0:
            return True
        if application_id != APPLICATION_ID:
            raise self.error(
                f"{FILE_NAME} is another program's database (application id {application_id:#x});"
                " choose another folder"
            )
        if version != FORMAT_VERSION:
            raise self.error(
                f"{FILE_NAME} has format {version}, this release knows {FORMAT_VERSION}; use the"
                f" release that wrote it. {REBUILD}"
            )
        return False

    def _become_wal(self) -> None:
        """Two processes that create the file together may refuse each other for a moment here,
        where SQLite does not wait by itself."""
        deadline = SYSTEM_CLOCK.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as exc:
                if "locked" not in str(exc) or SYSTEM_CLOCK.monotonic() > deadline:
                    raise
                SYSTEM_CLOCK.sleep(0.01)
                continue
            if mode != "wal":
                raise self.error(
                    f"the file system does not allow SQLite's write-ahead log (mode {mode});"
                    " put the repository on a local disk"
                )
            return

    def relax(self) -> None:
        """From now on this connection's transactions survive a kill, but after a power cut the
        last ones may be missing; never one without those before it."""
        with self.lock, self._errors():
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def error(self, problem: str) -> RepositoryError:
        """A RepositoryError about this repository."""
        return RepositoryError(str(self.folder), problem)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as exc:
            text = str(exc)
            if "locked" in text or "busy" in text:
                raise RepositoryBusy(
                    str(self.folder), f"another process has been writing for {BUSY_TIMEOUT_S} s"
                ) from exc
            if "is full" in text:
                raise DiskFull(str(self.path), 0, free_bytes(self.folder)) from exc
            if isinstance(exc, sqlite3.OperationalError) and "malformed" not in text:
                raise self.error(f"{FILE_NAME}: {text}") from exc
            raise self.error(f"{FILE_NAME} is damaged: {text}. {REBUILD}") from exc

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All statements inside see one state of the database."""
        yield from self._transaction("BEGIN")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All statements inside take effect together, on stable storage, or not at all."""
        yield from self._transaction("BEGIN IMMEDIATE")

    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self.lock, self._errors():
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close; a second call does nothing."""
        with self.lock:
            self._connection.close()


def delete_doomed(connection: sqlite3.Connection) -> None:
    """Delete the leaves that `doomed` lists, and empty the list."""
    connection.execute("DELETE FROM leaves WHERE id IN (SELECT leaves_id FROM doomed)")
    connection.execute("DELETE FROM doomed")
