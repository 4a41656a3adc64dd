"""Replicas as they were last seen; the truth about them stands at the target."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from standby.model.replica import ReplicaIdentity
from standby.server.store import tables
from standby.server.store.database import upsert
from standby.server.store.part import StorePart
from standby.server.store.tables import KnownReplica


class KnownReplicas(StorePart):
    """The replicas that sessions have seen. Its methods are the store's."""

    def known_replica(self, identity: ReplicaIdentity) -> KnownReplica | None:
        """The replica as last seen; None when it never was."""
        query = tables.replicas.select().where(*_is(identity))
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _known(row)

    def known_replicas(self, job: str | None = None) -> list[KnownReplica]:
        """All replicas seen (of one job), in order of name."""
        query = tables.replicas.select().order_by(tables.replicas.c.name, tables.replicas.c.path)
        if job is not None:
            query = query.where(tables.replicas.c.job == job)
        with self._database.reading() as connection:
            return [_known(row) for row in connection.execute(query)]

    def remember_replica(
        self,
        identity: ReplicaIdentity,
        name: str,
        path: str,
        state: str,
        newest_point: str,
        points: int,
    ) -> None:
        """Record the replica as seen now."""
        values = {
            "name": name,
            "path": path,
            "state": state,
            "newest_point": newest_point,
            "points": points,
            "seen_at": self._now(),
        }
        with self._writing() as connection:
            upsert(connection, tables.replicas, _key(identity), values)


def _key(identity: ReplicaIdentity) -> dict[str, str]:
    return {
        "installation": identity.installation,
        "source_host": identity.source_host,
        "machine_id": identity.machine_id,
        "job": identity.job,
    }


def _is(identity: ReplicaIdentity) -> list[sa.ColumnElement[bool]]:
    return [tables.replicas.c[name] == value for name, value in _key(identity).items()]


def _known(row: sa.Row[Any]) -> KnownReplica:
    identity = ReplicaIdentity(row.installation, row.source_host, row.machine_id, row.job)
    return KnownReplica(
        identity, row.name, row.path, row.state, row.newest_point, row.points, row.seen_at
    )
