"""A look at a state database that changes nothing and makes none: for `standby check`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
import sqlalchemy.exc

from standby.errors import StandbyError
from standby.files import is_there
from standby.server.store import schema
from standby.server.store.opening import database_name, database_url, make_engine


def problem_of(database: Path | str) -> str:
    """What keeps the database from being used, '' for nothing: another program's, a newer
    release's, damaged, out of reach. A SQLite file that is not there is made by the first
    session."""
    url = database_url(database)
    name = database_name(url)
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        if not is_there(file):
            return ""
        engine = sa.create_engine(
            sa.URL.create(
                "sqlite", database=file.absolute().as_uri(), query={"mode": "ro", "uri": "true"}
            )
        )
    else:
        engine = make_engine(url, is_durable=True)
    try:
        with engine.connect() as connection:
            schema.version_of(connection, name)
    except StandbyError as exc:
        return str(exc)
    except sqlalchemy.exc.DBAPIError as exc:
        return f"state database {name}: {' '.join(str(exc.orig).split())}"
    finally:
        engine.dispose()
    return ""
