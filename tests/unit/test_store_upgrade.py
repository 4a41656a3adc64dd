"""The state database's schema: what an older release wrote is upgraded whole or left as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from standby.errors import StateDatabaseError
from standby.model.replica import ReplicaIdentity
from standby.server.store import Store, migrations, tables
from standby.server.store.database import Database
from standby.server.store.opening import database_url

DUMP = Path(__file__).parent / "golden" / "state" / "0.1.0.sql"
WEB = ReplicaIdentity("main-site", "production", "id-web", "nightly")
VERSIONS = Path(migrations.__file__).parent / "versions"
REVISIONS = sorted(path.name[:4] for path in VERSIONS.glob("[0-9]*.py"))


@pytest.fixture
def engine(state_place: Path | str) -> Iterator[sa.Engine]:
    """The database without our code in between."""
    engine = sa.create_engine(database_url(state_place))
    yield engine
    engine.dispose()


def load_first_release(engine: sa.Engine) -> None:
    """Make the database a 0.1.0 one."""
    serial = "INTEGER" if engine.dialect.name == "sqlite" else "SERIAL"
    with engine.begin() as connection:
        for statement in DUMP.read_text().replace("{serial}", serial).split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)


def schema_of(engine: sa.Engine) -> dict[str, Any]:
    """Everything that the database says of its tables, but for the order."""
    look = sa.inspect(engine)
    return {
        table: {
            "columns": sorted(
                (column["name"], repr(column["type"]), column["nullable"], column["default"])
                for column in look.get_columns(table)
            ),
            "key": look.get_pk_constraint(table)["constrained_columns"],
            "references": [
                (key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in look.get_foreign_keys(table)
            ],
            "indexes": sorted(
                (
                    index["name"] or "",
                    str(index.get("expressions", index["column_names"])),
                    index["unique"],
                    str(sorted((k, str(v)) for k, v in index["dialect_options"].items())),
                )
                for index in look.get_indexes(table)
            ),
        }
        for table in look.get_table_names()
    }


def versions(engine: sa.Engine) -> tuple[object, object]:
    with engine.connect() as connection:
        return (
            connection.execute(sa.text("SELECT version FROM schema_version")).scalar_one(),
            connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one(),
        )


def test_the_newest_revision_is_the_schema_of_this_release(
    state_place: Path | str, engine: sa.Engine
) -> None:
    assert REVISIONS[0] == "0001"
    assert migrations.newest() == f"{tables.SCHEMA_VERSION:04}"
    Store(state_place).close()
    assert versions(engine) == (tables.SCHEMA_VERSION, migrations.newest())


def test_the_first_revision_makes_what_the_first_release_made(
    state_place: Path | str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if isinstance(state_place, Path):
        other: Path | str = tmp_path / "other.sqlite"
    else:
        other = request.getfixturevalue("postgresql").new_database()
    ours = sa.create_engine(database_url(state_place))
    released = sa.create_engine(database_url(other))
    load_first_release(released)
    with ours.begin() as connection:
        migrations.upgrade(connection, 0, "0001")
    made = schema_of(ours)
    made.pop("alembic_version")
    assert made == schema_of(released)
    ours.dispose()
    released.dispose()


def test_an_upgraded_database_equals_a_new_one(
    state_place: Path | str, engine: sa.Engine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    load_first_release(engine)
    Store(state_place).close()
    if isinstance(state_place, Path):
        other: Path | str = tmp_path / "new.sqlite"
    else:
        other = request.getfixturevalue("postgresql").new_database()
    Store(other).close()
    fresh = sa.create_engine(database_url(other))
    assert schema_of(engine) == schema_of(fresh)
    for table, values in tables.FIRST_ROWS:
        with engine.connect() as upgraded, fresh.connect() as new:
            assert upgraded.execute(table.select()).all() == [tuple(values.values())]
            assert new.execute(table.select()).all() == [tuple(values.values())]
    fresh.dispose()


def test_what_the_first_release_recorded_is_there_after_the_upgrade(
    state_place: Path | str, engine: sa.Engine
) -> None:
    load_first_release(engine)
    with Store(state_place) as store:
        first = store.session("s01")
        assert (first.outcome, first.machines[0].point) == ("done", "p1")
        assert [report.id for report in store.unfinished_sessions()] == ["s02"]
        assert store.is_asked_to_stop("s02")
        assert [intent.id for intent in store.open_intents()] == ["i1"]
        assert store.changed_share_history("web_replica") == [0.5]
        known = store.known_replica(WEB)
        assert known is not None
        assert known.newest_point == "p1"
        # Two open alarms about one thing, which are one alarm now.
        assert [alarm.text for alarm in store.alarms()] == ["26 h old"]
        assert store.raise_alarm("rpo", "nightly", "web", "27 h old").id == 2
        assert store.queue.open_sessions() == []
        assert store.lease("a").acquire()
    assert versions(engine) == (tables.SCHEMA_VERSION, migrations.newest())


@pytest.mark.parametrize("revision", REVISIONS)
def test_no_revision_is_turned_back(
    state_place: Path | str, engine: sa.Engine, revision: str
) -> None:
    with engine.begin() as connection:
        migrations.upgrade(connection, 0, revision)
    before = schema_of(engine)
    with engine.connect() as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        with pytest.raises(StateDatabaseError, match=rf"schema {int(revision)} cannot be turned"):
            command.downgrade(config, "-1")
        connection.rollback()
    assert schema_of(engine) == before


def test_a_sqlite_file_is_copied_before_its_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    engine = sa.create_engine(database_url(path))
    load_first_release(engine)
    before = schema_of(engine)
    engine.dispose()
    Store(path).close()
    Store(path).close()
    copies = [file for file in tmp_path.iterdir() if "schema" in file.name]
    assert [file.name for file in copies] == ["state.sqlite.schema-1"]
    copy = sa.create_engine(database_url(copies[0]))
    assert schema_of(copy) == before
    with copy.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM sessions")).scalar() == 2
    copy.dispose()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(
    state_place: Path | str, engine: sa.Engine
) -> None:
    load_first_release(engine)
    with engine.begin() as connection:  # the very last table is in the way
        connection.exec_driver_sql("CREATE TABLE api_tokens (x INTEGER)")
    before = schema_of(engine)
    with pytest.raises(StateDatabaseError, match=r"api_tokens.* already exists"):
        Store(state_place)
    assert schema_of(engine) == before
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT version FROM schema_version")).scalar() == 1
        connection.exec_driver_sql("DROP TABLE api_tokens")
    with Store(state_place) as store:
        assert len(store.sessions()) == 2


def test_several_that_open_an_old_database_upgrade_it_once(
    state_place: Path | str, engine: sa.Engine
) -> None:
    load_first_release(engine)
    together = threading.Barrier(4)
    found: list[int] = []

    def open_it() -> None:
        together.wait()
        with Store(state_place) as store:
            found.append(len(store.sessions()))

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2, 2, 2, 2]
    assert versions(engine) == (tables.SCHEMA_VERSION, migrations.newest())


def test_a_current_database_is_opened_without_writing(state_place: Path | str) -> None:
    Store(state_place).close()
    with Store(state_place) as first, first._database.writing() as connection:
        connection.execute(sa.select(tables.version.c.version))  # the write lock is held
        Database(state_place).close()


def test_a_database_without_its_version_is_refused(
    state_place: Path | str, engine: sa.Engine
) -> None:
    load_first_release(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM schema_version")
    with pytest.raises(StateDatabaseError, match="holds no schema version"):
        Store(state_place)
