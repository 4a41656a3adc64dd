"""The tokens of the API: who may call it in which role. Only their hashes are stored."""

from __future__ import annotations

from datetime import datetime, timedelta

from standby.clock import Clock
from standby.errors import ConfigurationError, UnknownName
from standby.server.store import tables
from standby.server.store.database import Database, insert
from standby.server.store.runs import token_of
from standby.server.store.tables import ApiToken

ROLES = ("viewer", "operator", "admin")

USED_AGAIN = timedelta(minutes=1)
"""How exact `last_used_at` is: not every call of the API is to cost a write."""

_TOKENS = tables.tokens.c


class Tokens:
    """Tokens by name. Thread-safe."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add(
        self, name: str, role: str, hash: str, *, expires_at: datetime | None = None, by: str = ""
    ) -> ApiToken:
        """Record a token under a name that no other one has or had; ConfigurationError for a name
        in use or a role that does not exist."""
        if role not in ROLES:
            raise ConfigurationError(f"token {name}", f"no role {role!r}", f"one of {ROLES}")
        token = ApiToken(
            name,
            role,
            hash,
            self._clock.now().isoformat(),
            by,
            "" if expires_at is None else expires_at.isoformat(),
            "",
            "",
        )
        values = {column.name: getattr(token, column.name) for column in _TOKENS}
        with self._database.writing() as connection:
            statement = insert(connection, tables.tokens).values(values).on_conflict_do_nothing()
            made = connection.execute(statement.returning(_TOKENS.name)).first()
        if made is None:
            raise ConfigurationError(
                f"token {name}", "a token of that name exists", "Names are used once"
            )
        return token

    def find(self, hash: str) -> ApiToken | None:
        """The token of that hash, if it may be used now; that it was used is recorded."""
        now = self._clock.now()
        with self._database.reading() as connection:
            row = connection.execute(tables.tokens.select().where(_TOKENS.hash == hash)).first()
        if row is None or row.revoked_at:
            return None
        if row.expires_at and datetime.fromisoformat(row.expires_at) <= now:
            return None
        used = datetime.fromisoformat(row.last_used_at) if row.last_used_at else None
        if used is None or not used <= now < used + USED_AGAIN:
            with self._database.writing(is_durable=False) as connection:
                connection.execute(
                    tables.tokens.update()
                    .where(_TOKENS.hash == hash)
                    .values(last_used_at=now.isoformat())
                )
        return token_of(row)

    def revoke(self, name: str) -> ApiToken:
        """End the token, now and for ever; UnknownName where there is none. A second call keeps
        the first one's time."""
        with self._database.writing() as connection:
            connection.execute(
                tables.tokens.update()
                .where(_TOKENS.name == name, _TOKENS.revoked_at == "")
                .values(revoked_at=self._clock.now().isoformat())
            )
            row = connection.execute(tables.tokens.select().where(_TOKENS.name == name)).first()
        if row is None:
            raise UnknownName("token", name, tuple(token.name for token in self.list()))
        return token_of(row)

    def list(self) -> list[ApiToken]:
        """All tokens ever added, in order of name."""
        with self._database.reading() as connection:
            rows = connection.execute(tables.tokens.select().order_by(_TOKENS.name))
            return [token_of(row) for row in rows]
