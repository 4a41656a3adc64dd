"""Dropping points: which page rows no remaining state needs, decided in SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from standby.repository.database import delete_doomed
from standby.repository.staging import delete_staging

_SUPERSEDED = """
SELECT page, sequence, leaves_id FROM (
    SELECT page, sequence, leaves_id,
        LEAD(sequence) OVER (PARTITION BY page ORDER BY sequence) AS until
    FROM pages WHERE disk_id = :disk
) AS p WHERE NOT EXISTS (
    SELECT 1 FROM states WHERE disk_id = :disk
    AND states.sequence >= p.sequence AND (p.until IS NULL OR states.sequence < p.until)
)
"""
"""A row holds from its `sequence` until the page's next row: no state in there, no need."""

_IDLE_ZEROS = """
DELETE FROM pages AS p WHERE p.disk_id = :disk AND p.node IS NULL AND NOT EXISTS (
    SELECT 1 FROM pages AS q WHERE q.disk_id = :disk AND q.page = p.page
    AND q.sequence < p.sequence
)
"""
"""A zero row with nothing before it says what no row says as well."""


def drop_points(connection: sqlite3.Connection, replica: str, keep: Collection[str]) -> None:
    """Delete the states whose point is neither in `keep` nor the newest, and what only they
    need. Cost grows with the index rows of the replica, not with its leaves."""
    disks = [
        row[0]
        for row in connection.execute(
            "SELECT d.id FROM disks d JOIN replicas r ON r.id = d.replica_id WHERE r.name = ?",
            (replica,),
        )
    ]
    states = [
        (disk_id, sequence, point_id)
        for disk_id in disks
        for sequence, point_id in connection.execute(
            "SELECT sequence, point_id FROM states WHERE disk_id = ?", (disk_id,)
        )
    ]
    newest = max((sequence for _, sequence, _ in states), default=0)
    doomed = [
        (disk_id, sequence)
        for disk_id, sequence, point_id in states
        if sequence != newest and point_id not in keep
    ]
    connection.executemany("DELETE FROM states WHERE disk_id = ? AND sequence = ?", doomed)
    for disk_id in {disk_id for disk_id, _ in doomed}:
        _drop_pages(connection, disk_id)


def _drop_pages(connection: sqlite3.Connection, disk_id: int) -> None:
    key = {"disk": disk_id}
    rows = connection.execute(_SUPERSEDED, key).fetchall()
    connection.executemany(
        "DELETE FROM pages WHERE disk_id = ? AND page = ? AND sequence = ?",
        [(disk_id, page, sequence) for page, sequence, _ in rows],
    )
    connection.executemany(
        "DELETE FROM leaves WHERE id = ?",
        [(leaves_id,) for _, _, leaves_id in rows if leaves_id is not None],
    )
    connection.execute(_IDLE_ZEROS, key)


def forget(connection: sqlite3.Connection, replica: str) -> None:
    """Delete every row of the replica."""
    disks = connection.execute(
        "SELECT d.id FROM disks d JOIN replicas r ON r.id = d.replica_id WHERE r.name = ?",
        (replica,),
    ).fetchall()
    for (disk_id,) in disks:
        for (staging_id,) in connection.execute(
            "SELECT id FROM stagings WHERE disk_id = ?", (disk_id,)
        ).fetchall():
            delete_staging(connection, staging_id)
        connection.execute(
            "INSERT INTO doomed SELECT leaves_id FROM pages"
            " WHERE disk_id = ? AND leaves_id IS NOT NULL",
            (disk_id,),
        )
        delete_doomed(connection)
        connection.execute("DELETE FROM pages WHERE disk_id = ?", (disk_id,))
        connection.execute("DELETE FROM states WHERE disk_id = ?", (disk_id,))
        connection.execute("DELETE FROM disks WHERE id = ?", (disk_id,))
    connection.execute("DELETE FROM replicas WHERE name = ?", (replica,))
