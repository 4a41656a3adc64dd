"""The schema of a state database: made, adopted, upgraded, refused.

`schema_version` holds the number of the newest revision in `migrations/versions` that was applied;
alembic's own table holds the same as a text. A database of release 0.1.0 has the first only and is
adopted as revision 1. A look at an up-to-date database is one read; everything else happens in one
transaction under a lock, so that of several processes one does it and a kill leaves the database
as it was.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from standby.errors import StateDatabaseError
from standby.files import File, remove_durably, rename_durably
from standby.server.store import tables
from standby.server.store.opening import WRITES

UPGRADE_LOCK = 0x7374616E64627901
"""PostgreSQL's advisory lock held while the schema is made or upgraded: 'standby' and a one."""


def prepare(engine: sa.Engine, name: str, file: Path | None) -> None:
    """Bring the database to SCHEMA_VERSION. A SQLite `file` is copied beside itself before an
    upgrade."""
    with engine.connect() as connection:
        if version_of(connection, name) == tables.SCHEMA_VERSION:
            return
    with engine.connect() as connection:
        with connection.execution_options(**{WRITES: True}).begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
            found = version_of(connection, name)
            if found == tables.SCHEMA_VERSION:
                return
            if found is None:
                _make(connection)
                return
            if file is not None:
                copy_of_schema(engine, file, found)
            # Alembic takes a noticeable time to import, and is needed once in a release.
            from standby.server.store import migrations

            migrations.upgrade(connection, found)


def version_of(connection: sa.Connection, name: str) -> int | None:
    """The database's schema; None for an empty one."""
    names = sa.inspect(connection).get_table_names()
    if tables.version.name not in names:
        if names:
            raise StateDatabaseError(
                name,
                "is another program's database",
                "Choose another file or database as state_database in [standby]",
            )
        return None
    found = connection.execute(sa.select(tables.version.c.version)).scalar()
    if found is None:
        raise StateDatabaseError(
            name, "holds no schema version", "Move it away or restore a copy of it"
        )
    if found > tables.SCHEMA_VERSION or found < 1:
        raise StateDatabaseError(
            name,
            f"has schema {found}, this release knows {tables.SCHEMA_VERSION}",
            "Use the release that wrote it",
        )
    return int(found)


def _make(connection: sa.Connection) -> None:
    tables.metadata.create_all(connection)
    for table, values in tables.FIRST_ROWS:
        connection.execute(table.insert().values(**values))


def copy_of_schema(engine: sa.Engine, file: Path, version: int) -> Path:
    """A copy of the SQLite file as it is committed, durable, beside it: what an older release can
    be given again."""
    copy = file.with_name(f"{file.name}.schema-{version}")
    unfinished = copy.with_name(f"{copy.name}.partial")
    if unfinished.exists():
        remove_durably(unfinished)
    connection = engine.raw_connection()  # no transaction of its own: VACUUM refuses one
    try:
        cursor = connection.cursor()
        cursor.execute("VACUUM INTO ?", (str(unfinished),))
        cursor.close()
    finally:
        connection.close()
    with File(unfinished, writable=True) as written:
        written.sync()
    rename_durably(unfinished, copy)
    return copy
