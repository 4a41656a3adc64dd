"""Checking a whole repository: the file, every root, every page."""

from __future__ import annotations

import sqlite3

import numpy as np

from standby import digesting
from standby.errors import RepositoryError
from standby.repository.database import Database
from standby.repository.index import LEAVES_BYTES, adds_up, effective_index

_ORPHANS = """
SELECT count(*) FROM leaves WHERE id NOT IN (
    SELECT leaves_id FROM pages WHERE leaves_id IS NOT NULL
    UNION ALL SELECT leaves_id FROM staged_pages WHERE leaves_id IS NOT NULL
)
"""

_PAGES = """
SELECT r.name, d.name, p.page, p.sequence, p.node, l.data FROM pages p
JOIN disks d ON d.id = p.disk_id JOIN replicas r ON r.id = d.replica_id
LEFT JOIN leaves l ON l.id = p.leaves_id WHERE p.node IS NOT NULL
"""

_STATES = """
SELECT r.name, d.name, d.id, s.sequence, s.point_id, s.root, s.virtual_size FROM states s
JOIN disks d ON d.id = s.disk_id JOIN replicas r ON r.id = d.replica_id
"""


def problems(database: Database) -> list[str]:
    """One line per problem; stops at the file's own structure when that is broken."""
    try:
        with database.reading() as connection:
            found = [
                f"{database.path}: {row[0]}"
                for row in connection.execute("PRAGMA integrity_check")
                if row[0] != "ok"
            ]
            return found or [*_states(connection), *_pages(connection), *_orphans(connection)]
    except RepositoryError as exc:
        return [exc.message()]


def _states(connection: sqlite3.Connection) -> list[str]:
    found = []
    for replica, disk, disk_id, sequence, point_id, root, virtual_size in connection.execute(
        _STATES
    ).fetchall():
        index = effective_index(connection, disk_id, sequence)
        if not adds_up(virtual_size, index, root):
            found.append(
                f"replica {replica}, disk {disk}: the pages of point {point_id} do not add up to"
                f" its root {root.hex()}"
            )
    return found


def _pages(connection: sqlite3.Connection) -> list[str]:
    found = []
    for replica, disk, page, sequence, node, data in connection.execute(_PAGES):
        if data is not None and len(data) == LEAVES_BYTES:
            leaves = np.frombuffer(data, "<u8").astype(np.uint64, copy=False).reshape(1, -1)
            if digesting.page_nodes(leaves)[0].tobytes() == node:
                continue
        found.append(
            f"replica {replica}, disk {disk}: page {page} of state {sequence}: its leaves are"
            " missing or do not match their node"
        )
    return found


def _orphans(connection: sqlite3.Connection) -> list[str]:
    (count,) = connection.execute(_ORPHANS).fetchone()
    return [f"{count} pages of leaves belong to no state"] if count else []
