"""The revisions of the state database's schema, applied by alembic."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory

from standby.errors import StateDatabaseError
from standby.server.store.opening import database_name

__all__ = ["newest", "refuse_downgrade", "upgrade"]


def _config() -> Config:
    config = Config()
    # A '%' in the path would begin an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def newest() -> str:
    """The revision that all others lead to."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def upgrade(connection: sa.Connection, version: int, to: str = "head") -> None:
    """Apply what is newer than schema `version` (0: an empty database), within the connection's
    transaction. A database of release 0.1.0, which has no table of alembic, is adopted as what it
    is."""
    config = _config()
    config.attributes["connection"] = connection
    if version and "alembic_version" not in sa.inspect(connection).get_table_names():
        command.stamp(config, f"{version:04}")
    command.upgrade(config, to)


def refuse_downgrade(revision: str) -> NoReturn:
    """What every revision answers to alembic's `downgrade`, which would lose what is new."""
    raise StateDatabaseError(
        database_name(op.get_bind().engine.url),
        f"schema {int(revision)} cannot be turned back into an older one",
        "Give the older release the copy made before the upgrade (FILE.schema-N beside a SQLite "
        "file), or a backup of the PostgreSQL database",
    )
