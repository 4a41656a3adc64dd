"""The revisions of the state database's schema, applied by alembic."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

__all__ = ["newest", "revisions", "upgrade"]


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


def revisions() -> list[str]:
    """All revisions, oldest first."""
    walk = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in walk][::-1]


def upgrade(connection: sa.Connection, version: int, to: str = "head") -> None:
    """Apply what is newer than schema `version` (0: an empty database), within the connection's
    transaction. A database of release 0.1.0, which has no table of alembic, is adopted as what it
    is."""
    config = _config()
    config.attributes["connection"] = connection
    if version and "alembic_version" not in sa.inspect(connection).get_table_names():
        command.stamp(config, f"{version:04}")
    command.upgrade(config, to)
